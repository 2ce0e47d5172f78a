"""The records of a file, one at a time, each with its place: what can be told of a bad one is its line or row.

| ending | read as |
|---|---|
| `.jsonl`, `.ndjson`, `.json` | an object on each line, or an array of objects: the first character decides |
| `.csv`, `.tsv` | a header and records of as many fields, UTF-8; an empty field is none |
| `.parquet`, `.arrow` | Parquet; Arrow's file or stream format |
| `.gz` and `.zst` behind one of the text ones | the same, compressed |

Holds no more than a batch of a file at a time. Knows nothing about what a record must contain.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from raft_ray.errors import DataError, first_line
from raft_ray.json_files import Unusable, parse_object, read_objects

BATCH = 1024
"""Rows of a columnar file in memory at a time."""
_CHUNK = 1 << 16
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_LONGEST_FIELD = 1 << 26
_SPACES = tuple(" \t\r\n")
T = TypeVar("T")


class Place(NamedTuple):
    """Where a record stands."""

    number: int
    """1-based line, or row where the file has no lines."""
    unit: str = "row"
    file: str = ""
    """Where the source has several."""

    def __str__(self) -> str:
        return f"{self.unit} {self.number}" + (f" of {self.file}" if self.file else "")


Records = Iterator[tuple[Place, "dict[str, Any] | Unusable"]]


def ending(path: Path) -> str:
    """What says how a file is read, such as `.jsonl.gz`."""
    return "".join(path.suffixes[-2:]) if path.suffix in _COMPRESSION else path.suffix


def is_known(path: Path) -> bool:
    """Whether the ending says how the file is read."""
    return ending(path) in _TEXTS or path.suffix in _COLUMNAR


def read_file(path: Path, where: str) -> Records:
    """The records of a file, JSON unless its ending says otherwise; one that could not be read is an `Unusable`. Raises
    `DataError`, beginning with `where`, for a file that cannot be read as its ending says."""
    compression = _COMPRESSION.get(path.suffix)
    try:
        if batches := _COLUMNAR.get(path.suffix):
            for number, record in enumerate(_rows(batches(path)), start=1):
                yield Place(number), record
        else:
            with path.open("rb") as plain:
                stream = io.BufferedReader(pa.CompressedInputStream(plain, compression)) if compression else plain
                yield from _TEXTS.get(ending(path), _json)(stream)
    except Unusable as error:
        raise DataError(f"{where}: {path.name}: {error}") from error
    except (pa.ArrowException, OSError) as error:
        fault = f"{getattr(error, 'strerror', None) or first_line(error)}; make the file readable"
        if path.suffix in _COLUMNAR:
            kind = path.suffix[1:].capitalize()
            fault = f"{path.name} cannot be read as {kind} ({first_line(error)}); write it anew"
        raise DataError(f"{where}: {fault}") from error


def read_all(path: Path, where: str, make: Callable[[dict[str, Any]], T], needs: str) -> Iterator[T]:
    """What `make` has of each record. The first that it cannot use (`Unusable`) is a `DataError`, which names `where`,
    the line and what a record `needs`."""
    for place, record in read_file(path, where):
        try:
            if isinstance(record, Unusable):
                raise record
            yield make(record)
        except Unusable as error:
            raise DataError(f"{where}, {place}: {error}; {needs}") from error


def _json(stream: io.BufferedReader) -> Records:
    if stream.peek(1).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from _array(stream)
    else:
        for number, record in read_objects(stream):
            yield Place(number, "line"), record


def _array(stream: io.BufferedReader) -> Records:
    """The elements of a JSON array, which need not lie on lines. Raises `Unusable` where the array is broken."""
    text = _Text(stream)
    text.sign()
    text.at += 1
    number = 0
    while (sign := text.sign()) and sign != "]":
        if number:
            if sign != ",":
                raise text.broken("no comma between two elements of the array")
            text.at += 1
            text.sign()
        number += 1
        yield Place(number), parse_object(text.element().encode("utf-8", "surrogateescape"))
    if not sign:
        raise text.broken("the array is not closed")
    text.at += 1
    if text.sign():
        raise text.broken("something stands behind the array")


class _Text:
    """The text of a JSON file from `at` on, as much of it as was asked for."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        # Finds where an element ends; `parse_object` says what it is.
        self._end = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode
        self._text, self._line, self.at = "", 1, 0

    def sign(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._text[self.at : self.at + 1] in _SPACES:
                self.at += 1
            if self.at < len(self._text) or not self._more():
                return self._text[self.at : self.at + 1]

    def element(self) -> str:
        """The next element, as it is written."""
        while True:
            try:
                _, end = self._end(self._text, self.at)
                if end < len(self._text) or not self._more():
                    element = self._text[self.at : end]
                    self.at = end
                    return element
            except json.JSONDecodeError as error:
                cut_short = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 10
                if not (cut_short and self._more()):
                    self.at = error.pos
                    raise self.broken(error.msg) from error
            except RecursionError as error:
                raise self.broken("nested too deeply") from error

    def broken(self, what: str) -> Unusable:
        line = self._line + self._text.count("\n", 0, self.at)
        return Unusable(f"line {line}: not JSON: {what}")

    def _more(self) -> bool:
        chunk = self._stream.read(max(_CHUNK, len(self._text) - self.at))
        if chunk:
            self._line += self._text.count("\n", 0, self.at)
            self._text, self.at = self._text[self.at :] + self._decode(chunk), 0
        else:
            self._text += self._decode(b"", True)
        return bool(chunk)


def _table(delimiter: str) -> Callable[[io.BufferedReader], Records]:
    def read(stream: io.BufferedReader) -> Records:
        csv.field_size_limit(_LONGEST_FIELD)
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        names: list[str] = []
        fields: list[str] | None = []
        while fields is not None:
            place = Place(lines.line_num + 1, "line")
            try:
                fields = next(lines, None)
            except csv.Error as error:
                if "unexpected end" in str(error) or "field larger" in str(error):
                    raise Unusable(f"{place}: a quotation mark opens there and is not closed") from error
                yield place, Unusable(f"not CSV: {error}")
                continue
            if not fields:
                continue
            if not names:
                names = fields
                if twice := next((name for name in names if names.count(name) > 1), None):
                    raise Unusable(f"{place}: column '{twice}' stands twice in the header")
            elif len(fields) != len(names):
                yield place, Unusable(f"has {len(fields)} fields, and the header has {len(names)}")
            elif any("\udc80" <= character <= "\udcff" for character in "".join(fields)):
                yield place, Unusable("not UTF-8")
            else:
                yield place, {name: value or None for name, value in zip(names, fields, strict=True)}

    return read


def _parquet(path: Path) -> Iterator[Any]:
    # Without the buffering of all columns of a row group, batches are all that is in memory.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        yield from file.iter_batches(batch_size=BATCH, use_threads=False)


def _arrow(path: Path) -> Iterator[Any]:
    with pa.OSFile(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            file.seek(0)
            yield from pa.ipc.open_stream(file)
        else:
            yield from map(reader.get_batch, range(reader.num_record_batches))


def _rows(batches: Iterator[Any]) -> Iterator[dict[str, Any] | Unusable]:
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            part = batch.slice(start, BATCH)
            try:
                yield from part.to_pylist()
            except UnicodeDecodeError:
                for row in range(part.num_rows):
                    try:
                        yield from part.slice(row, 1).to_pylist()
                    except UnicodeDecodeError:
                        yield Unusable("not UTF-8")


_COLUMNAR: dict[str, Callable[[Path], Iterator[Any]]] = {".parquet": _parquet, ".arrow": _arrow}
_TEXTS: dict[str, Callable[[io.BufferedReader], Records]] = {
    f"{ending}{compressed}": read
    for ending, read in {
        ".jsonl": _json,
        ".ndjson": _json,
        ".json": _json,
        ".csv": _table(","),
        ".tsv": _table("\t"),
    }.items()
    for compressed in ("", *_COMPRESSION)
}
"""By ending."""
