"""Which checkpoints count after a process died at the wrong moment; no Ray started."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.train import CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext

from actors.distill.seal import Part, make_key, read_key, seal
from actors.distill.storage import Storage, locate
from raft_ray.config import settings
from raft_ray.errors import RaftError

KEY = bytes(32)


def part(folder: Path, step: int, rank: int = 0, ranks: int = 1) -> None:
    """What a rank uploads."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    (folder / "state" / f"shard-{rank}").write_text(f"weights of step {step}")
    own = folder.parent / "own"
    (own / "state").mkdir(parents=True)
    (folder / "state" / f"shard-{rank}").rename(own / "state" / f"shard-{rank}")
    seal(own, KEY, step=step, rank=rank, ranks=ranks)
    for path in [path for path in own.rglob("*") if path.is_file()]:
        path.rename(folder / path.relative_to(own))
    (own / "state").rmdir()
    own.rmdir()


def checkpoint(root: Path, step: int, ranks: int = 2) -> Path:
    """An uploaded checkpoint."""
    folder = root / Storage.name_of(step)
    for rank in range(ranks):
        part(folder, step, rank, ranks)
    return folder


def register(root: Path, *steps: int) -> list[Path]:
    """Checkpoints that the learners have registered, `learner.keep=2`."""
    found = []
    for step in steps:
        found.append(checkpoint(root, step))
        Storage(str(root.parent), root.name).register(found[-1].name, keep=2)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def storage(root: Path) -> Storage:
    return Storage(str(root.parent), root.name)


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("checkpoint_*") if path.is_dir())


def test_the_last_are_kept(root: Path, storage: Storage) -> None:
    _, second, third = register(root, 1, 2, 3)

    assert folders(root) == [second.name, third.name]
    assert storage.recover(keep=2, key=KEY) == third.name
    assert storage.recover(keep=1, key=KEY) == third.name
    assert folders(root) == [third.name]


@pytest.mark.parametrize("parts", [0, 1])
def test_what_is_not_whole_does_not_count_and_is_deleted(root: Path, storage: Storage, parts: int) -> None:
    """Death during rank 0's upload, or between the ranks' uploads; then a driver or the learners start again."""
    kept, last = register(root, 1, 2)
    for again in (lambda: storage.recover(keep=2, key=KEY), lambda: storage.register(last.name, keep=2)):
        cut_off = checkpoint(root, 3, ranks=2)
        for rank in range(parts, 2):
            (cut_off / f"part-{rank}.json").unlink()
            (cut_off / "state" / f"shard-{rank}").write_text("weig")
        assert storage.newest(KEY, "state/shard-0") == last.name
        again()
        assert folders(root) == [kept.name, last.name]


def test_what_is_whole_counts_though_nobody_lived_to_register_it(root: Path, storage: Storage) -> None:
    _, second = register(root, 1, 2)
    third = checkpoint(root, 3)

    assert storage.recover(keep=2, key=KEY) == third.name
    assert folders(root) == [second.name, third.name]


@pytest.mark.parametrize("text", ['{"ray_ver', ""])
def test_ray_trains_own_list_is_left_to_nobody(root: Path, storage: Storage, text: str) -> None:
    """It would refuse to start on half of one, and knows only what its own driver has written."""
    (only,) = register(root, 1)
    (root / "checkpoint_manager_snapshot.json").write_text(text)

    assert storage.recover(keep=2, key=KEY) == only.name
    books = CheckpointManager(CheckpointConfig(num_to_keep=2), StorageContext(str(root.parent), root.name))
    assert books.latest_checkpoint_result is None
    found = storage.read(only.name, "state/shard-0", KEY)
    assert found == b"weights of step 1"


def test_a_first_checkpoint_that_is_not_whole_starts_from_nothing(root: Path, storage: Storage) -> None:
    (checkpoint(root, 1) / "part-1.json").unlink()

    assert storage.recover(keep=2, key=KEY) is None
    assert folders(root) == []


def test_a_registered_checkpoint_that_has_lost_a_file_gives_way_to_the_one_before(root: Path, storage: Storage) -> None:
    before, last = register(root, 1, 2)
    (last / "state" / "shard-1").unlink()

    assert storage.recover(keep=2, key=KEY) == before.name
    assert folders(root) == [before.name]


