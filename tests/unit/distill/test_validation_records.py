"""What the pipeline makes of evaluations: verdicts, the best models that it keeps, and what a resumed run must find."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.distill.validation import BASE, Evaluation, Validation, check_continues, known_base
from raft_ray.config import Config, DomainMetric, settings
from raft_ray.errors import RaftError
from raft_ray.evaluate.answers import Answer
from raft_ray.evaluate.drift import Drift
from raft_ray.evaluate.validation import Question, ValidationSet
from raft_ray.json_files import append_lines
from raft_ray.runs.trained import Trained, read_trained

ASKED = ValidationSet(
    [Question("general", [1, 2], 4), Question("domain", [3], 4, answers=["yes"])], DomainMetric.contains, 10
)
OF = Trained(40, "rows", {})


def config(*keys: str) -> Config:
    return settings.load("raft", ["data.train=unused.jsonl", "eval.every=10", "learner.checkpoint_every=20", *keys])


def validation(config: Config, folder: Path) -> Validation:
    records: Any = SimpleNamespace(add_evaluation=lambda line: append_lines(folder / "evaluations.jsonl", [line]))
    made = Validation(config, folder, records, 40)
    made.ask(ASKED)
    made.begin()
    return made


def evaluated(made: Validation, step: int, text: str, drift: float) -> None:
    going = made.evaluation_of(step)
    assert isinstance(going, Evaluation)
    while (part := going.take()) is not None:
        going.answered(part, [Answer(text, [7], False, one.correct(text)) for one in part.questions])
    if step == 0:
        made.base_pairs()
    made.record(Drift(drift, drift, 1.0, 1, 1))


def keep_model(folder: str | None) -> None:
    assert folder is not None
    Path(folder).mkdir(parents=True)
    OF.write(Path(folder))


def test_the_best_model_stays_for_every_checkpoint_that_may_be_gone_on_from_and_becomes_the_runs(
    tmp_path: Path,
) -> None:
    made = validation(config("eval.keep=best", "learner.keep=1"), tmp_path)
    assert made.evaluation_of(5) is None
    evaluated(made, 0, "yes", 0.0)
    assert made.verdict(0).keeps is None
    for step, text, drift in ((10, "no", 0.1), (20, "no", 0.2), (30, "yes", 0.3)):
        evaluated(made, step, text, drift)
        if step != 20:
            keep_model(made.verdict(step).keeps)
            made.prune(step)
    # A run that goes on from the checkpoint of step 20 finds its best, that of step 10.
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"step-10", "step-30"}
    assert made.verdict(20).keeps is None
    evaluated(made, 40, "yes", 0.4)
    verdict = made.verdict(40)
    assert (verdict.keeps, verdict.stops, verdict.weights_of) == (None, False, 30)
    assert validation(config("eval.keep=best"), tmp_path).verdict(40) == verdict
    made.adopt(Trained(40, "rows", {}, weights_of=verdict.weights_of, why=verdict.why))
    found = read_trained(tmp_path / "model")
    assert found is not None
    assert (found.weights_of, found.why) == (
        30,
        "the most accurate: validation accuracy 100.0%, drift 0.3 nats per token",
    )
    assert not (tmp_path / "best").exists()


def test_patience_ends_training_and_says_why(tmp_path: Path) -> None:
    made = validation(config("eval.patience=2"), tmp_path)
    for step in (0, 10, 20, 30):
        evaluated(made, step, "yes", step / 100)
    assert [made.verdict(step).stops for step in (0, 10, 20, 30)] == [False, False, False, True]
    assert made.verdict(30).weights_of == 30
    assert made.verdict(30).why == "training stopped: no better evaluation since step 10 (eval.patience=2)"
    assert made.verdict(10).weights_of is None


def test_a_resumed_run_must_find_the_originals_answers_the_same_questions_and_its_best_model(tmp_path: Path) -> None:
    best = config("eval.keep=best")
    with pytest.raises(RaftError, match=r"evaluations\.jsonl or evaluations_base\.json lacks what the original model"):
        check_continues(best, tmp_path, ASKED, 20)
    made = validation(best, tmp_path)
    evaluated(made, 0, "no", 0.0)
    evaluated(made, 10, "no", 0.1)
    assert known_base(tmp_path) == [([1, 2], [7])]
    check_continues(config(), tmp_path, ASKED, 20)
    with pytest.raises(RaftError, match=r"best/step-10: the best model so far is not there"):
        check_continues(best, tmp_path, ASKED, 20)
    keep_model(made.verdict(10).keeps)
    check_continues(best, tmp_path, ASKED, 20)
    other = ValidationSet(ASKED.questions[:1], DomainMetric.contains, 10)
    with pytest.raises(RaftError, match=r"evaluations_base\.json: the questions asked while it trains are others"):
        check_continues(best, tmp_path, other, 20)
    # Without a checkpoint it begins anew.
    check_continues(best, tmp_path, other, 0)
    assert not any((tmp_path / name).exists() for name in ("evaluations.jsonl", BASE, "best"))
    assert json.dumps(known_base(tmp_path)) == "null"
