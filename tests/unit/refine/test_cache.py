"""The cache of generations: what decides a text is in its key, and a death loses nothing that was answered."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raft_ray.errors import RaftError
from raft_ray.refine.cache import CachedGenerate, CompletionStore
from raft_ray.refine.generation import Completion, Request


class Model:
    """Writes what it was asked and how often it has been called; keeps its calls."""

    def __init__(self, identity: str = "m", failing: Sequence[str] = ()) -> None:
        self.identity = identity
        self.failing = failing
        self.calls: list[tuple[list[str], dict[str, Any]]] = []

    def __call__(self, requests: Sequence[Request], **options: Any) -> list[Completion]:
        self.calls.append(([request.chat[-1]["content"] for request in requests], options))
        return [self._one(request.chat[-1]["content"]) for request in requests]

    def _one(self, text: str) -> Completion:
        if text in self.failing:
            return Completion("", failed="503")
        return Completion(f"{text} {len(self.calls)}", input_tokens=3, output_tokens=2)


def ask(text: str, sample_index: int = 0) -> Request:
    return Request([{"role": "user", "content": text}], sample_index)


OPTIONS: dict[str, Any] = {"temperature": 0.5, "max_new_tokens": 8, "seed": 1}


def texts(generations: list[Completion]) -> list[str]:
    return [one.text for one in generations]


@pytest.fixture
def store(tmp_path: Path) -> CompletionStore:
    return CompletionStore(tmp_path / "cache.sqlite")


def cached(model: Model, store: CompletionStore, scope: str = "0") -> CachedGenerate:
    return CachedGenerate(model, store, "rewriter m", scope)


def test_a_text_is_generated_once_and_the_missing_ones_of_a_call_together(store: CompletionStore) -> None:
    model = Model()
    generate = cached(model, store)
    assert texts(generate([ask("a"), ask("b")], **OPTIONS)) == ["a 1", "b 1"]
    assert texts(generate([ask("c"), ask("b"), ask("d"), ask("a")], **OPTIONS)) == ["c 2", "b 1", "d 2", "a 1"]
    assert [call for call, _ in model.calls] == [["a", "b"], ["c", "d"]]
    assert store.counts() == {
        ("rewriter m", "hits"): 2.0,
        ("rewriter m", "misses"): 4.0,
        ("rewriter m", "input_tokens"): 12.0,
        ("rewriter m", "output_tokens"): 8.0,
        ("rewriter m", "seconds"): pytest.approx(0.0, abs=5.0),
    }


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.6},
        {"max_new_tokens": 9},
        {"seed": 2},
        {"schema": {"type": "object"}},
        {"sample_index": 1},
        {"scope": "64"},
        {"identity": "n"},
        {"text": "b"},
    ],
)
def test_whatever_decides_a_text_tells_it_apart(store: CompletionStore, other: dict[str, Any]) -> None:
    cached(Model(), store)([ask("a")], **OPTIONS)
    model = Model(identity=other.pop("identity", "m"))
    asked = ask(other.pop("text", "a"), other.pop("sample_index", 0))
    cached(model, store, other.pop("scope", "0"))([asked], **(OPTIONS | other))
    assert len(model.calls) == 1


def test_the_seed_of_a_call_comes_from_what_is_asked_alone(tmp_path: Path) -> None:
    def seeds(name: str, *calls: list[Request], seed: int = 1) -> list[int]:
        model = Model()
        generate = cached(model, CompletionStore(tmp_path / name))
        for requests in calls:
            generate(requests, **(OPTIONS | {"seed": seed}))
        return [options["seed"] for _, options in model.calls]

    first, second = seeds("one", [ask("a"), ask("b")], [ask("a", 1)])
    assert seeds("two", [ask("a", 1)], [ask("a"), ask("b")]) == [second, first]
    others = [*seeds("three", [ask("a")]), *seeds("four", [ask("b"), ask("a")]), *seeds("five", [ask("a")], seed=2)]
    assert len({first, second, *others}) == 5
    assert all(0 <= seed < 2**31 for seed in [first, second, *others])


def test_equal_asks_of_a_call_are_one(store: CompletionStore) -> None:
    model = Model()
    assert texts(cached(model, store)([ask("a"), ask("b"), ask("a")], **OPTIONS)) == ["a 1", "b 1", "a 1"]
    assert model.calls[0][0] == ["a", "b"]


def test_what_failed_is_not_kept(store: CompletionStore) -> None:
    model = Model(failing=["b"])
    generate = cached(model, store)
    assert [one.failed for one in generate([ask("a"), ask("b")], **OPTIONS)] == [None, "503"]
    model.failing = []
    assert texts(generate([ask("a"), ask("b")], **OPTIONS)) == ["a 1", "b 2"]
    assert store.counts()["rewriter m", "failed"] == 1


def test_all_of_a_generation_comes_back_also_from_the_file(tmp_path: Path) -> None:
    odd = Completion("ž\ud800\x00\n", truncated=True, too_long=True, input_tokens=7, output_tokens=9)
    first = CompletionStore(tmp_path / "cache.sqlite")
    first.put({bytes([i]) * 32: odd for i in range(256)}, {("a", "b"): 1.5})
    first.put({}, {("a", "b"): 1.0, ("a", "c"): 2.0})
    first.close()
    second = CompletionStore(tmp_path / "cache.sqlite")
    keys = [bytes([i % 256]) * 32 for i in range(1200)]
    assert second.get(keys) == dict.fromkeys(keys, odd)
    assert second.get([b"x" * 31]) == {}
    assert second.counts() == {("a", "b"): 2.5, ("a", "c"): 2.0}


def test_a_sigkill_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    program = f"""
from pathlib import Path
from raft_ray.refine.cache import CompletionStore
from raft_ray.refine.generation import Completion
store = CompletionStore(Path({str(path)!r}))
for number in range(1000000):
    store.put({{b"%d a" % number: Completion("a"), b"%d b" % number: Completion("b")}}, {{("x", "calls"): 1}})
    print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = -1
    for line in process.stdout:
        said = int(line)
        if said >= 20:
            break
    process.send_signal(signal.SIGKILL)
    said = max(
        [said, *(int(line) for line in process.stdout.read().splitlines() if line.endswith(tuple("0123456789")))]
    )
    process.wait()
    process.stdout.close()
    store = CompletionStore(path)
    calls = int(store.counts()["x", "calls"])
    assert calls > said
    assert len(store.get([b"%d %s" % (n, end) for n in range(calls + 5) for end in (b"a", b"b")])) == 2 * calls


