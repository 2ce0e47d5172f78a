"""The report's figures in words: its verdict, the balance of the losses, and where the time went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raft_ray.report import figures, timing
from raft_ray.report.files import Run
from raft_ray.report.verdict import better_accuracy, verdict


def measured(accuracy: float, drift: float, words: float = 100.0, n: int = 200) -> dict[str, Any]:
    """A method that is right on the first `accuracy * n` of the questions."""
    correct = [i < accuracy * n for i in range(n)]
    return {
        "domain": {"accuracy": accuracy, "n": n, "correct": correct},
        "drift": {"kl": drift},
        "length": {"words_mean": words},
    }


def test_a_loss_is_called_a_loss() -> None:
    methods = {"base": measured(0.2, 0), "sft": measured(0.6, 0.1), "raft": measured(0.3, 0.4, words=20)}
    found = verdict("raft", methods)
    assert found.headline == "RAFT learned less than SFT and drifted further from the base model."
    assert [claim.tone for claim in found.claims] == ["bad", "bad", "bad", "bad"]
    assert "4 times more than SFT" in found.claims[1].text
    assert "SFT reaches at least its accuracy with no more drift." in found.claims[2].text


def test_a_gain_bought_with_less_learning_says_but() -> None:
    methods = {"base": measured(0.2, 0), "sft": measured(0.6, 0.4), "raft": measured(0.3, 0.05)}
    assert verdict("raft", methods).headline == "RAFT learned less than SFT but stayed closer to the base model."


def test_to_learn_as_much_as_another_that_learned_nothing_is_no_merit() -> None:
    methods = {"base": measured(0.2, 0), "sft": measured(0.2, 0.4), "raft": measured(0.21, 0.05)}
    headline = "RAFT did not clearly learn the domain but stayed closer to the base model."
    assert verdict("raft", methods).headline == headline
    methods["raft"] = measured(0.1, 0.6)
    headline = "RAFT got worse on the domain and drifted further from the base model."
    assert verdict("raft", methods).headline == headline


def test_training_that_only_hurt_is_worse_than_the_base() -> None:
    methods = {"base": measured(0.5, 0), "raft": measured(0.2, 0.3)}
    found = verdict("raft", methods)
    assert "RAFT got worse on the domain" in found.headline
    assert any("The base reaches at least its accuracy" in claim.text for claim in found.claims)


def test_a_difference_within_chance_is_no_difference() -> None:
    clear = better_accuracy(measured(0.5, 0), measured(0.4, 0))
    assert clear is not None
    assert clear[0] == 1
    # Two of 200 questions answered by one alone: p = 0.5 by the sign test.
    assert better_accuracy(measured(0.41, 0), measured(0.40, 0)) == (0, 0.5)
    assert better_accuracy(measured(0.5, 0), {"domain": None}) is None


def test_unpaired_answers_are_compared_as_proportions() -> None:
    few = better_accuracy(measured(0.5, 0, n=20), measured(0.4, 0, n=30))
    many = better_accuracy(measured(0.5, 0, n=4000), measured(0.4, 0, n=3000))
    assert few is not None
    assert many is not None
    assert (few[0], many[0]) == (0, 1)


def test_the_balance_counts_the_weight_of_the_kl() -> None:
    assert figures.balance({"sft_loss": 2.0, "kl_loss": 0.5, "lambda": 8.0}) == 0.5
    assert figures.balance({"sft_loss": 2.0, "kl_loss": None, "lambda": None}) is None
    assert figures.balance({"sft_loss": 2.0, "kl_loss": 0.5, "lambda": 0.0}) is None


def test_wall_time_counts_hidden_work_only_as_far_as_the_learner_waited() -> None:
    seconds = {"rollout": 3.0, "teacher": 1.0, "wait": 2.0, "forward_backward": 4.0, "total": 6.5}
    split = timing.wall({"step": 0, "seconds": seconds})
    assert split == {"rollout": 1.5, "teacher": 0.5, "load": 0.0, "wait": 0.0, "forward_backward": 4.0, "other": 0.5}
    assert sum(split.values()) == 6.5


def test_the_teachers_work_in_the_learners_is_no_part_of_their_wait(tmp_path: Path) -> None:
    seconds = {"rollout": 3.0, "teacher": 1.0, "wait": 2.0, "forward_backward": 4.0, "total": 7.5}
    run = Run(tmp_path, "raft", {"teacher": {"place": "learner"}, "run": {"overrides": {"opd": {"teacher": {}}}}})
    run.metrics["raft"] = [{"step": 0, "seconds": seconds}]
    (row,) = timing.totals(run)
    assert row["wall"] == pytest.approx(
        {"rollout": 2.0, "teacher": 1.0, "load": 0.0, "wait": 0.0, "forward_backward": 4.0, "other": 0.5}
    )
    assert row["hidden"] == pytest.approx(1 / 3)
    assert timing.beside(run, "opd") == timing.beside(run, "raft") == ("rollout", "load")
    assert run.config is not None
    run.config["run"]["overrides"]["opd"] = {"teacher": {"place": "own"}}
    assert timing.beside(run, "opd") == timing.BESIDE


def test_wall_time_without_overlap_is_what_was_recorded() -> None:
    seconds = {"wait": 0.5, "forward_backward": 4.0, "total": 5.0}
    assert timing.wall({"step": 0, "seconds": seconds}) == {"wait": 0.5, "forward_backward": 4.0, "other": 0.5}
