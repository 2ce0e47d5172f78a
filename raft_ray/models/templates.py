"""Prompt files: text with literal fields such as `{prompt}` and `{answer}`.

Knows nothing about chat templates, tokens or what the text is for. Fields are replaced literally, in one pass:
what a user's row contains (braces, other field names) is never read as a template.
"""

from __future__ import annotations

import hashlib
import re

from raft_ray.config.settings import configs_dir
from raft_ray.errors import ConfigError
from raft_ray.files import home


def load_prompt(name_or_path: str, fields: tuple[str, ...], key: str) -> str:
    """The text of a prompt file, without the line break at its end: of a name under `configs/prompts/` (without `.txt`)
    or the path of a file, which the config's `key` names. Raises `ConfigError` for a file that does not exist or cannot
    be read, and where one of `fields` is missing in it as `{name}`."""
    path, elsewhere = home(name_or_path), ""
    if not ("/" in name_or_path or "\\" in name_or_path or name_or_path.endswith(".txt")):
        folder = configs_dir() / "prompts"
        path = folder / f"{name_or_path}.txt"
        there = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
        elsewhere = f" in {folder}; there: {there}; or give a path"
    if not path.is_file():
        raise ConfigError(f"{key}={name_or_path}: no such prompt file{elsewhere}")
    try:
        text = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}={name_or_path}: the prompt file {path} cannot be read ({error})") from error
    missing = [f"{{{name}}}" for name in fields if f"{{{name}}}" not in text]
    if missing:
        raise ConfigError(
            f"{key}={name_or_path}: the prompt file {path} lacks {' and '.join(missing)}; write it where it belongs"
        )
    return text


def fill(template: str, **values: str) -> str:
    """`template` with every `{name}` of `values` replaced by its value; all other text stays as it is."""
    if not values:
        return template
    pattern = re.compile("{(" + "|".join(map(re.escape, values)) + ")}")
    return pattern.sub(lambda match: values[match.group(1)], template)


def literals(template: str, fields: tuple[str, ...]) -> list[str]:
    """The template's own words: its lines cut at the fields, stripped, empty pieces left out."""
    pieces = re.split("{(?:" + "|".join(map(re.escape, fields)) + ")}|\n", template)
    return [piece.strip() for piece in pieces if piece.strip()]


def prompt_hash(text: str) -> str:
    """Tells prompts apart in a record of what was made with them: the text's SHA-256, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
