"""Where a run's checkpoints lie, and which of them count.

```
 every rank: seal(its part) ── Ray Train uploads ──> STORAGE/NAME/checkpoint_TIME/      all parts there: whole
                                      │
 controller: all ranks reported ──────┴───────────> STORAGE/NAME/checkpoint_manager_snapshot.json lists it
```

A restart uses the newest folder that the snapshot lists. A process that dies on the way leaves a folder that no
snapshot lists, so the checkpoint before stays the newest; the next start deletes such rests. The snapshot itself is
overwritten in place: where a dying driver has torn it, it is written anew from the folders that are whole. A checkpoint
is whole when every rank's part is there as it was sealed (`actors.distill.seal`); `key` is the run's, of
`checkpoint.key`.

It knows nothing of what a checkpoint holds (`actors.distill.checkpoint` does).
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from actors.distill.seal import Part, broken, part_name
from raft_ray.config import Config
from raft_ray.errors import RaftError
from raft_ray.files import write_whole
from raft_ray.json_files import read_json
from raft_ray.runs.folders import local_storage

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Storage:
    """A folder of checkpoints on any pyarrow file system."""

    path: str
    """Folder or URI, as Ray Train's `storage_path` takes it."""
    name: str
    """Folder under it, as Ray Train's `name` takes it: this run's own."""

    @cached_property
    def _at(self) -> tuple[Any, PurePosixPath]:
        """The file system, and the folder of checkpoints on it."""
        from pyarrow.fs import FileSystem

        try:
            filesystem, path = FileSystem.from_uri(self.path)
        except (OSError, ValueError) as error:
            raise RaftError(
                f"run.storage={self.path}: cannot be opened ({_first_line(error)}); check the URI and its credentials"
            ) from error
        return filesystem, PurePosixPath(path, self.name)

    def recover(self, keep: int, key: bytes) -> str | None:
        """Before a driver trains: the newest checkpoint that counts, after deleting all rests. None without one.

        Of the newest every byte is read; where it is not what was sealed, the one before is taken, with a warning.

        Args:
            keep: how many checkpoints to take up where the snapshot is lost.

        Raises `RaftError` when the storage cannot be read, or lists checkpoints of which none is whole.
        """
        try:
            listed = self._listed()
            steps = {name: parts[0].step for name in self._folders() if (parts := self._parts(name, key))}
            if listed is None:
                names = sorted(steps, key=lambda name: (steps[name], name))[-keep:]
            else:
                names = [name for name in listed if name in steps]
            while names and (bad := self.changed(names[-1], key)):
                _logger.warning("%s/%s: %s is not what was written; the checkpoint is left out", self, names[-1], bad)
                names.pop()
            if listed and not names:
                raise RaftError(
                    f"checkpoints {', '.join(listed)} in {self}: none is whole, files are missing, cut off, changed or "
                    "of another run; put them back, or start a new run with --run-dir"
                )
            if names and names != listed:
                _logger.warning("%s: its list of checkpoints is written anew: %s", self, ", ".join(names))
                self._list(names)
            elif listed is None:
                self._delete_list()
            self.sweep(names)
        except OSError as error:
            raise RaftError(f"checkpoints in {self}: {_first_line(error)}; check run.storage") from error
        return names[-1] if names else None

    def has_any(self) -> bool:
        """Whether any checkpoint, whole or not, is there. Raises `RaftError`."""
        try:
            return bool(self._folders())
        except OSError as error:
            raise RaftError(f"checkpoints in {self}: {_first_line(error)}; check run.storage") from error

    def newest(self, key: bytes, file: str) -> str | None:
        """The newest checkpoint whose files have their lengths and of which `file` is what was sealed; changes nothing.

        Raises `RaftError` when the storage cannot be read.
        """
        try:
            steps = {name: parts[0].step for name in self._folders() if (parts := self._parts(name, key))}
        except OSError as error:
            raise RaftError(f"checkpoints in {self}: {_first_line(error)}; check run.storage") from error
        for name in sorted(steps, key=lambda name: (steps[name], name), reverse=True):
            with suppress(RaftError):
                self.read(name, file, key)
                return name
        return None

    def sweep(self, names: Collection[str]) -> None:
        """Delete all checkpoint folders but these."""
        filesystem, root = self._at
        for name in self._folders():
            if name not in names:
                _logger.warning("%s/%s: not a registered checkpoint, deleted", self, name)
                filesystem.delete_dir(str(root / name))

    def clear(self) -> None:
        """Delete the folder, if there is one, with all its checkpoints: its run has ended. Raises `RaftError`."""
        filesystem, root = self._at
        try:
            filesystem.delete_dir(str(root))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RaftError(f"checkpoints in {self}: {_first_line(error)}; check run.storage") from error

    def read(self, name: str, file: str, key: bytes) -> bytes:
        """A small file of a checkpoint, as rank 0 sealed it. Raises `RaftError` where it is not that."""
        try:
            part = Part.unpack(self._bytes(name, part_name(0)), key)
            content = self._bytes(name, file)
        except OSError as error:
            raise RaftError(f"checkpoint {self}/{name}: {_first_line(error)}; check run.storage") from error
        sealed = part.files.get(file) if part else None
        if sealed is None or broken({file: sealed}, key, lambda _: BytesIO(content)):
            raise RaftError(f"checkpoint {self}/{name}: {file} is not what was written; put it back")
        return content

    def fetch(self, name: str, key: bytes, folder: Path) -> None:
        """Copy a checkpoint into a folder of this machine, which nobody else can write. Only what was sealed is copied,
        and hashed on the way. Raises `RaftError` where any of it is not what was sealed."""
        if bad := self.changed(name, key, folder):
            raise RaftError(
                f"checkpoint {self}/{name}: {bad} is not what was written; --resume goes on from the one before it"
            )

    def changed(self, name: str, key: bytes, to: Path | None = None) -> str | None:
        """A file of a checkpoint that is missing or not what was sealed, found by reading all; none where it is whole.

        Args:
            to: a folder into which the files are copied on the way.
        """
        filesystem, root = self._at
        if not (parts := self._parts(name, key)):
            return "a file"
        files = {file: sealed for part in parts for file, sealed in part.files.items()}
        bad = broken(files, key, lambda file: filesystem.open_input_stream(str(root / name / file)), to)
        return ", ".join(bad) or None

    def is_whole(self, name: str, key: bytes) -> bool:
        """Every rank's part of a checkpoint is there and sealed, with all its files at their length."""
        return bool(self._parts(name, key))

    def __str__(self) -> str:
        return f"{self.path.rstrip('/')}/{self.name}"

    def _bytes(self, name: str, file: str) -> bytes:
        filesystem, root = self._at
        with filesystem.open_input_stream(str(root / name / file)) as stream:
            return bytes(stream.read())

    def _parts(self, name: str, key: bytes) -> list[Part]:
        """The parts of a checkpoint by rank; empty where anything of it is missing or of another length."""
        from pyarrow.fs import FileSelector

        filesystem, root = self._at
        folder = root / name
        sizes = {
            str(PurePosixPath(info.path).relative_to(folder)): info.size
            for info in filesystem.get_file_info(FileSelector(str(folder), recursive=True, allow_not_found=True))
            if info.is_file
        }
        parts: list[Part] = []
        while not parts or len(parts) < parts[0].ranks:
            file = part_name(len(parts))
            part = Part.unpack(self._bytes(name, file), key) if file in sizes else None
            same = part is not None and (part.rank, part.step, part.ranks) == (
                len(parts),
                (parts or [part])[0].step,
                (parts or [part])[0].ranks,
            )
            if part is None or not same or any(sizes.get(file) != size for file, (size, _) in part.files.items()):
                return []
            parts.append(part)
        return parts

    def _folders(self) -> list[str]:
        from pyarrow.fs import FileSelector

        filesystem, root = self._at
        infos = filesystem.get_file_info(FileSelector(str(root), allow_not_found=True))
        return sorted(info.base_name for info in infos if not info.is_file and info.base_name.startswith("checkpoint_"))

    def _listed(self) -> list[str] | None:
        """The folders that Ray Train's snapshot lists, oldest first; none without a snapshot that can be read."""
        filesystem, _ = self._at
        try:
            with filesystem.open_input_stream(self._snapshot) as stream:
                results = json.loads(stream.read())["checkpoint_results"]
            return [str(result["checkpoint_dir_name"]) for result in results]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _list(self, names: list[str]) -> None:
        """Write Ray Train's snapshot, in its own words: it lists these folders, oldest first."""
        from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
            _CheckpointManagerState,
            _TrainingResultState,
        )

        results = [_TrainingResultState(checkpoint_dir_name=name, metrics={}) for name in names]
        state = _CheckpointManagerState(
            checkpoint_results=results,
            checkpoint_report_indices=list(range(len(names))),
            latest_checkpoint_result=results[-1],
            pending_training_results=[],
            pending_validation_specs=[],
            current_report_index=len(names),
            validated_checkpoint_dir_names=[],
            timed_out_validation_checkpoint_dir_names=[],
            failed_validation_checkpoint_dir_names=[],
        )
        filesystem, _ = self._at
        with filesystem.open_output_stream(self._snapshot + ".new") as stream:
            stream.write(state.model_dump_json().encode())
        filesystem.move(self._snapshot + ".new", self._snapshot)

    def _delete_list(self) -> None:
        """Delete a torn snapshot: Ray Train refuses to start on one."""
        from pyarrow.fs import FileType

        filesystem, _ = self._at
        if filesystem.get_file_info(self._snapshot).type is not FileType.NotFound:
            filesystem.delete_file(self._snapshot)

    @property
    def _snapshot(self) -> str:
        from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

        return str(self._at[1] / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)


def locate(config: Config, run_dir: Path) -> Storage:
    """Where the run in `run_dir` has its checkpoints: its folder `checkpoints`, or one of its own in `run.storage`.

    Runs share `run.storage`, even ones that call their folder the same on different machines: the name there is
    drawn once and kept in `storage.json` of the run folder. Raises `RaftError` where that file cannot be read.
    """
    if config.run.storage is None:
        return Storage(str(run_dir), "checkpoints")
    file = run_dir / "storage.json"
    if file.exists():
        fix = 'write {"path": URI, "name": folder of this run} there again, or start a new run with --run-dir'
        try:
            return Storage(**read_json(file, fix))
        except TypeError as error:
            raise RaftError(f"{file}: not readable; {fix}") from error
    local = local_storage(config.run.storage)
    name = f"{Path(config.run.dir).absolute().name}-{config.distill.method.value}-{uuid.uuid4().hex[:8]}"
    storage = Storage(str(local.absolute()) if local else config.run.storage, name)
    write_whole(file, json.dumps(asdict(storage), indent=1) + "\n")
    return storage


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
