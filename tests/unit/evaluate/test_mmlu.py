"""MMLU's questions, read from every form they come in, and their score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raft_ray.errors import ConfigError, DataError
from raft_ray.evaluate.mmlu import MmluQuestion, load_mmlu, scores

ROW = {"question": " How many? ", "choices": ["0", "1", "2", "3"], "answer": 2, "subject": "high_school_counting"}


def _write(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_prompt_is_lm_evals(tmp_path: Path) -> None:
    _write(tmp_path / "test.jsonl", ROW)
    _write(tmp_path / "dev.jsonl", {**ROW, "question": "First?"}, {**ROW, "question": "Second?", "answer": 0})
    mmlu = load_mmlu(str(tmp_path), None, 0, [0, 1])
    head = "The following are multiple choice questions (with answers) about high school counting.\n\n"
    options = "\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:"
    assert mmlu.prompt(mmlu.test[0], 0) == f"{head}How many?{options}"
    assert mmlu.prompt(mmlu.test[0], 1) == f"{head}First?{options} C\n\nHow many?{options}"
    assert mmlu.prompt(mmlu.test[0], 2) == f"{head}First?{options} C\n\nSecond?{options} A\n\nHow many?{options}"


@pytest.mark.parametrize(
    "answer",
    [
        {"answer": 1},
        {"answer": "B"},
        {"answer": "one"},
        # The text of another choice, or even its letter, beside a label that says more.
        {"answer": "A", "label": "B"},
    ],
)
def test_every_form_of_the_right_answer(tmp_path: Path, answer: dict[str, Any]) -> None:
    _write(tmp_path / "test.jsonl", {**ROW, "choices": ["A", "one", "two"], **answer})
    assert load_mmlu(str(tmp_path), None, 0, [0]).test[0].right == 1


def test_a_choice_that_looks_like_a_letter_is_that_choice(tmp_path: Path) -> None:
    _write(tmp_path / "test.jsonl", {**ROW, "choices": ["C", "A", "B"], "answer": "A"})
    assert load_mmlu(str(tmp_path), None, 0, [0]).test[0].right == 1


def test_parquet_files_in_a_folder_a_subject(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for subject in ("anatomy", "botany"):
        for split in ("test", "dev", "validation"):
            path = tmp_path / subject / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(exist_ok=True)
            rows = [{"question": split, "subject": "", "choices": ["a", "b"], "answer": 1}]
            pq.write_table(pa.Table.from_pylist(rows), path)
    mmlu = load_mmlu(str(tmp_path), None, 0, [1])
    assert [(one.subject, one.question, one.right) for one in mmlu.test] == [
        ("anatomy", "test", 1),
        ("botany", "test", 1),
    ]
    assert mmlu.examples["botany"] == [MmluQuestion("botany", "dev", ["a", "b"], 1)]


def test_a_subset_is_drawn_by_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    _write(tmp_path / "test.jsonl", *({**ROW, "question": f"{i:02}"} for i in range(50)))
    drawn = [one.question for one in load_mmlu(str(tmp_path), 10, 1, [0]).test]
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == 10
    assert drawn == [one.question for one in load_mmlu(str(tmp_path), 10, 1, [0]).test]
    assert drawn != [one.question for one in load_mmlu(str(tmp_path), 10, 2, [0]).test]


def test_a_hand_worked_score() -> None:
    questions = [MmluQuestion(subject, "?", ["a", "b"], 1) for subject in ("x", "x", "x", "y")]
    assert scores(questions, [1, 0, 0, 1]) == {
        "accuracy": 0.5,
        "n": 4,
        "correct": [True, False, False, True],
        "subjects": {"x": pytest.approx(1 / 3), "y": 1.0},
    }
    with pytest.raises(ValueError, match="0 answers to 0"):
        scores([], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, "answer 4 is neither an index, a letter nor one of the choices"),
        ({"answer": "E"}, "answer 'E' is neither"),
        ({"answer": None}, "answer is missing"),
        ({"choices": ["one"]}, "choices is no list of 2 to 10 texts"),
        ({"subject": None}, "subject is missing"),
        ({"question": "\ud800"}, "question has half of a surrogate pair"),
        ({"choices": ["a", "\udfff", "c"]}, "choice 2 has half of a surrogate pair"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _write(tmp_path / "test.jsonl", ROW, {**ROW, **change})
    with pytest.raises(DataError, match=rf"test\.jsonl, line 2: {message}"):
        load_mmlu(str(tmp_path), None, 0, [0])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.mmlu=.*absent: no such folder"):
        load_mmlu(str(tmp_path / "absent"), None, 0, [0])
    with pytest.raises(ConfigError, match=r"no questions in test\*\.jsonl"):
        load_mmlu(str(tmp_path), None, 0, [0])
    _write(tmp_path / "test.jsonl", ROW)
    with pytest.raises(ConfigError, match=r"eval\.mmlu_rows=2: .* has 1 questions"):
        load_mmlu(str(tmp_path), 2, 0, [0])
    with pytest.raises(ConfigError, match=r"eval\.mmlu_shots=\[0, 5\]: .* has 0 examples of high_school_counting"):
        load_mmlu(str(tmp_path), None, 0, [0, 5])
    (tmp_path / "test.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"test\.jsonl, line 1: not JSON"):
        load_mmlu(str(tmp_path), None, 0, [0])
