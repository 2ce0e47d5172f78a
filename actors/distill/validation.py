"""Evaluations while a method trains, as the pipeline makes them.

```
 publish(v) ─> Evaluation of version v ─parts─> rollout actors, before any rollout of step v ─> answers ──┐
 learner:      DriftMeter on the original's own answers ── evaluated(v, drift) waits for the answers ─────┴─> line
               <── Verdict: keep these weights, end here ──────────────────────────────────────────────────────┘
```

Who waits for whom: no rollout is dispatched while parts are open, and the learners publish nothing before the verdict.
So all answers are of version v, and rollouts are what they would be without. A part whose actor dies is asked again.

Version 0, the original model, comes first: its answers to general prompts, on which drift is measured, lie in
`evaluations_base.json`. What a checkpoint of step v goes on from is on record before that is written.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.distill.export import move_model
from raft_ray.config import Config, Keep
from raft_ray.errors import RaftError
from raft_ray.evaluate.answers import Answer
from raft_ray.evaluate.selection import best, kept_steps, reason, stops
from raft_ray.evaluate.validation import Question, ValidationSet, evaluation_line
from raft_ray.files import write_whole, writing
from raft_ray.json_files import read_object
from raft_ray.runs.records import RunRecords
from raft_ray.runs.tracked import EVALUATIONS, read_evaluations
from raft_ray.runs.trained import Trained, read_trained

if TYPE_CHECKING:
    from raft_ray.evaluate.drift import Drift
    from raft_ray.models.head import Pair

BASE = "evaluations_base.json"
BEST = "best"
"""Folder of the best models so far, `step-N` each, until the training ends."""


@dataclass(frozen=True)
class Part:
    """The unit of work of a rollout actor in an evaluation: some questions to one version of the weights."""

    step: int
    """The version: the weights after so many steps."""
    indices: list[int]
    """Of the questions, in the validation set."""
    questions: list[Question]
    context: int

    @property
    def limits(self) -> list[int]:
        """Tokens that each answer may have."""
        return [min(each.limit, self.context - len(each.prompt)) for each in self.questions]


@dataclass(frozen=True)
class Verdict:
    """What an evaluation decides; the same for all ranks."""

    keeps: str | None
    """The folder for these weights, where they are the best so far."""
    stops: bool
    weights_of: int | None
    """The step whose weights become the model, as it stands; none for the last one's without `eval.patience`."""
    why: str | None


class Evaluation:
    """That of one version, while it goes on."""

    def __init__(self, version: int, asked: ValidationSet) -> None:
        self.version, self.begun = version, time.perf_counter()
        self.answers: dict[int, Answer] = {}
        self._open = deque(
            Part(version, part, [asked.questions[i] for i in part], asked.context) for part in asked.parts()
        )
        self.total = sum(len(part.indices) for part in self._open)

    def take(self) -> Part | None:
        """What to ask next."""
        return self._open.popleft() if self._open else None

    def returned(self, part: Part) -> None:
        """Its actor went away."""
        self._open.appendleft(part)

    def answered(self, part: Part, answers: list[Answer]) -> None:
        """A part has come back."""
        self.answers |= zip(part.indices, answers, strict=True)

    @property
    def complete(self) -> bool:
        """Everything is answered."""
        return len(self.answers) == self.total


