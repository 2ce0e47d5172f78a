"""The file of open questions: both of its forms, and every way in which a line is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft_ray.errors import DataError
from raft_ray.evaluate.open_questions import OpenQuestion, load_open_questions


def test_both_forms_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "open.jsonl"
    path.write_text(
        '{"prompt": "Name a fruit."}\n'
        "\n"
        '{"prompt": "And now?", "reference": "Pear.", "category": "things", "id": 7}\n'
        '{"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]}\n'
        '{"question_id": 101, "category": "math", "turns": ["1+1?", "Why?"], "reference": ["2", ""]}\n'
        '{"question_id": 102, "category": "math", "turns": ["1+2?", "Why?"], "reference": ["3"]}\n'
        '{"turns": ["Once."], "reference": ["Yes."]}\n'
    )
    assert load_open_questions(str(path)) == [
        OpenQuestion(("Name a fruit.",), (None,), None),
        OpenQuestion(("And now?",), ("Pear.",), "things"),
        OpenQuestion(("Write.", "Rewrite."), (None, None), "writing"),
        OpenQuestion(("1+1?", "Why?"), ("2", None), "math"),
        OpenQuestion(("1+2?", "Why?"), ("3", None), "math"),
        OpenQuestion(("Once.",), ("Yes.",), None),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"question": "?"}', "neither `prompt` nor `turns`"),
        ('{"prompt": "?", "turns": ["?"]}', "both `prompt` and `turns`"),
        ('{"prompt": " "}', "`prompt` must hold text"),
        ('{"prompt": 3}', "`prompt` must hold text"),
        ('{"prompt": "?", "reference": ["a"]}', "`reference` is no text"),
        ('{"prompt": "?", "category": 3}', "`category` is no text"),
        (r'{"prompt": "\ud800"}', "`prompt` has half of a surrogate pair"),
        (r'{"prompt": "?", "reference": "\ud800"}', "`reference` has half of a surrogate pair"),
        ('{"turns": []}', "list of 1 to 2 texts"),
        ('{"turns": ["a", "b", "c"]}', "list of 1 to 2 texts"),
        ('{"turns": "a"}', "list of 1 to 2 texts"),
        ('{"turns": ["a", ""]}', "`turns` must hold text"),
        ('{"turns": ["a"], "reference": "b"}', "at most one text per turn"),
        ('{"turns": ["a"], "reference": ["b", "c"]}', "at most one text per turn"),
        ('{"turns": ["a"], "reference": [1]}', "something that is no text"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "open.jsonl"
    path.write_text(f'{{"prompt": "Fine."}}\n{line}\n')
    with pytest.raises(DataError, match=rf"eval\.open={path}, line 2: .*{words}"):
        load_open_questions(str(path))


def test_a_file_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"eval\.open=none\.jsonl: no such file"):
        load_open_questions("none.jsonl")
    path = tmp_path / "open.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="no questions in it"):
        load_open_questions(str(path))
