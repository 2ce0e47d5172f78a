"""The JSON files of a run: torn ends are dropped, anything else that is broken is named by file, line and fix."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raft_ray.distill.order import RowOrder
from raft_ray.errors import RaftError
from raft_ray.json_files import append_lines, read_json, read_lines
from raft_ray.report.files import read_run
from raft_ray.runs import trained
from raft_ray.runs.records import RunRecords, missing_steps, steps_done, write_event
from raft_ray.runs.spans import read_spans

WHOLE = '{"step": 0, "epoch": 0, "row": 3, "text": "λ"}\n'
TORN = ['{"step": 1, "ro', '{"step": 1, "text": "\u03bb'[:-1] + "\udcce", "{"]

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "quarantined": ("quarantined.jsonl", lambda run: RunRecords(run, RowOrder(4, 2, 1, 0)).quarantined()),
    "resumed metrics": ("metrics.jsonl", lambda run: RunRecords(run, RowOrder(4, 2, 1, 0)).rewind(1)),
    "resumed trace": ("trace.jsonl", lambda run: RunRecords(run, RowOrder(4, 2, 1, 0)).rewind(1)),
    "resumed spans": ("spans.jsonl", lambda run: RunRecords(run, RowOrder(4, 2, 1, 0)).rewind(1)),
    "spans": ("spans.jsonl", lambda run: read_spans(run / "spans.jsonl")),
    "steps": ("metrics.jsonl", steps_done),
    "missing steps": ("trace.jsonl", lambda run: missing_steps(run, 1)),
    "report's metrics": ("metrics.jsonl", read_run),
    "report's trace": ("trace.jsonl", read_run),
    "report's evaluation": ("eval.json", read_run),
    "a model's origin": ("model/raft_ray.json", lambda run: trained.read_trained(run / "model")),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", [b"{no json\n{}\n", b"\xff\xfe\n{}\n", b"[1]\n{}\n", b'{"step": "x"}\n{}\n'])
def test_every_reader_names_file_and_fix(tmp_path: Path, reader: str, content: bytes) -> None:
    name, read = READERS[reader]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)

    with pytest.raises(RaftError) as caught:
        read(tmp_path)

    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("torn", TORN)
def test_a_last_line_that_was_left_unfinished_is_dropped_and_written_over(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes((WHOLE + torn).encode("utf-8", "surrogateescape"))
    assert [line["step"] for _, line in read_lines(path, ["step"])] == [0]

    write_event(tmp_path, "lost", "rollout-0", "node", "text")

    assert [line.get("what") for _, line in read_lines(path)] == [None, "lost"]
    assert path.read_text().startswith(WHOLE)


def test_a_last_line_that_only_lacks_its_end_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 0}')
    append_lines(path, [{"step": 1}])
    path.write_text(path.read_text().rstrip("\n"))

    assert [(where, line["step"]) for where, line in read_lines(path)] == [(f"{path} line 1", 0), (f"{path} line 2", 1)]


def test_a_whole_last_line_that_is_no_object_is_named_and_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(WHOLE + "[1]")
    with pytest.raises(RaftError, match=r"events\.jsonl line 2: not a JSON object; repair or delete it"):
        read_lines(path)


def test_a_torn_line_is_no_step_and_a_deleted_record_is_found(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 2}\n{"st')
    assert steps_done(tmp_path) == 2
    assert missing_steps(tmp_path, 3) == {"metrics.jsonl": 1, "trace.jsonl": 3}
    (tmp_path / "metrics.jsonl").unlink()
    assert steps_done(tmp_path) == 0
    assert missing_steps(tmp_path, 0) == {}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "eval.json").mkdir()
    with pytest.raises(RaftError, match=r"eval\.json: cannot be read \(Is a directory\); remove it"):
        read_json(tmp_path / "eval.json", "remove it")


WRITERS = """
from pathlib import Path
import sys
from raft_ray.errors import RaftError
from raft_ray.files import write_whole
from raft_ray.json_files import append_lines
from raft_ray.refine.cache import CompletionStore
from raft_ray.refine.generation import Completion
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = Path(sys.argv[1])
cache = CompletionStore(run / "refine_cache.sqlite")
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
big = "x" * 200_000
for work in (
    lambda: write_whole(run / "config.yaml", big),
    lambda: append_lines(run / "trace.jsonl", [{"step": big}]),
    lambda: cache.put({b"key": Completion(big)}, {}),
):
    try:
        work()
    except RaftError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WRITERS, str(tmp_path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        str(tmp_path / name) for name in ("config.yaml", "trace.jsonl", "refine_cache.sqlite")
    ]
    assert all("cannot be" in line and "free space there" in line for line in lines)
