"""The general prompts: what a model is asked to see whether it still answers as it did before.

Response length and drift are measured on them, so they are about everyday matters and about none of the
shipped domains. Sixty lie in `general_prompts.jsonl` beside this module; `eval.general` names a file to use
instead. Knows nothing about models or about how the answers are judged.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from raft_ray.errors import DataError
from raft_ray.messages import checked
from raft_ray.sources import Unusable


def general_prompts(path: str | None = None) -> list[str]:
    """The prompts in the file's order: the 60 shipped ones, or those of the JSONL file `path` (`eval.general`).

    Each line of the file is an object with a `prompt` string; other fields (`category`) and blank lines are
    passed over. Raises `DataError`, naming file and line, for a file that cannot be read or has no prompts.
    """
    if path is None:
        raw = resources.files("raft_ray").joinpath("general_prompts.jsonl").read_bytes()
        return _prompts(raw, "general_prompts.jsonl")
    try:
        raw = Path(path).expanduser().read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(
            f"eval.general={path}: {reason}; name a JSONL file with `prompt` fields, or leave the key out for the "
            "shipped prompts"
        ) from error
    return _prompts(raw, path)


def _prompts(raw: bytes, source: str) -> list[str]:
    prompts = []
    for number, line in enumerate(raw.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"eval.general={source}, line {number}: not UTF-8; save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"eval.general={source}, line {number}: not JSON ({what}); each line must be an object "
                'such as {"prompt": "..."}'
            ) from error
        prompt = row.get("prompt") if isinstance(row, dict) else None
        try:
            prompts.append(checked(prompt, "prompt"))
        except Unusable as error:
            reason = f"it needs a `prompt` field with text ({error})"
            raise DataError(f"eval.general={source}, line {number}: {reason}") from error
    if not prompts:
        raise DataError(f"eval.general={source}: no prompts in it; each line must be an object with a `prompt` field")
    return prompts
