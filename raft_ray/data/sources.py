"""What a source names, and its records: files, globs, folders, Hugging Face data sets, domains, or a list of them.

    source ──> files, data sets, domains ──> records, each with its place     (`files` reads a file)

Knows nothing about what a record must contain. `datasets` is imported inside the functions.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from raft_ray.config import DataConfig
from raft_ray.data.domains import load
from raft_ray.data.files import Place, Records, ending, is_known, read_file
from raft_ray.errors import DataError, first_line
from raft_ray.files import home

Split = Literal["train", "test"]
Source = str | list[str]

KINDS = ".jsonl, .json, .csv, .tsv, .parquet or .arrow"
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<configuration>[\w.-]+))?")
_NO_HUB_NAMES = {".txt", ".gz", ".zst", ".xlsx", ".yaml"}


def records(source: Source, config: DataConfig, split: Split) -> Records:
    """The records of `source`, one source after the other; one that could not be read is an `Unusable`. Raises
    `DataError`, naming the key, the source and the fix, when one is missing, of an unknown kind or broken."""
    parts = [part for each in ([source] if isinstance(source, str) else source) for part in _parts(each, config, split)]
    for name, found in parts:
        for place, record in found:
            yield place if len(parts) == 1 else place._replace(file=name), record


def _parts(source: str, config: DataConfig, split: Split) -> list[tuple[str, Records]]:
    """What a source consists of, each with its name."""
    where = f"data.{split}={source}"
    if source.startswith("domain:"):
        return [(source, _numbered(load(source.removeprefix("domain:"), split)))]
    path = home(source)
    if path.is_dir():
        return _folder(path, config, split, where)
    if path.exists():
        if is_known(path):
            return _files([path], where)
        kind = f"unknown file type {ending(path)}" if path.suffix else "a file without an ending"
        raise DataError(f"{where}: {kind}; convert it to {KINDS} (text also as .gz or .zst)")
    if glob.has_magic(source):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(f"{where}: no file matches")
        if unknown := next((file for file in found if not is_known(file)), None):
            raise DataError(f"{where}: matches {unknown}, which is of an unknown file type; {KINDS} are read")
        return _files(found, where)
    hub = _HUB_NAME.fullmatch(source)
    if is_known(path) or path.suffix in _NO_HUB_NAMES or hub is None or source.startswith(("./", "../")):
        raise DataError(
            f"{where}: no such file; name a file ({KINDS}), a folder, a Hugging Face data set, or domain:NAME"
        )
    return [(source, _data_set(hub["name"], hub["configuration"], config, split, where))]


def _files(paths: list[Path], where: str) -> list[tuple[str, Records]]:
    return [(str(path), read_file(path, where)) for path in paths]


def _folder(path: Path, config: DataConfig, split: Split, where: str) -> list[tuple[str, Records]]:
    """A refined folder, whose rows are numbered through, a data set saved to disk, or files named by their split."""
    if refined := sorted(path.glob("part-*.parquet")):
        return [(str(path), _numbered(record for _, found in _files(refined, where) for _, record in found))]
    if any((path / "refined").glob("part-*.parquet")):
        raise DataError(f"{where}: this is a run folder; its rows are in {path / 'refined'}")
    # A README may say which files belong to which split.
    if not any((path / name).exists() for name in ("dataset_dict.json", "state.json", "README.md")):
        from datasets.data_files import DataFilesDict, get_data_patterns

        try:
            by_split = DataFilesDict.from_patterns(get_data_patterns(str(path)), base_path=str(path))
        except FileNotFoundError:
            by_split = {}
        files = [Path(name) for name in by_split.get(config.train_split if split == "train" else config.test_split, [])]
        if files and all(map(is_known, files)):
            return _files(files, where)
    return [(str(path), _data_set(str(path), None, config, split, where))]


def _numbered(found: Iterable[Any]) -> Records:
    return ((Place(number), record) for number, record in enumerate(found, start=1))


def _data_set(name: str, configuration: str | None, config: DataConfig, split: Split, where: str) -> Records:
    """Of the hub or a folder, through `datasets`: from its cache on disk, or streamed (`data.streaming`)."""
    from datasets import load_dataset, load_from_disk

    wanted = config.train_split if split == "train" else config.test_split
    try:
        if any((Path(name) / saved).exists() for saved in ("dataset_dict.json", "state.json")):
            loaded = load_from_disk(name)
            data = loaded[wanted] if isinstance(loaded, dict) else loaded
        else:
            data = load_dataset(name, configuration, split=wanted, streaming=config.streaming)
        yield from _numbered(data)
    # What the hub's client raises depends on its version and on httpx; all of it means that there is no data.
    except Exception as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        if Path(name).is_dir():
            fix = f"check the folder, and data.{split}_split ({wanted})"
        else:
            fix = (
                f"there is no such file, and as a Hugging Face data set it could not be loaded; check the name, "
                f"data.{split}_split ({wanted}) and the connection to the hub, or name a file ({KINDS})"
            )
        raise DataError(f"{where}: {fix} ({cause})") from error
