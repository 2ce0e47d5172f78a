"""Open questions: what has no one right answer, in one turn or two, from a JSONL file of the user (`eval.open`).

| a line has | |
|---|---|
| `prompt`, perhaps `reference` and `category` | one turn |
| `turns`, a list of one or two texts; perhaps `reference`, a list of texts, and `category` | MT-Bench's own form |

Other fields (`question_id`) are passed over. Knows nothing about models or judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raft_ray.data.files import read_all
from raft_ray.data.messages import writable
from raft_ray.errors import DataError
from raft_ray.files import home
from raft_ray.json_files import Unusable

MOST_TURNS = 2


@dataclass(frozen=True)
class OpenQuestion:
    """What a model is asked, one turn after the other in the same chat."""

    turns: tuple[str, ...]
    """One or two."""
    references: tuple[str | None, ...]
    """As many: an answer that is right, where the file names one."""
    category: str | None = None


def load_open_questions(path: str) -> list[OpenQuestion]:
    """The questions of the file `path` (`eval.open`), in its order. Raises `DataError`, naming file and line, for a
    file that is unreadable or empty, or has a line that is no question."""
    where = f"eval.open={path}"
    file = home(path)
    if not file.is_file():
        raise DataError(f"{where}: no such file; name a JSONL file with `prompt` or `turns` fields")
    needs = 'a line is {"prompt": "..."}, perhaps with a `reference`, or {"turns": ["...", "..."]}'
    questions = list(read_all(file, where, _question, needs))
    if not questions:
        raise DataError(f"{where}: no questions in it; a line is an object with `prompt` or `turns`")
    return questions


def _question(record: dict[str, Any]) -> OpenQuestion:
    if ("prompt" in record) == ("turns" in record):
        both = "both `prompt` and `turns`" if "prompt" in record else "neither `prompt` nor `turns`"
        raise Unusable(f"it has {both}")
    category, reference = record.get("category"), record.get("reference")
    if not isinstance(category, str | None):
        raise Unusable("its `category` is no text")
    if "prompt" in record:
        if not isinstance(reference, str | None):
            raise Unusable("its `reference` is no text")
        key, turns, references = "prompt", [record["prompt"]], [reference]
    else:
        key, turns, references = "turns", record["turns"], [] if reference is None else reference
    if not isinstance(turns, list) or not 1 <= len(turns) <= MOST_TURNS:
        raise Unusable(f"its `turns` is no list of 1 to {MOST_TURNS} texts")
    if not isinstance(references, list) or len(references) > len(turns):
        raise Unusable("its `reference` is no list of at most one text per turn")
    if not all(isinstance(one, str | None) for one in references):
        raise Unusable("its `reference` holds something that is no text")
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise Unusable(f"its `{key}` must hold text")
    for name, texts in ((key, turns), ("reference", references), ("category", [category])):
        for text in texts:
            writable(text or "", f"its `{name}`")
    # A blank reference says nothing.
    told = [one if one and one.strip() else None for one in references] + [None] * (len(turns) - len(references))
    return OpenQuestion(tuple(turns), tuple(told), category)
