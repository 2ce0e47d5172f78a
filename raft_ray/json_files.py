"""JSON files of a run, read back: one reader of objects by line, one of whole files, one error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raft_ray.errors import RaftError
from raft_ray.files import writing


def read_lines(path: Path, numbers: Sequence[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """`(FILE line N, object)` of every line of a JSONL file that is not blank; none where there is no file.

    A last line that a killed process left unfinished is dropped.

    Args:
        numbers: keys that must be whole numbers in every line.

    Raises `RaftError`, which names file and line, for any other line that is no JSON object with these keys.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RaftError(f"{path}: cannot be read ({error.strerror})") from error
    found = []
    for number, line in enumerate([*lines, rest], start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if number > len(lines):  # Without a line's end, so its writing was cut short.
                break
            raise RaftError(f"{where}: {_why(error)}; repair or delete it") from error
        if not isinstance(value, dict):
            raise RaftError(f"{where}: expected a JSON object, found {type(value).__name__}; repair or delete it")
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
        return f"not JSON ({error.msg} at column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"cannot be read as UTF-8 text ({error})"
    return f"not JSON ({error})"  # Nested too deeply, or a number of too many digits.