def test_a_closed_store_stands_in_its_one_file(tmp_path: Path) -> None:
    store = CompletionStore(tmp_path / "cache.sqlite")
    store.put({b"key": Completion("text")}, {})
    store.close()

    assert [path.name for path in tmp_path.iterdir()] == ["cache.sqlite"]
    assert CompletionStore(tmp_path / "cache.sqlite").get([b"key"]) == {b"key": Completion("text")}


@pytest.mark.parametrize("damage", ["head", "middle", "text", "keys"])
def test_a_damaged_store_is_named_with_the_fix(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "cache.sqlite"
    store = CompletionStore(path)
    store.put({bytes([n]) * 32: Completion("text " * 200) for n in range(100)}, {})
    if damage in ("text", "keys"):
        with store._base:
            broken = "{" if damage == "text" else '{"other": 1}'
            store._base.execute("UPDATE generations SET generation = ?", (broken,))
    store.close()
    content = bytearray(path.read_bytes())
    if damage == "head":
        content[:16] = b"no SQLite at all"
    elif damage == "middle":
        content[4096:-4096] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)

    with pytest.raises(RaftError, match=r"cache\.sqlite: cannot be read or written \(.*\); .* or delete it"):
        CompletionStore(path).get([bytes([n]) * 32 for n in range(100)])