class Validation:
    """A run's evaluations: which versions are due, their records, and what follows from them. `steps`: of the run."""

    def __init__(self, config: Config, run_dir: Path, records: RunRecords, steps: int) -> None:
        self._config, self._asked, self._steps = config, config.eval, steps
        self._run_dir, self._records = run_dir, records
        self._set: ValidationSet | None = None
        self.lines: dict[int, dict[str, Any]] = {}
        """By step."""
        self.going: Evaluation | None = None

    def ask(self, questions: ValidationSet) -> None:
        """These, of every version that is due."""
        self._set = questions

    def begin(self) -> None:
        """Go on from what is on record."""
        self.going = None
        self.lines = {line["step"]: line for line in read_evaluations(self._run_dir)}

    def evaluation_of(self, version: int) -> Evaluation | None:
        """A new evaluation of `version`; none where it is not due, or on record."""
        self.going = None
        if self._set is not None and self._config.evaluates(version, self._steps) and version not in self.lines:
            self.going = Evaluation(version, self._set)
        return self.going

    def base_pairs(self) -> list[Pair]:
        """The original model's answers to general prompts, from its evaluation or from the file."""
        assert self._set is not None
        if self.going is not None and self.going.version == 0:
            pairs = self._set.general_pairs(self.going.answers)
            if not pairs:
                raise RaftError("eval.general: the original model answers none of its prompts; name others")
            write_whole(self._run_dir / BASE, json.dumps({"questions": self._set.digest(), "answers": pairs}))
            return pairs
        return known_base(self._run_dir) or []

    def record(self, drift: Drift) -> None:
        """Write the line of the evaluation that is complete."""
        assert self._set is not None
        assert self.going is not None
        going, self.going = self.going, None
        seconds = time.perf_counter() - going.begun
        line = evaluation_line(
            going.version, self._set.measure(going.answers), drift, self.lines.get(0), seconds=seconds
        )
        self._records.add_evaluation(line)
        self.lines[going.version] = line

    def verdict(self, version: int) -> Verdict:
        """What follows from the evaluations up to `version`."""
        lines = [line for step, line in self.lines.items() if step <= version]
        chosen = best(lines, self._asked.max_drift)
        ends = version < self._steps and stops(lines, self._asked)
        if self._asked.keep is Keep.best and chosen is not None:
            keeps = _folder(self._run_dir, version) if chosen["step"] == version else None
            return Verdict(keeps, ends, chosen["step"], reason(chosen, self._asked.max_drift))
        if ends and chosen is not None:
            since = f"no better evaluation since step {chosen['step']} (eval.patience={self._asked.patience})"
            return Verdict(None, True, version, f"training stopped: {since}")
        return Verdict(None, ends, None, None)

    def prune(self, version: int) -> None:
        """Delete the models that no checkpoint kept would go on with; after the one of `version` is there."""
        every, keep = self._config.learner.checkpoint_every or version, self._config.learner.keep
        checkpoints = [*range(every, version, every)][-keep:]
        needed = kept_steps(self.lines.values(), self._asked, [*checkpoints, version])
        for folder in (self._run_dir / BEST).glob("step-*"):
            if folder.name.removesuffix("_adapter") not in {f"step-{step}" for step in needed}:
                shutil.rmtree(folder, ignore_errors=True)

    def adopt(self, trained: Trained) -> None:
        """Make the best model the run's `model/`. Raises `RaftError` where it is gone."""
        target = self._run_dir / "model"
        assert trained.weights_of is not None
        where = best_model(self._run_dir, trained.weights_of)
        with writing(target):
            trained.write(where)
            if where != target:
                move_model(where, target)
            shutil.rmtree(self._run_dir / BEST, ignore_errors=True)


def check_continues(config: Config, run_dir: Path, questions: ValidationSet, step: int) -> None:
    """Refuse to go on from `step` with other questions than the run began with, or without what it has kept; at step 0
    begin anew. Raises `RaftError`."""
    base = run_dir / BASE
    if step == 0:
        for path in (base, run_dir / EVALUATIONS):
            path.unlink(missing_ok=True)
        shutil.rmtree(run_dir / BEST, ignore_errors=True)
        return
    lines = [line for line in read_evaluations(run_dir) if line["step"] <= step]
    if not base.exists() or 0 not in {line["step"] for line in lines}:
        raise RaftError(
            f"{run_dir}: {EVALUATIONS} or {base.name} lacks what the original model answered; put them back, or start "
            "anew with another --run-dir"
        )
    if read_object(base).get("questions") != questions.digest():
        raise RaftError(
            f"{base}: the questions asked while it trains are others than at step 0 (rows of eval.*, their limits, the "
            "model's template, or the context); resume with the old ones, or start anew with another --run-dir"
        )
    if config.eval.keep is Keep.best and (chosen := best(lines, config.eval.max_drift)):
        best_model(run_dir, chosen["step"])


def known_base(run_dir: Path) -> list[Pair] | None:
    """The original model's answers to general prompts, as `evaluations_base.json` has them; none before."""
    if not (run_dir / BASE).exists():
        return None
    return [(prompt, response) for prompt, response in read_object(run_dir / BASE)["answers"]]


def best_model(run_dir: Path, step: int) -> Path:
    """The folder with the weights of `step`, of which an evaluation says that they are the best."""
    folder = Path(_folder(run_dir, step))
    if folder.exists():
        return folder
    model = run_dir / "model"
    if (found := read_trained(model)) is not None and (found.weights_of or found.steps) == step:
        return model
    raise RaftError(
        f"{folder}: the best model so far is not there; put it back, or go on with eval.keep=last and "
        "run.allow_changes=true"
    )


def evaluation_status(lines: Mapping[int, dict[str, Any]], going: Evaluation | None) -> dict[str, Any]:
    """What `raft-ray status` and the progress bar show of evaluations."""
    return {
        "evaluation": lines[max(lines)] if lines else None,
        "evaluating": {"step": going.version, "done": len(going.answers), "total": going.total} if going else None,
    }


def _folder(run_dir: Path, step: int) -> str:
    return str(run_dir / BEST / f"step-{step}")
