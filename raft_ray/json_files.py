"""JSON read back: the one reader of objects by line, for data sets and for a run's files, and one of whole files.

Knows nothing about what the files hold.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raft_ray.errors import RaftError
from raft_ray.files import writing

_DIGITS = 4300


class Unusable(Exception):
    """Why a record cannot be used, in words that follow its place."""


def read_objects(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any] | Unusable]]:
    """The number of each line that is not blank, from 1 on, with its object or why it is none. Reads bytes, so that a
    line which is not UTF-8 costs only itself."""
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, parse_object(line)


def parse_object(line: bytes) -> dict[str, Any] | Unusable:
    """The object that `line` holds, or why it is none."""
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_fields, parse_int=_integer)
    except Unusable as error:
        return error
    except UnicodeDecodeError:
        return Unusable("not UTF-8")
    except json.JSONDecodeError as error:
        if b"\r" in line.rstrip():
            return Unusable("not JSON: a carriage return inside the line; end lines with a newline")
        hint = "; a comma stands behind the object" if line.rstrip().endswith(b",") else ""
        return Unusable(f"not JSON: {error.msg} at column {error.colno}{hint}")
    except (ValueError, RecursionError) as error:  # nestings beyond Python's limits
        return Unusable(f"not JSON: {error}")
    return record if isinstance(record, dict) else Unusable("not a JSON object")


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which Python would keep the last of two fields with the same name."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise Unusable(f"field '{next(name for name in names if names.count(name) > 1)}' stands twice in an object")
    return fields


def _integer(digits: str) -> float:
    """A whole number; one beyond Python's limit for text, which no field that is read may hold, as infinity."""
    return int(digits) if len(digits) < _DIGITS else math.inf


def read_lines(path: Path, numbers: Sequence[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """`(FILE line N, object)` of every line of a JSONL file that is not blank; none where there is no file. A last line
    that a killed process left unfinished is dropped. `numbers`: keys that must be whole numbers in every line. Raises
    `RaftError`, which names file and line, for any other line that is no JSON object with these keys."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RaftError(f"{path}: cannot be read ({error.strerror})") from error
    found = []
    for number, value in read_objects(io.BytesIO(content)):
        where = f"{path} line {number}"
        if isinstance(value, Unusable):
            last = content.rpartition(b"\n")[2]
            if number > content.count(b"\n") and not _is_json(last):  # Its writing was cut short.
                break
            raise RaftError(f"{where}: {value}; repair or delete it")
        for key in numbers:
            if not isinstance(value.get(key), int) or isinstance(value[key], bool):
                raise RaftError(
                    f"{where}: `{key}` must be a whole number, found {value.get(key)!r}; repair or delete it"
                )
        found.append((where, value))
    return found


def append_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Append objects to a JSONL file, in place of a last line that was left unfinished. Raises `RaftError`."""
    with writing(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.seek(0)
                whole, _, rest = file.read().rpartition(b"\n")
                if _is_json(rest):
                    file.write(b"\n")
                else:
                    file.truncate(len(whole) + 1 if whole else 0)
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def read_json(
    path: Path, fix: str = "repair or delete it", *, key: str = "", raises: type[RaftError] = RaftError
) -> Any:
    """The value in a JSON file.

    Args:
        fix: what the user can do about a file that cannot be read.
        key: of the config, that named the file or its folder; opens the message.
        raises: the kind of error, which names key, file, line and `fix`.
    """
    where = _named(path, key)
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise raises(f"{where}: cannot be read ({error.strerror}); {fix}") from error
    except json.JSONDecodeError as error:
        raise raises(f"{where} line {error.lineno}: {_why(error)}; {fix}") from error
    except (ValueError, RecursionError) as error:
        raise raises(f"{where}: {_why(error)}; {fix}") from error


def read_object(
    path: Path, fix: str = "repair or delete it", *, key: str = "", raises: type[RaftError] = RaftError
) -> dict[str, Any]:
    """The object in a JSON file; as `read_json`, which takes any value."""
    value = read_json(path, fix, key=key, raises=raises)
    if not isinstance(value, dict):
        raise raises(f"{_named(path, key)}: expected a JSON object, found {type(value).__name__}; {fix}")
    return value


def _named(path: Path, key: str) -> str:
    return f"{key}={path}" if key else str(path)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"cannot be read as UTF-8 text ({error})"
    return f"not JSON: {error}"  # Nested too deeply, or a number of too many digits.
