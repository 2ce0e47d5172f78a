"""What models have written in an evaluation that goes on: `answers/MODEL/KIND.jsonl` of the run folder.

A line is an answer under `call`, the hash of everything that decides the call of the engine which wrote it. So an
evaluation that was killed takes whole calls as they are, and no answer of another model, question or setting.
Knows nothing about models or questions.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from raft_ray.errors import RaftError
from raft_ray.files import writing
from raft_ray.json_files import append_lines, read_lines

FOLDER = "answers"


class Place(NamedTuple):
    """Whose answer it is, of those to a model's questions."""

    kind: str
    question: int
    turn: int
    sample: int


class Written(NamedTuple):
    """An answer as the engine wrote it."""

    token_ids: list[int]
    truncated: bool


Calls = dict[str, dict[Place, Written]]
"""By call, its answers."""


class AnswerStore(Protocol):
    """Where answers are kept; `KeptAnswers`, or an actor that has them."""

    def get(self, model: str) -> Calls:
        """All that is kept of a model."""
        ...

    def put(self, model: str, call: str, answers: Mapping[Place, Written]) -> None:
        """Keep the answers of a call. Returns when they are on disk."""
        ...


class KeptAnswers:
    """The files of a run folder. Both methods raise `RaftError`, which names file and line, for what cannot be read or
    written."""

    def __init__(self, run_dir: str) -> None:
        self._folder = Path(run_dir) / FOLDER

    def get(self, model: str) -> Calls:
        """A call that was cut short in its writing lacks answers."""
        found: defaultdict[str, dict[Place, Written]] = defaultdict(dict)
        for path in sorted((self._folder / model).glob("*.jsonl")):
            for where, line in read_lines(path, ["question", "turn", "sample"]):
                ids, truncated = line.get("token_ids"), line.get("truncated")
                if not isinstance(ids, list) or not all(type(id) is int for id in ids) or type(truncated) is not bool:
                    raise RaftError(f"{where}: no answer with `token_ids` and `truncated`; repair or delete it")
                place = Place(path.stem, line["question"], line["turn"], line["sample"])
                found[str(line.get("call"))][place] = Written(ids, truncated)
        return dict(found)

    def put(self, model: str, call: str, answers: Mapping[Place, Written]) -> None:
        folder = self._folder / model
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for kind in {place.kind for place in answers}:
            lines = (
                {"call": call, **place._asdict(), **one._asdict()}
                for place, one in answers.items()
                if place.kind == kind
            )
            append_lines(folder / f"{kind}.jsonl", lines)


def forget(run_dir: Path) -> None:
    """Remove what is kept, once `eval.json` says what follows from it."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
