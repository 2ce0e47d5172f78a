"""Where a run writes: the run folder, and `run.storage` for its checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from raft_ray.config import Config, settings
from raft_ray.config.resume import check_same_run
from raft_ray.errors import ConfigError
from raft_ray.files import home
from raft_ray.runs.lock import LOCK


def check_run_dir(config: Config) -> None:
    """Refuse a run folder that is in use, cannot be written, or has no run to resume, and a local folder of
    checkpoints that cannot be written. Raises `ConfigError`."""
    folder = Path(config.run.dir)
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"run.dir={folder}: a file of that name is in the way; choose another with --run-dir")
    except OSError as error:
        raise ConfigError(f"run.dir={folder}: {error.strerror}; choose another folder with --run-dir") from error
    if config.run.resume:
        check_same_run(config, folder)
        for name in config.run.baselines:
            if (folder / "methods" / name / "config.yaml").is_file():
                check_same_run(settings.for_method(config, name), folder / "methods" / name)
    elif folder.is_dir() and not all(path.name.startswith(LOCK) for path in folder.iterdir()):
        raise ConfigError(
            f"run.dir={folder}: the folder is not empty; go on with the run there with --resume, "
            "or choose another folder with --run-dir"
        )
    _check_writable(folder, f"run.dir={folder}", "choose another folder with --run-dir")
    if config.run.storage and (local := local_storage(config.run.storage)):
        _check_writable(local, f"run.storage={config.run.storage}", "choose another folder, or a URI")


def local_storage(storage: str) -> Path | None:
    """The folder that a `run.storage` names on this machine; none for a remote one."""
    uri = urlsplit(storage)
    if uri.scheme == "file":
        return Path(unquote(uri.path))
    return None if uri.scheme else home(storage)


def _check_writable(folder: Path, what: str, fix: str) -> None:
    """Refuse a folder, not yet made perhaps, in which no file can be made; leaves nothing behind."""
    try:
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ConfigError(f"{what}: cannot write there ({error.strerror}); {fix}") from error
