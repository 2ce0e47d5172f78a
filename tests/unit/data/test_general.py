"""The general prompts: those that are shipped, and a file in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raft_ray.data.general import general_prompts
from raft_ray.errors import DataError


def write_jsonl(path: Path, *records: Any) -> str:
    """Records as JSON lines; bytes go into the file as they are."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def test_sixty_different_general_prompts_are_shipped() -> None:
    prompts = general_prompts()
    assert len(prompts) == len(set(prompts)) == 60
    assert all(prompt == prompt.strip() for prompt in prompts)


@pytest.mark.parametrize("name", ["own.jsonl", "own.txt"])
def test_a_file_of_ones_own_takes_the_place_of_the_general_prompts(name: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / name, {"prompt": "One?", "id": 1}, b"", {"prompt": "Two?"})
    assert general_prompts(source) == ["One?", "Two?"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "no prompts in it"),
        (b'{"prompt": "a"}\nnope\n', "line 2: not JSON"),
        (b"\xff\n", "line 1: not UTF-8"),
        (b'{"question": "a"}\n', "line 1: its `prompt` is not text"),
        (b'{"prompt": " "}\n', "line 1: its `prompt` is empty"),
        (b'{"prompt": "a"}\n["a"]\n', "line 2: not a JSON object"),
        (b'["a"]\n', "row 1: not a JSON object"),
    ],
)
def test_unusable_general_prompts_are_named_with_the_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "own.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        general_prompts(str(path))
    assert str(caught.value).startswith(f"eval.general={path}")
    assert message in str(caught.value)
