"""The grid: each method's point is chosen on one part of the questions and reported on the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raft_ray.compare.charts import Traces
from raft_ray.compare.comparison import compare
from raft_ray.compare.output import points_table, write_comparison
from raft_ray.compare.tuning import ONLY, Tuned, choose, split, tune
from raft_ray.compare.verdict import frontier, verdict
from raft_ray.errors import ConfigError
from raft_ray.report.files import Run

QUESTIONS = 100
VALIDATION, REPORTED = split(QUESTIONS, 0.4, seed=7)


def _block(validation: float, reported: float, drift: float) -> dict[str, Any]:
    """An evaluation with these accuracies on the two parts."""
    right = {*VALIDATION[: round(validation * len(VALIDATION))], *REPORTED[: round(reported * len(REPORTED))]}
    return {
        "domain": {"correct": [place in right for place in range(QUESTIONS)], "accuracy": 0.0, "n": QUESTIONS},
        "ifeval": {"correct": [place < 20 for place in range(50)]},
        "mmlu": None,
        "length": {"words_mean": 80.0},
        "drift": {"kl": drift, "kl_first": 2 * drift, "top1_agreement": 0.9},
        "weight_distance": {"total": 0.02, "layers": {"0": 0.01, "1": 0.03}},
    }


def _grid() -> dict[str, dict[str, list[dict[str, Any]]]]:
    return {
        "base": {ONLY: [_block(0.1, 0.1, 0.0)]},
        # The better on validation is the worse on what is reported: the choice must not look there.
        "sft": {"lr=1": [_block(0.5, 0.8, 0.4)], "lr=2": [_block(0.6, 0.7, 0.6)]},
        "opd": {"lr=1": [_block(0.2, 0.2, 0.02)], "lr=2": [_block(0.3, 0.3, 0.25)]},
        "raft": {"lr=1": [_block(0.6, 0.6, 0.2)], "lr=2": [_block(0.6, 0.9, 0.3)]},
    }


def _tuned(grid: dict[str, dict[str, list[dict[str, Any]]]]) -> Tuned:
    return tune(grid, choose(grid, 0.4, 7), 0.4, 7)


def test_the_split_is_whole_seeded_and_in_order() -> None:
    assert sorted(VALIDATION + REPORTED) == list(range(QUESTIONS))
    assert len(VALIDATION) == 40
    assert sorted(VALIDATION) == VALIDATION
    assert split(QUESTIONS, 0.4, seed=7) == (VALIDATION, REPORTED)
    assert split(QUESTIONS, 0.4, seed=8) != (VALIDATION, REPORTED)


@pytest.mark.parametrize(("questions", "share"), [(1, 0.5), (3, 0.1), (3, 0.9)])
def test_a_split_with_an_empty_part_is_refused(questions: int, share: float) -> None:
    with pytest.raises(ConfigError, match=r"compare\.validation="):
        split(questions, share, 0)


def test_no_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no data\.test"):
        split(0, 0.5, 0)


def test_points_are_chosen_on_validation_and_reported_on_the_rest() -> None:
    tuned = _tuned(_grid())
    # RAFT's points are equal on validation: the one that drifts less is taken.
    assert tuned.chosen == {"sft": "lr=2", "opd": "lr=2", "raft": "lr=1"}
    assert tuned.questions == 40
    accuracies = {name: blocks[0]["domain"]["accuracy"] for name, blocks in tuned.methods.items()}
    assert accuracies == pytest.approx({"base": 0.1, "sft": 0.7, "opd": 0.3, "raft": 0.6})
    assert all(len(blocks[0]["domain"]["correct"]) == 60 for blocks in tuned.methods.values())


def test_a_point_that_lost_a_seed_is_not_chosen() -> None:
    grid = _grid()
    grid["sft"]["lr=1"].append(_block(0.5, 0.8, 0.4))
    assert _tuned(grid).chosen["sft"] == "lr=1"


def test_more_seeds_of_a_chosen_point_do_not_choose_again() -> None:
    grid = _grid()
    chosen = choose(grid, 0.4, 7)
    # FAPM's point may need another seed of SFT at a point that SFT was not given.
    grid["sft"]["lr=1"].append(_block(1.0, 1.0, 0.4))
    grid["sft"]["lr=2"].append(_block(0.2, 0.5, 0.6))
    tuned = tune(grid, chosen, 0.4, 7)
    assert tuned.chosen["sft"] == "lr=2"
    assert [block["domain"]["accuracy"] for block in tuned.methods["sft"]] == pytest.approx([0.7, 0.5])
    points = {(one["method"], one["point"]): one for one in compare(tuned)["points"]}
    assert points["sft", "lr=1"]["seeds"] == points["sft", "lr=2"]["seeds"] == 2
    assert points["raft", "lr=1"]["seeds"] == 1
    assert points["sft", "lr=2"]["scores"]["domain"]["mean"] == pytest.approx(0.6)


def test_without_a_grid_nothing_is_split() -> None:
    grid = {"base": {ONLY: [_block(0.1, 0.1, 0.0)]}, "sft": {ONLY: [_block(0.5, 0.8, 0.4)]}}
    tuned = _tuned(grid)
    assert (tuned.points, tuned.chosen, tuned.questions) == ({}, {}, 0)
    assert len(tuned.methods["sft"][0]["domain"]["correct"]) == QUESTIONS
    assert compare(tuned)["points"] == []


def test_all_points_and_their_front() -> None:
    comparison = compare(_tuned(_grid()))
    json.dumps(comparison)
    points = {(one["method"], one["point"]): one for one in comparison["points"]}
    assert len(points) == 7
    assert points["raft", "lr=2"]["scores"]["domain"]["mean"] == pytest.approx(0.9)
    assert {place for place, one in points.items() if one["front"]} == {
        ("base", ""),
        ("opd", "lr=1"),
        ("raft", "lr=1"),
        ("raft", "lr=2"),
    }
    assert {place for place, one in points.items() if one["chosen"]} == {
        ("base", ""),
        ("sft", "lr=2"),
        ("opd", "lr=2"),
        ("raft", "lr=1"),
    }


def test_what_the_points_say_in_words() -> None:
    comparison = compare(_tuned(_grid()))
    assert frontier(comparison) == [
        "With at most half the drift of SFT's best point (lr=1: 80%, drift 0.4): RAFT reaches 60%, SFT drifts further "
        "everywhere.",
        "At the drift of OPD's points RAFT is more accurate in 1 of 1; 1 more drifts less than any of RAFT's.",
    ]
    assert any(line.startswith("SFT at lr=2, chosen on 40 other questions: ") for line in verdict(comparison))
    far = _grid()
    far["raft"] = {"lr=1": [_block(0.9, 0.9, 0.3)], "lr=2": [_block(0.6, 0.9, 0.3)]}
    assert frontier(compare(_tuned(far)))[0].endswith(
        ": RAFT drifts further everywhere, SFT drifts further everywhere."
    )
    far["sft"] |= {"lr=0.5": [_block(0.4, 0.95, 0.25)], "lr=0.2": [_block(0.4, 0.7, 0.1)]}
    assert frontier(compare(_tuned(far)))[:2] == [
        "With at most half the drift of SFT's best point (lr=0.5: 95%, drift 0.25): RAFT drifts further everywhere, "
        "SFT reaches 70%.",
        "SFT at lr=0.5 (95%, drift 0.25) is at least as accurate as RAFT's chosen point (90%, drift 0.3), with no more "
        "drift.",
    ]
    far["opd"] = {"lr=1": [_block(0.2, 0.2, 0.02)]}
    assert frontier(compare(_tuned(far)))[-1] == (
        "Nothing can be said of RAFT at OPD's drifts: it has no point that drifts as little."
    )
    del far["raft"]
    assert frontier(compare(_tuned(far))) == []


def test_files_show_every_point_the_front_and_the_curves(tmp_path: Path) -> None:
    tuned = _tuned(_grid())
    comparison = compare(tuned)
    metrics = [{"step": step, "sft_loss": 1.0 / step, "kl_loss": 0.1, "lambda": 2.0} for step in range(1, 4)]
    traces = Traces(Run(tmp_path, "raft", None, {"raft": metrics, "sft": metrics}), {"raft": tuned.methods["raft"][0]})
    html = write_comparison(tmp_path, comparison, {}, {"model": "tiny"}, traces).read_text()
    for title in ("SFT loss", "CE/KL ratio", "Weight distance by layer", "All points", "How they got there"):
        assert title in html
    assert 'class="front"' in html
    assert "RAFT at lr=2: " in html
    assert "<small>lr=1</small>" in html
    columns, rows = points_table(comparison)
    assert len(rows) == 7
    assert all(len(row) == len(columns) for row in rows)
    assert "## All points" in (tmp_path / "compare.md").read_text()
    assert "\nraft,lr=2,1,domain,0.9," in (tmp_path / "compare.csv").read_text()
    assert "\nraft,lr=1,1,domain,0.6," in (tmp_path / "compare.csv").read_text()
