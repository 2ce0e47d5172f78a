"""Where a run's checkpoints lie, and which of them count.

```
 every rank: seal(its part) ── Ray Train uploads ──> STORAGE/NAME/checkpoint_STEP_ID/     all parts there: whole
 rank 0:     Ray Train has every rank's report ────> .../registered                       it was whole once
```

The newest whole checkpoint is the one from which a driver goes on; it hands its name to the learners. A checkpoint is
whole when every rank's part is there as it was sealed (`actors.distill.seal`); `key` is the run's, of `checkpoint.key`.
A process that dies in between leaves a folder that is not whole, which the next start deletes. A folder that was
registered and is no longer whole was damaged: that is said, and refused where no other is left.

It knows nothing of what a checkpoint holds (`actors.distill.checkpoint` does).
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from actors.distill.seal import Part, broken, part_name
from raft_ray.config import Config
from raft_ray.errors import RaftError, first_line
from raft_ray.files import write_whole
from raft_ray.json_files import read_json
from raft_ray.runs.folders import local_storage

_logger = logging.getLogger(__name__)

_REGISTERED = "registered"


@dataclass(frozen=True)
class Storage:
    """A folder of checkpoints on any pyarrow file system. All methods raise `RaftError` where it cannot be reached."""

    path: str
    """Folder or URI, as Ray Train's `storage_path` takes it."""
    name: str
    """Folder under it, as Ray Train's `name` takes it: this run's own."""

    @staticmethod
    def name_of(step: int) -> str:
        """A name for a new checkpoint: names sort by step, and no process that was given up writes into a later one."""
        return f"checkpoint_{step:08d}_{uuid.uuid4().hex[:8]}"

    def recover(self, keep: int, key: bytes) -> str | None:
        """Before a driver trains: the newest whole checkpoint. None without one. Of the newest every byte is read;
        where it is not what was sealed, the one before is taken, with a warning. All else is deleted but the `keep`
        newest that are whole: Ray Train's own list, too, so that it begins anew. Raises `RaftError` where checkpoints
        were registered of which none is whole."""
        with self._reached():
            whole, registered = self._whole(key), self._registered()
            names = sorted({*whole, *registered})
            while names and (bad := self._changed(names[-1], key)):
                _logger.warning("%s/%s: %s is not what was written; the checkpoint is left out", self, names[-1], bad)
                names.pop()
            if registered and not names:
                raise RaftError(
                    f"checkpoints {', '.join(registered)} in {self}: none is whole, files are missing, cut off, "
                    "changed or of another run; put them back, or start a new run with --run-dir"
                )
            kept = [name for name in names if name in whole][-keep:]
            self._delete_all_but(kept, [info.base_name for info in self._listed()])
            return names[-1] if names else None

    def register(self, name: str | None, keep: int) -> None:
        """Rank 0: `name` is whole. Deletes all checkpoints but the `keep` newest that are registered."""
        filesystem, root = self._at
        with self._reached():
            if name is not None:
                with filesystem.open_output_stream(str(root / name / _REGISTERED)):
                    pass
            self._delete_all_but(self._registered()[-keep:], self._folders())

    def has_any(self) -> bool:
        """Whether any checkpoint, whole or not, is there."""
        with self._reached():
            return bool(self._folders())

    def newest(self, key: bytes, file: str) -> str | None:
        """The newest whole checkpoint of which `file` is what was sealed; changes nothing, and reads no other file."""
        with self._reached():
            names = self._whole(key)
        for name in reversed(names):
            with suppress(RaftError):
                self.read(name, file, key)
                return name
        return None

    def clear(self) -> None:
        """Delete the folder, if there is one, with all its checkpoints: its run has ended."""
        filesystem, root = self._at
        with self._reached(), suppress(FileNotFoundError):
            filesystem.delete_dir(str(root))

    def read(self, name: str, file: str, key: bytes) -> bytes:
        """A small file of a checkpoint, as rank 0 sealed it. Raises `RaftError` where it is not that."""
        with self._reached(name):
            part = Part.unpack(self._bytes(name, part_name(0)), key)
            content = self._bytes(name, file)
        sealed = part.files.get(file) if part else None
        if sealed is None or broken({file: sealed}, key, lambda _: BytesIO(content)):
            raise RaftError(f"checkpoint {self}/{name}: {file} is not what was written; put it back")
        return content

    def fetch(self, name: str, key: bytes, folder: Path) -> None:
        """Copy a checkpoint into a folder of this machine, which nobody else can write. Only what was sealed is copied,
        and hashed on the way. Raises `RaftError` where any of it is not what was sealed."""
        with self._reached(name):
            bad = self._changed(name, key, folder)
        if bad:
            raise RaftError(
                f"checkpoint {self}/{name}: {bad} is not what was written; --resume goes on from the one before it"
            )

    def __str__(self) -> str:
        return f"{self.path.rstrip('/')}/{self.name}"

    @cached_property
    def _at(self) -> tuple[Any, PurePosixPath]:
        """The file system, and the folder of checkpoints on it."""
        from pyarrow.fs import FileSystem

        try:
            filesystem, path = FileSystem.from_uri(self.path)
        except (OSError, ValueError) as error:
            raise RaftError(
                f"run.storage={self.path}: cannot be opened ({first_line(error)}); check the URI and its credentials"
            ) from error
        return filesystem, PurePosixPath(path, self.name)

    @contextmanager
    def _reached(self, name: str | None = None) -> Iterator[None]:
        """An `OSError` in the block is the storage's."""
        try:
            yield
        except OSError as error:
            what = f"checkpoints in {self}" if name is None else f"checkpoint {self}/{name}"
            raise RaftError(f"{what}: {first_line(error)}; check run.storage") from error

    def _changed(self, name: str, key: bytes, to: Path | None = None) -> str | None:
        """A file of a checkpoint that is missing or not what was sealed, found by reading all; none where it is whole.
        `to`: a folder into which the files are copied on the way."""
        filesystem, root = self._at
        if not (parts := self._parts(name, key)):
            return "a file"
        files = {file: sealed for part in parts for file, sealed in part.files.items()}
        bad = broken(files, key, lambda file: filesystem.open_input_stream(str(root / name / file)), to)
        return ", ".join(bad) or None

    def _bytes(self, name: str, file: str) -> bytes:
        filesystem, root = self._at
        with filesystem.open_input_stream(str(root / name / file)) as stream:
            return bytes(stream.read())

    def _parts(self, name: str, key: bytes) -> list[Part]:
        """The parts of a checkpoint by rank; empty where anything of it is missing or of another length."""
        folder = self._at[1] / name
        sizes = {
            str(PurePosixPath(info.path).relative_to(folder)): info.size
            for info in self._listed(name, recursive=True)
            if info.is_file
        }
        parts: list[Part] = []
        while not parts or len(parts) < parts[0].ranks:
            file = part_name(len(parts))
            part = Part.unpack(self._bytes(name, file), key) if file in sizes else None
            if part is None:
                return []
            first = (parts or [part])[0]
            if (part.rank, part.step, part.ranks) != (len(parts), first.step, first.ranks):
                return []
            if any(sizes.get(file) != size for file, (size, _) in part.files.items()):
                return []
            parts.append(part)
        return parts

    def _whole(self, key: bytes) -> list[str]:
        """Checkpoints of which all is there, oldest first."""
        return [name for name in self._folders() if self._parts(name, key)]

    def _registered(self) -> list[str]:
        """Checkpoints that were whole once, oldest first."""
        return [name for name in self._folders() if any(i.base_name == _REGISTERED for i in self._listed(name))]

    def _folders(self) -> list[str]:
        return sorted(i.base_name for i in self._listed() if not i.is_file and i.base_name.startswith("checkpoint_"))

    def _listed(self, name: str = "", recursive: bool = False) -> list[Any]:
        """What is in the folder, or in one of its checkpoints."""
        from pyarrow.fs import FileSelector

        filesystem, root = self._at
        found: list[Any] = filesystem.get_file_info(
            FileSelector(str(root / name), recursive=recursive, allow_not_found=True)
        )
        return found

    def _delete_all_but(self, kept: Collection[str], names: Collection[str]) -> None:
        filesystem, root = self._at
        folders = self._folders()
        for name in names:
            if name in kept:
                continue
            if name in folders:
                _logger.info("%s/%s is deleted", self, name)
                filesystem.delete_dir(str(root / name))
            elif filesystem.get_file_info(str(root / name)).is_file:
                filesystem.delete_file(str(root / name))


