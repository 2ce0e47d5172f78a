"""The general prompts: what a model is asked to see whether it still answers as it did before.

Response length and drift are measured on them, so they are about everyday matters and about none of the
shipped domains. Sixty lie in `general_prompts.jsonl` beside this module; `eval.general` names a file to use
instead. Knows nothing about models or about how the answers are judged.
"""

from __future__ import annotations

from pathlib import Path

from raft_ray.data.files import read_all
from raft_ray.data.messages import checked
from raft_ray.errors import DataError
from raft_ray.files import home

_SHIPPED = Path(__file__).with_name("general_prompts.jsonl")


def general_prompts(path: str | None = None) -> list[str]:
    """The prompts in the file's order: the 60 shipped ones, or those of the JSONL file `path` (`eval.general`). Each
    line of the file is an object with a `prompt` string; other fields (`category`) and blank lines are passed over.
    Raises `DataError`, naming file and line, for a file that cannot be read or has no prompts."""
    file = _SHIPPED if path is None else home(path)
    where = f"eval.general={path or file.name}"
    if not file.is_file():
        raise DataError(
            f"{where}: no such file; name a JSONL file with `prompt` fields, or leave the key out for the shipped "
            "prompts"
        )
    needs = 'each line must be an object such as {"prompt": "..."}'
    prompts = list(read_all(file, where, lambda record: checked(record.get("prompt"), "its `prompt`"), needs))
    if not prompts:
        raise DataError(f"{where}: no prompts in it; each line must be an object with a `prompt` field")
    return prompts