@pytest.mark.parametrize("file", ["state/shard-0", "state/shard-1", "part-0.json", "part-1.json"])
def test_a_checkpoint_of_which_any_byte_was_changed_gives_way_to_the_one_before(
    root: Path, storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    before, last = register(root, 1, 2)
    path = last / file
    assert storage.newest(KEY, "state/shard-0") == last.name
    path.write_bytes(path.read_bytes().replace(b"2", b"7", 1))
    # It looks at one file only, and changes nothing.
    assert storage.newest(KEY, "state/shard-0") == (last if file == "state/shard-1" else before).name
    with pytest.raises(RaftError, match=r"not what was written"):
        storage.fetch(last.name, KEY, tmp_path / "copy")

    assert storage.recover(keep=2, key=KEY) == before.name
    assert folders(root) == [before.name]
    assert "is not what was written; the checkpoint is left out" in caplog.text
    storage.fetch(before.name, KEY, tmp_path / "copy")
    assert (tmp_path / "copy/state/shard-1").read_bytes() == b"weights of step 1"


def test_only_what_was_sealed_is_copied(root: Path, storage: Storage, tmp_path: Path) -> None:
    (only,) = register(root, 1)
    (only / "state" / "zero_pp_rank_9_optim_states.pt").write_bytes(b"a pickle that runs code")

    storage.fetch(only.name, KEY, tmp_path / "copy")

    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert copied == {"state/shard-0", "state/shard-1"}


def test_a_seal_of_another_run_does_not_count(root: Path, storage: Storage) -> None:
    (only,) = register(root, 1)
    for rank in range(2):
        part = Part.unpack((only / f"part-{rank}.json").read_bytes(), KEY)
        assert part is not None
        (only / f"part-{rank}.json").write_text(part.pack(b"another key" * 3))

    with pytest.raises(RaftError, match=r"none is whole, .* or of another run"):
        storage.recover(keep=2, key=KEY)


def test_the_parts_of_two_checkpoints_make_none(root: Path, storage: Storage) -> None:
    before, last = register(root, 1, 2)
    for file in ("part-1.json", "state/shard-1"):
        (last / file).write_bytes((before / file).read_bytes())

    assert storage.recover(keep=2, key=KEY) == before.name


def test_the_key_is_for_its_owner_alone_and_stays(tmp_path: Path) -> None:
    with pytest.raises(RaftError, match=r"checkpoint\.key: not readable; bring it along"):
        read_key(tmp_path)
    make_key(tmp_path)
    key = read_key(tmp_path)
    make_key(tmp_path)

    assert read_key(tmp_path) == key
    assert len(key) == 32
    assert (tmp_path / "checkpoint.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "checkpoint.key").write_text("ab")
    with pytest.raises(RaftError, match="cut off"):
        read_key(tmp_path)


def test_registered_checkpoints_of_which_none_is_whole_are_refused_and_left(root: Path, storage: Storage) -> None:
    (only,) = register(root, 1)
    (only / "part-0.json").unlink()

    with pytest.raises(RaftError, match="none is whole"):
        storage.recover(keep=2, key=KEY)

    assert folders(root) == [only.name]


def test_a_new_storage_has_nothing(tmp_path: Path) -> None:
    assert Storage(f"file://{tmp_path}", "run").recover(keep=2, key=KEY) is None


def test_a_storage_that_cannot_be_opened_is_named() -> None:
    with pytest.raises(RaftError, match=r"run\.storage=hdfs://.*cannot be opened"):
        Storage("hdfs://", "run").recover(keep=2, key=KEY)


def test_clear_leaves_nothing_of_this_run_and_everything_else(root: Path, storage: Storage) -> None:
    register(root, 1, 2)
    (root.parent / "model").mkdir()
    storage.clear()

    assert [path.name for path in root.parent.iterdir()] == ["model"]
    assert storage.recover(keep=2, key=KEY) is None
    storage.clear()


def test_runs_of_one_name_have_folders_of_their_own_in_a_storage_and_find_them_again(tmp_path: Path) -> None:
    places = []
    for machine in ("a", "b"):
        run_dir = tmp_path / machine / "raft"
        run_dir.mkdir(parents=True)
        config = settings.load("smoke", [f"run.dir={run_dir}", f"run.storage={tmp_path}/shared"])
        places.append(locate(config, run_dir))
        assert locate(config, run_dir) == places[-1]
        baseline = run_dir / "methods" / "sft"
        baseline.mkdir(parents=True)
        places.append(locate(settings.for_method(config, "sft"), baseline))

    assert {place.path for place in places} == {f"{tmp_path}/shared"}
    assert len({place.name for place in places}) == 4
    assert [place.name.rsplit("-", 1)[0] for place in places] == ["raft-raft", "raft-sft"] * 2


def test_without_a_storage_the_run_folder_holds_the_checkpoints(tmp_path: Path) -> None:
    config = settings.load("smoke", [f"run.dir={tmp_path}"])

    assert locate(config, tmp_path) == Storage(str(tmp_path), "checkpoints")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_note_of_the_storage_is_named(tmp_path: Path) -> None:
    (tmp_path / "storage.json").write_text("{")

    with pytest.raises(RaftError, match=r"storage\.json line 1: not JSON: .* write .* there again"):
        locate(settings.load("smoke", [f"run.dir={tmp_path}", "run.storage=gs://bucket"]), tmp_path)
