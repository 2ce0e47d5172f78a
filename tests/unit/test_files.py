"""A file that is written anew is there whole or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft_ray.files import write_whole


def test_the_old_text_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "eval.json"
    write_whole(path, "old λ")
    assert path.read_text(encoding="utf-8") == "old λ"

    def die(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, "new")
    assert path.read_text(encoding="utf-8") == "old λ"
    write_whole(path, "newer")
    assert path.read_text(encoding="utf-8") == "newer"
    assert [file.name for file in tmp_path.iterdir()] == ["eval.json"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half a pair: \ud83d")
    assert path.read_text() == "old"
    write_whole(path, "half a pair: \ud83d", errors="replace")
    assert path.read_text() == "half a pair: ?"
