"""Intervals, paired tests and the front, against hand-worked cases."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from raft_ray.compare.front import ParetoPoint, dominated_by, gain_at_loss, pareto_front
from raft_ray.evaluate.statistics import Estimate, average, estimate, estimate_of, mcnemar, on_base, paired, ratio


def test_mcnemar_by_hand() -> None:
    # 8 : 2 of ten coins: 2 (1 + 10 + 45) / 1024.
    assert mcnemar(8, 2) == mcnemar(2, 8) == pytest.approx(112 / 1024)
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    # More questions than a float's exponent holds.
    assert 0 < mcnemar(1400, 1600) < 0.001


def test_an_interval_is_the_binomials() -> None:
    # 30 of 100 right: the normal interval is 0.3 ± 1.96 · sqrt(0.3 · 0.7 / 100).
    result = estimate([[1] * 30 + [0] * 70])
    assert result.mean == pytest.approx(0.3)
    assert result.low == pytest.approx(0.3 - 1.96 * 0.0458, abs=0.011)
    assert result.high == pytest.approx(0.3 + 1.96 * 0.0458, abs=0.011)


def test_what_cannot_vary_has_an_interval_of_no_width() -> None:
    assert estimate([[1, 1, 1]]) == estimate([[1, 1], [1, 1]])
    assert (estimate([[0, 0]]).low, estimate([[0, 0]]).high) == (0.0, 0.0)


def test_an_interval_is_the_same_each_time_and_another_by_another_seed() -> None:
    verdicts = [[1, 0, 1, 1, 0, 0, 1]]
    assert estimate(verdicts, seed=3) == estimate(verdicts, seed=3)
    assert paired(verdicts, [[0, 0, 1, 1, 0, 0, 0]], seed=3) == paired(verdicts, [[0, 0, 1, 1, 0, 0, 0]], seed=3)
    lows = {estimate(np.random.default_rng(0).random((1, 50)).tolist(), seed=seed).low for seed in (3, 4)}
    assert len(lows) == 2


def test_seeds_that_disagree_widen_the_interval() -> None:
    agreeing = [[1, 0] * 50, [1, 0] * 50]
    disagreeing = [[1] * 90 + [0] * 10, [1] * 10 + [0] * 90]
    narrow, wide = estimate(agreeing), estimate(disagreeing)
    assert narrow.mean == wide.mean == 0.5
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)  # type: ignore[operator]


def test_one_number_has_no_interval_and_several_have() -> None:
    one = estimate_of([0.25])
    assert (one.mean, one.low, one.high) == (0.25, None, None)
    several = estimate_of([0.2, 0.4])
    assert (several.mean, several.low, several.high) == (pytest.approx(0.3), 0.2, 0.4)


def test_an_average_over_domains_by_hand() -> None:
    found = [Estimate(0.1, -0.2, 0.4), Estimate(0.3, -0.1, 0.7)]
    # Widths 0.3 and 0.4, whose root of squares is 0.5; half of it for two domains.
    assert average(found) == Estimate(pytest.approx(0.2), pytest.approx(-0.05), pytest.approx(0.45))
    assert average(found, independent=False) == Estimate(pytest.approx(0.2), pytest.approx(-0.15), pytest.approx(0.55))
    assert average([*found, Estimate(0.5, None, None)]) == Estimate(pytest.approx(0.3), None, None)
    with pytest.raises(ValueError, match="nothing to average"):
        average([])


def test_the_average_of_independent_domains_covers_the_truth() -> None:
    # Three domains of 50 questions each, right by a fair coin: about 95 of 100 intervals hold 0.5.
    random = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        domains = [estimate(random.integers(0, 2, (1, 50)).tolist(), draws=500) for _ in range(3)]
        one = average(domains)
        assert one.low is not None
        assert one.high is not None
        held += one.low <= 0.5 <= one.high
    assert held >= 53


def test_one_seed_each_is_tested_by_mcnemar() -> None:
    a, b = [1] * 8 + [0] * 2 + [1] * 10, [0] * 8 + [1] * 2 + [1] * 10
    result = paired([a], [b])
    assert (result.only_a, result.only_b) == (8, 2)
    assert result.p == pytest.approx(112 / 1024)
    assert result.difference.mean == pytest.approx(0.3)
    assert result.difference.low is not None
    assert result.difference.low < 0.3 < result.difference.high  # type: ignore[operator]


def test_pairing_sees_what_unpaired_intervals_do_not() -> None:
    # b is right wherever a is, and on ten of 200 questions more: small beside the questions' own spread.
    a = [1, 0] * 100
    b = [1, 1] * 10 + [1, 0] * 90
    assert paired([b], [a]).p < 0.01
    assert estimate([a]).high > estimate([b]).low  # type: ignore[operator]


def test_several_seeds_are_tested_by_the_bootstrap() -> None:
    random = np.random.default_rng(0)
    same = (random.random((3, 200)) < 0.5).astype(float).tolist()
    other = (random.random((3, 200)) < 0.5).astype(float).tolist()
    better = (random.random((3, 200)) < 0.8).astype(float).tolist()
    assert paired(same, same).p == 1.0
    assert paired(same, other).p > 0.05
    assert paired(better, same).p < 0.001
    assert paired(better, same).p == pytest.approx(paired(same, better).p, abs=1e-3)
    # A base that is evaluated once against three seeds.
    assert paired(better, same[:1]).difference.mean == pytest.approx(np.mean(better) - np.mean(same[0]))


def test_a_ratio_and_its_interval_by_hand_and_by_scipy() -> None:
    # Independent answers, right with p: the variance of their ratio r is about r² ((1 - pa) / pa + (1 - pb) / pb) / n.
    random = np.random.default_rng(0)
    a, b = (random.random((2, 2000)) < [[0.6], [0.5]]).astype(float)
    found = ratio([a], [b])
    width = 1.96 * found.mean * np.sqrt(((1 - a.mean()) / a.mean() + (1 - b.mean()) / b.mean()) / 2000)
    assert found.mean == pytest.approx(a.mean() / b.mean())
    assert (found.low, found.high) == (
        pytest.approx(found.mean - width, abs=0.01),
        pytest.approx(found.mean + width, abs=0.01),
    )
    # Answers to the same questions, most of them alike: as scipy draws pairs, and much narrower.
    b = np.where(random.random(2000) < 0.9, a, b)
    drawn = stats.bootstrap(
        (a, b),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=1,
    ).confidence_interval
    found = ratio([a], [b])
    assert (found.low, found.high) == (pytest.approx(drawn.low, abs=0.004), pytest.approx(drawn.high, abs=0.004))
    assert found.high - found.low < 0.6 * 2 * width


def test_samples_of_a_prompt_are_one_question_with_their_mean() -> None:
    # Prompts that are always or never followed: 8 samples tell no more than one.
    single, repeated = [1.0] * 60 + [0.0] * 40, [8 / 8] * 60 + [0 / 8] * 40
    assert estimate([single]) == estimate([repeated])
    # Where each sample is a coin, the mean over 8 of them has an eighth of the variance.
    random = np.random.default_rng(0)
    coins = random.integers(0, 2, (8, 400)).astype(float)
    wide, narrow = estimate([coins[0]]), estimate([coins.mean(0)])
    assert narrow.high - narrow.low == pytest.approx((wide.high - wide.low) / np.sqrt(8), rel=0.1)  # type: ignore[operator]


def test_a_ratio_to_a_base_over_seeds_holds_their_spread_and_one_to_0_is_refused() -> None:
    base = [[1.0, 0.0] * 50]
    alike, apart = ratio(base * 2, base), ratio([[1.0, 0.0] * 50, [0.0] * 100], base)
    assert alike == Estimate(1.0, 1.0, 1.0)
    assert apart == Estimate(0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="a mean of 0"):
        ratio(base, [[0.0] * 100])
    with pytest.raises(ValueError, match="100 and 3 questions"):
        ratio(base, [[1.0] * 3])
    # Of three questions the base has one right: in 8 of 27 draws none, so that the ratio may be anything.
    assert ratio([[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]) == Estimate(2.0, None, None)


def test_what_is_left_of_a_base_is_the_ratio_and_the_paired_difference() -> None:
    own, base = [[1.0, 0.0, 1.0, 1.0] * 10], [[1.0, 1.0, 1.0, 0.0] * 10]
    kept, found = ratio(own, base, seed=3), on_base(own, base, seed=3)
    assert found == {
        "retention": 1.0,
        "retention_low": kept.low,
        "retention_high": kept.high,
        "on_base": {
            "difference": {"mean": 0.0, "low": found["on_base"]["difference"]["low"], "high": pytest.approx(0.225)},
            "p": 1.0,
            "only_a": 10,
            "only_b": 10,
        },
    }
    assert on_base(own, [[0.0] * 40])["retention"] is None
    assert on_base(own, [[0.0] * 40])["on_base"]["only_a"] == 30
    assert set(on_base(own, []).values()) == {None}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_a_paired_difference_is_antisymmetric_and_within_its_interval(pairs: list[tuple[bool, bool]]) -> None:
    a, b = ([[float(pair[side]) for pair in pairs]] for side in (0, 1))
    there, back = paired(a, b, draws=400), paired(b, a, draws=400)
    assert there.difference.mean == -back.difference.mean
    assert there.p == back.p
    assert 0 < there.p <= 1
    assert there.difference.low <= there.difference.mean + 1e-9  # type: ignore[operator]
    assert there.difference.high >= there.difference.mean - 1e-9  # type: ignore[operator]


def test_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 questions"):
        paired([[1, 0]], [[1, 0, 1]])
    with pytest.raises(ValueError, match=r"\[1, 2\] questions"):
        estimate([[1], [1, 0]])
    with pytest.raises(ValueError, match=r"\[\] questions"):
        estimate([])


def test_the_front_by_hand() -> None:
    places = {
        "base": ParetoPoint(0.1, 0.0),
        "sft": ParetoPoint(0.8, 0.5),
        "sdft": ParetoPoint(0.5, 0.6),
        "opd": ParetoPoint(0.3, 0.1),
        "raft": ParetoPoint(0.6, 0.1),
        "twin": ParetoPoint(0.6, 0.1),
    }
    assert pareto_front(places) == ["sft", "raft", "twin", "base"]
    assert dominated_by("opd", places) == ["raft", "twin"]
    assert dominated_by("sdft", places) == ["sft", "raft", "twin"]
    assert dominated_by("raft", places) == []
    assert pareto_front({}) == []
    assert gain_at_loss(places, 0.1) == 0.6
    assert gain_at_loss(places, 1.0) == 0.8
    assert gain_at_loss({"sft": places["sft"]}, 0.1) is None


@given(st.dictionaries(st.text(), st.builds(ParetoPoint, st.floats(0, 1), st.floats(0, 1)), max_size=12))
def test_whoever_is_not_on_the_front_is_beaten_by_someone_on_it(places: dict[str, ParetoPoint]) -> None:
    front = pareto_front(places)
    assert bool(front) == bool(places)
    for name, place in places.items():
        assert (name in front) == (not any(places[other].dominates(place) for other in front))
