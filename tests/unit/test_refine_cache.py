"""Nothing is generated twice, and everything that a text depends on is part of its key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raft_ray.refine.cache import Cache, CachedGenerate
from raft_ray.refine.generation import Ask, Generation


class Writer:
    """Writes what it was asked and how often it has written; counts."""

    def __init__(self, identity: str = "m", fails: Sequence[str] = ()) -> None:
        self.identity = identity
        self.fails = fails
        self.asked: list[str] = []

    def __call__(self, asks: Sequence[Ask], **options: Any) -> list[Generation]:
        made = []
        for ask in asks:
            text = ask.chat[-1]["content"]
            self.asked.append(text)
            failed = "down" if text in self.fails else None
            made.append(Generation(f"{text}!", failed=failed, input_tokens=2, output_tokens=3))
        return made


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(cache: Cache, writer: Writer, *texts: str, run_seed: int = 0, draw: int = 0, **options: Any) -> list[str]:
    generate = CachedGenerate(writer, run_seed, cache.find, cache.keep)
    common: dict[str, Any] = {"temperature": 0.3, "max_new_tokens": 8, "seed": 1} | options
    return [generation.text for generation in generate([Ask(chat(text), draw) for text in texts], **common)]


def test_what_was_written_before_is_not_asked_for_again_also_by_another_process(tmp_path: Path) -> None:
    writer = Writer()
    assert ask(Cache(tmp_path / "kept"), writer, "a", "b", "a") == ["a!", "b!", "a!"]
    assert writer.asked == ["a", "b"]
    assert ask(Cache(tmp_path / "kept"), writer, "b", "c", seed=2) == ["b!", "c!"]
    assert writer.asked == ["a", "b", "c"]


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.4}, {"max_new_tokens": 9}, {"run_seed": 1}, {"draw": 1}, {"schema": {"type": "object"}}],
)
def test_what_a_text_depends_on_makes_it_another(tmp_path: Path, changes: dict[str, Any]) -> None:
    cache, writer = Cache(tmp_path / "kept"), Writer()
    ask(cache, writer, "a")
    ask(cache, writer, "a", **changes)
    assert writer.asked == ["a", "a"]


def test_another_model_writes_anew(tmp_path: Path) -> None:
    cache, first, second = Cache(tmp_path / "kept"), Writer("m"), Writer("n")
    ask(cache, first, "a")
    ask(cache, second, "a")
    assert (first.asked, second.asked) == (["a"], ["a"])


def test_what_failed_is_asked_for_again(tmp_path: Path) -> None:
    cache, writer = Cache(tmp_path / "kept"), Writer(fails=["b"])
    ask(cache, writer, "a", "b")
    writer.fails = ()
    assert ask(cache, writer, "a", "b") == ["a!", "b!"]
    assert writer.asked == ["a", "b", "b"]


def test_more_keys_than_one_query_takes(tmp_path: Path) -> None:
    cache, writer = Cache(tmp_path / "kept"), Writer()
    texts = [str(number) for number in range(1300)]
    assert ask(cache, writer, *texts) == ask(cache, writer, *texts)
    assert len(writer.asked) == 1300


def test_a_process_that_is_killed_leaves_what_it_had_kept(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from raft_ray.refine.cache import Cache;"
        "from raft_ray.refine.generation import Generation;"
        f"cache = Cache(Path({str(tmp_path / 'kept')!r}));"
        "cache.keep({'k': Generation('text', truncated=True)});"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert Cache(tmp_path / "kept").find(["k", "l"]) == {"k": Generation("text", truncated=True)}