def check_storage(config: Config) -> None:
    """Refuse a `run.storage` that cannot be reached from here, before anything is made. Raises `RaftError`."""
    if config.run.storage is not None:
        Storage(_path(config.run.storage), "").has_any()


def locate(config: Config, run_dir: Path) -> Storage:
    """Where the run in `run_dir` has its checkpoints: its folder `checkpoints`, or one of its own in `run.storage`.
    Runs share `run.storage`, even ones that call their folder the same on different machines: the name there is drawn
    once and kept in `storage.json` of the run folder. Raises `RaftError` where that file cannot be read."""
    if config.run.storage is None:
        return Storage(str(run_dir), "checkpoints")
    file = run_dir / "storage.json"
    if file.exists():
        fix = 'write {"path": URI, "name": folder of this run} there again, or start a new run with --run-dir'
        try:
            return Storage(**read_json(file, fix))
        except TypeError as error:
            raise RaftError(f"{file}: not readable; {fix}") from error
    name = f"{Path(config.run.dir).absolute().name}-{config.distill.method.value}-{uuid.uuid4().hex[:8]}"
    storage = Storage(_path(config.run.storage), name)
    write_whole(file, json.dumps(asdict(storage), indent=1) + "\n")
    return storage


def _path(storage: str) -> str:
    local = local_storage(storage)
    return str(local.absolute()) if local else storage
