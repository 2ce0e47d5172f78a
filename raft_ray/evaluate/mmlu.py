"""MMLU: multiple-choice questions about 57 subjects (arXiv 2009.03300), asked as lm-eval asks them.

The project ships no questions: `eval.mmlu` names a folder. In it, or in folders of it, lie JSONL or Parquet files
whose names begin with `test` (the questions) and `dev` (the examples of a few-shot prompt), as the data set has them
that lm-eval reads (`question`, `choices`, `answer` as an index, `subject`, or one folder a subject), or with `answer`
as a letter or as the text of the right choice, beside which a `label` with its letter may stand.

Prompts and scores are lm-eval's (`tests/comparison/test_lm_eval.py`), not its task: that reads files with `datasets`,
takes `answer` as an index alone and names no line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from raft_ray.data.files import read_all
from raft_ray.data.messages import writable
from raft_ray.errors import ConfigError
from raft_ray.evaluate.subset import subset
from raft_ray.files import home
from raft_ray.json_files import Unusable

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class MmluQuestion:
    """One question."""

    subject: str
    question: str
    choices: list[str]
    right: int
    """Index of the right choice."""


@dataclass(frozen=True)
class Mmlu:
    """A test set and its examples."""

    test: list[MmluQuestion]
    examples: dict[str, list[MmluQuestion]]
    """By subject, in the files' order."""

    def prompt(self, question: MmluQuestion, shots: int) -> str:
        """What a model reads before the letter: lm-eval's `mmlu`, with the subject's first `shots` examples."""
        subject = question.subject.replace("_", " ")
        parts = [f"The following are multiple choice questions (with answers) about {subject}.\n\n"]
        parts += [f"{_asked(one)} {LETTERS[one.right]}\n\n" for one in self.examples.get(question.subject, [])[:shots]]
        return "".join([*parts, _asked(question)])


def load_mmlu(folder: str, rows: int | None, seed: int, shots: Sequence[int]) -> Mmlu:
    """The questions under `folder`: all, or a subset of `rows` drawn with `seed`, in the files' order. Raises
    `ConfigError` where there are fewer files, questions or examples than the keys ask for, `DataError`, naming file and
    line, for a row that is no question."""
    root = home(folder)
    where = f"eval.mmlu={folder}"
    if not root.is_dir():
        what = "a file, not a folder" if root.exists() else "no such folder"
        raise ConfigError(f"{where}: {what}; name one with test*.jsonl or test*.parquet files")
    test, dev = (
        [
            question
            for file in sorted(path for kind in ("jsonl", "parquet") for path in root.rglob(f"{split}*.{kind}"))
            for question in _questions(file, root)
        ]
        for split in ("test", "dev")
    )
    if not test:
        raise ConfigError(f"{where}: no questions in test*.jsonl or test*.parquet files there")
    test = subset(test, rows, seed, f"eval.mmlu_rows={rows}: {folder} has {len(test)} questions")
    examples: defaultdict[str, list[MmluQuestion]] = defaultdict(list)
    for question in dev:
        examples[question.subject].append(question)
    for subject in dict.fromkeys(question.subject for question in test):
        if len(examples[subject]) < max(shots, default=0):
            raise ConfigError(
                f"eval.mmlu_shots={list(shots)}: {folder} has {len(examples[subject])} examples of {subject} "
                "(dev*.jsonl or dev*.parquet); lower it"
            )
    return Mmlu(test, dict(examples))


def scores(questions: Sequence[MmluQuestion], chosen: Sequence[int]) -> dict[str, Any]:
    """Accuracy over all questions, as lm-eval averages its subjects (by their size), and of each subject. Returns
    `{"accuracy", "n", "correct": [bool], "subjects": {name: accuracy}}`. Raises `ValueError` where the lengths differ
    or nothing was asked."""
    if len(questions) != len(chosen) or not questions:
        raise ValueError(f"{len(chosen)} answers to {len(questions)} MMLU questions")
    correct = [question.right == choice for question, choice in zip(questions, chosen, strict=True)]
    subjects: defaultdict[str, list[bool]] = defaultdict(list)
    for question, right in zip(questions, correct, strict=True):
        subjects[question.subject].append(right)
    return {
        "accuracy": fmean(correct),
        "n": len(correct),
        "correct": correct,
        "subjects": {name: fmean(rights) for name, rights in sorted(subjects.items())},
    }


def lettered(question: str, choices: Sequence[str]) -> str:
    """The question with its choices, a line each, behind letters."""
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))])


def _asked(question: MmluQuestion) -> str:
    return f"{lettered(question.question.strip(), question.choices)}\nAnswer:"


def _questions(file: Path, root: Path) -> Iterator[MmluQuestion]:
    needs = "a row needs question, choices (2 to 10 texts), answer, and subject unless its folder names it"
    subject = file.parent.name if file.parent != root else None
    return read_all(file, f"eval.mmlu: {file}", partial(_question, folder=subject), needs)


def _question(record: dict[str, Any], folder: str | None) -> MmluQuestion:
    for key in ("question", "choices", "answer"):
        if record.get(key) is None:
            raise Unusable(f"{key} is missing")
    choices = record["choices"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise Unusable("choices is no list of 2 to 10 texts")
    subject = record.get("subject") or folder
    if subject is None:
        raise Unusable("subject is missing")
    return MmluQuestion(
        writable(str(subject), "subject"),
        writable(str(record["question"]), "question"),
        [writable(str(choice), f"choice {number}") for number, choice in enumerate(choices, start=1)],
        _right(record),
    )


def _right(record: dict[str, Any]) -> int:
    """The index of the right choice."""
    label, answer, choices = record.get("label"), record["answer"], record["choices"]
    if label is None and isinstance(answer, int) and not isinstance(answer, bool):
        place = answer
    elif label is None and answer in choices:
        place = choices.index(answer)
    else:
        letter = answer if label is None else label
        place = LETTERS.find(letter) if isinstance(letter, str) and len(letter) == 1 else -1
    if not 0 <= place < len(choices):
        raise Unusable(f"answer {answer!r} is neither an index, a letter nor one of the choices")
    return place
