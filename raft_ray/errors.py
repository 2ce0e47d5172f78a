"""The errors a user meets, and the exit code each one ends the command line with.

Every message is one clear line that names the key, row, file, actor or node, and the fix. The command
line prints it without a traceback; anything that is not a `RaftError` is a defect and keeps its traceback.
"""

from __future__ import annotations


class RaftError(Exception):
    """A failure during a run that the user can understand: names actor, node and cause. Exit code 1."""

    exit_code = 1


class ConfigError(RaftError):
    """The configuration cannot work (unknown key, wrong type, contradiction, too few resources). Exit code 2."""

    exit_code = 2


class DataError(RaftError):
    """A data set cannot be used (bad row, missing field, empty, unreadable). Exit code 2."""

    exit_code = 2


class ModelError(RaftError):
    """A model folder cannot be used (no tokenizer or chat template, pickled weights, other vocabulary). Exit code 2."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Of what another library says of its failure; the kind of error where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
