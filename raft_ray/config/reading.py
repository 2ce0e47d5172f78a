"""Reads a preset or YAML file plus `key=value` overrides into a `Config`, and writes one back.

A file may name another to start from: `extends: NAME`. Keys are set one at a time, so that every error can name
its key, what the key takes, and the nearest key there is. Whether the values make sense together is
`checks`' business; this module knows nothing about models, data, Ray or run folders.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationValidationError,
    OmegaConfBaseException,
)

import raft_ray
from raft_ray.config import Config
from raft_ray.config.precision import settle
from raft_ray.config.references import check_no_credentials, shown, with_references
from raft_ray.errors import ConfigError
from raft_ray.files import write_whole

MISSING = "???"
"""The value of a key that has none yet (`data.train`)."""

_KEY = re.compile(r"[A-Za-z_][\w-]{0,63}")
_ENTRY_NAME = re.compile(r"[A-Za-z_][\w-]*")


def configs_dir() -> Path:
    """The folder of presets and `prompts/`: in the installed package, or at the top of the checkout."""
    package = Path(raft_ray.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def presets() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(path.stem for path in configs_dir().glob("*.yaml"))


def load(preset_or_path: str, overrides: list[str] | None = None) -> Config:
    """The config of a preset, YAML file or run folder, with `key=value` overrides applied last.

    What came from the environment (`${oc.env:NAME}`) is there resolved, as a `raft_ray.config.references.Reference`.

    Keys without a value keep `MISSING`; `raft_ray.config.settings.check` refuses those that a run needs.
    Raises `ConfigError`: one line that names file, key, what the key takes and the nearest valid name.
    """
    config = OmegaConf.structured(Config)
    for path in _chain(find(preset_or_path)):
        _apply(config, _read(path), f"{path}: ")
    for override in overrides or []:
        _apply(config, _parse(override), "")
    made = _resolve(config)
    check_no_credentials(flatten(made))
    settle(made)
    return made


def load_saved(path: str | Path) -> Config:
    """The config that `save` wrote to `path`. Raises `ConfigError`."""
    return load(str(path))


def save(config: Config, path: str | Path) -> None:
    """Write all keys of `config` to the YAML file `path`; what came from the environment as its reference."""
    write_whole(Path(path), to_yaml(config))


def to_yaml(config: Config) -> str:
    """All keys of `config` as YAML, which `load` reads back; what came from the environment as its reference."""
    return OmegaConf.to_yaml(OmegaConf.structured(shown(config)))


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> value, of all keys."""
    return {key: _value(config, key) for key in keys()}


def flatten_shown(config: Config) -> dict[str, Any]:
    """Dotted key -> value as it is written and compared: references for what came from the environment."""
    return flatten(shown(config))


@cache
def keys() -> dict[str, Any]:
    """Dotted key -> type, of all keys that can be set."""
    return dict(_leaves(Config, ""))


def for_method(config: Config, method: str) -> Config:
    """`config` as it is for training `method` as a baseline: its `run.overrides` applied, its own target.

    Raises `ConfigError` if those overrides have unknown keys or wrong types.
    """
    baseline = OmegaConf.create(OmegaConf.structured(shown(config)))
    OmegaConf.update(baseline, "run.baselines", [], merge=False)
    OmegaConf.update(baseline, "run.overrides", {}, merge=False)
    OmegaConf.update(baseline, "distill.method", method)
    OmegaConf.update(baseline, "distill.target", "auto")
    _apply(baseline, shown(config.run.overrides.get(method) or {}), f"run.overrides.{method}: ")
    return _resolve(baseline)


def nearest(word: str, possible: list[str]) -> str:
    """`; did you mean X?`, or nothing if no name is near `word`."""
    match = difflib.get_close_matches(word, possible, n=1, cutoff=0.6)
    return f"; did you mean {match[0]}?" if match else ""


def find(preset_or_path: str) -> Path:
    """The YAML file that `preset_or_path` names. Raises `ConfigError`."""
    path = Path(preset_or_path)
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    preset = configs_dir() / f"{preset_or_path}.yaml"
    if "/" not in preset_or_path and preset.is_file():
        return preset
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{path}: a folder without a config.yaml; name a preset, a YAML file or a run folder")
    if path.suffix in (".yaml", ".yml") or "/" in preset_or_path:
        raise ConfigError(f"{path}: no such config file")
    hint = nearest(preset_or_path, presets())
    raise ConfigError(f"no preset is called {preset_or_path}{hint} (presets: {', '.join(presets())})")


def _chain(path: Path) -> list[Path]:
    """`path` and the files that it extends, the outermost base first."""
    chain: list[Path] = []
    while True:
        if path.resolve() in [seen.resolve() for seen in chain]:
            names = " -> ".join(seen.name for seen in [*chain, path])
            raise ConfigError(f"{chain[0]}: extends goes round in a circle ({names})")
        chain.append(path)
        base = _read(path, with_extends=True).get("extends")
        if base is None:
            return chain[::-1]
        if not isinstance(base, str):
            raise ConfigError(f"{path}: extends takes the name of one preset or YAML file")
        beside = path.parent / base
        try:
            path = beside if beside.is_file() else find(base)
        except ConfigError as error:
            raise ConfigError(f"{path}: extends: {error}") from error


def _read(path: Path, with_extends: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file, without `extends` unless asked for."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_yaml_problem(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply; a config has sections with keys in them") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold sections such as `learner:` with keys in them")
    # A name that is none may be the content of some other file, which is nobody's to print.
    if not all(isinstance(key, str) and _KEY.fullmatch(key) for key in content) or None in content.values():
        _check_keys(path)
    return {str(key): value for key, value in content.items() if with_extends or key != "extends"}


def _check_keys(path: Path) -> None:
    """Refuse a YAML file that has something other than keys at its top, by the line."""
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    at_top = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else [node] if node else []
    for key in at_top:
        if not (isinstance(node, yaml.MappingNode) and _KEY.fullmatch(str(key.value))):
            line = key.start_mark.line + 1
            raise ConfigError(f"{path}: not a config: line {line} is no `key:` with a value or keys below it")


def _parse(override: str) -> dict[str, Any]:
    """`learner.lr=1e-4` -> `{"learner": {"lr": 1e-4}}`."""
    key, equals, _ = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{override}: not an override; write key=value, such as learner.lr=1e-4")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([override]), resolve=False)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override}: the value is not valid YAML: {_yaml_problem(error, where=False)}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{override}: {_first_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{override[:40]}...: nested too deeply") from error
    assert isinstance(parsed, dict)
    return {str(name): value for name, value in parsed.items()}


def _apply(config: DictConfig, values: dict[str, Any], where: str, prefix: str = "") -> None:
    """Set every leaf of `values` in `config`; `where` opens the error message."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in keys():
            _set(config, key, value, where)
        elif not any(known.startswith(f"{key}.") for known in keys()):
            unknown = key
            while isinstance(value, dict) and value:
                name, value = next(iter(value.items()))
                unknown += f".{name}"
            raise ConfigError(f"{where}unknown key {unknown}{_nearest_key(unknown)}")
        elif isinstance(value, dict):
            _apply(config, value, where, f"{key}.")
        elif value is not None:  # `learner:` with all its keys commented out sets nothing
            inside = next(known for known in keys() if known.startswith(f"{key}."))
            raise ConfigError(f"{where}{key} is a section, not a key; set a key in it, such as {inside}")


def _set(config: DictConfig, key: str, value: Any, where: str) -> None:
    kind = keys()[key]
    if entry := entry_type(kind):
        _set_entries(config, key, entry, value, where)
    else:
        _set_value(config, key, kind, value, where)


def _set_entries(config: DictConfig, key: str, entry: type, value: Any, where: str) -> None:
    """Set keys inside a mapping of names to sections of one kind, such as `refine.models`; others stay."""
    kinds = dict(_leaves(entry, ""))
    if not isinstance(value, dict):
        raise ConfigError(f"{where}{key}={value}: takes {_takes(keys()[key])}")
    for name, section in value.items():
        inside = f"{key}.{name}"
        if not _ENTRY_NAME.fullmatch(str(name)):
            raise ConfigError(f"{where}{inside}: a name has letters, digits, - and _ only, and begins with no digit")
        if not isinstance(section, dict):
            raise ConfigError(f"{where}{inside}={section}: takes keys, such as {{{next(iter(kinds))}: ...}}")
        parent = OmegaConf.select(config, key)
        if name not in parent:
            parent[name] = entry()
        for inner, each in section.items():
            if inner not in kinds:
                hint = nearest(str(inner), list(kinds)) or f"; there are {', '.join(kinds)}"
                raise ConfigError(f"{where}unknown key {inside}.{inner}{hint}")
            _set_value(config, f"{inside}.{inner}", kinds[inner], each, where)


def _set_value(config: DictConfig, key: str, kind: Any, value: Any, where: str) -> None:
    if isinstance(value, dict) and kind != dict[str, Any]:
        inner = next(iter(value), "")
        raise ConfigError(f"{where}unknown key {key}.{inner}; {key} takes {_takes(kind)}")
    # OmegaConf takes any number for true, and a boolean (which YAML makes of `no`) for text.
    number_for_bool = kind is bool and isinstance(value, int | float) and not isinstance(value, bool)
    bool_for_text = kind in (str, str | None) and isinstance(value, bool)
    if number_for_bool or bool_for_text:
        raise ConfigError(f"{where}{key}={value}: takes {_takes(kind)}")
    try:
        OmegaConf.update(config, key, value, merge=True)
    except OmegaConfBaseException as error:
        hint = nearest(str(value), _enum(kind))
        shown = "null" if value is None else value
        detail = f" ({_first_line(error)})" if "${" in str(value) else ""
        raise ConfigError(f"{where}{key}={shown}: takes {_takes(kind)}{hint}{detail}") from error


def _resolve(config: DictConfig) -> Config:
    """Interpolations (`${run.seed}`, `${oc.env:HOME}`) filled in, as a `Config`."""
    missing = [key for key in keys() if OmegaConf.is_missing(*_parent(config, key))]
    for key in missing:
        OmegaConf.update(config, key, "")
    try:
        made = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', '')}: {_without_value(error)}") from error
    assert isinstance(made, Config)
    made = with_references(made, OmegaConf.to_container(config, resolve=False))
    for key in missing:
        section, _, name = key.rpartition(".")
        setattr(_value(made, section), name, MISSING)
    return made


def _parent(config: DictConfig, key: str) -> tuple[Any, str]:
    section, _, name = key.rpartition(".")
    return OmegaConf.select(config, section), name


def _value(config: Config, key: str) -> Any:
    return attrgetter(key)(config)


def entry_type(kind: Any) -> type | None:
    """Of a key that maps names to sections of one kind: that kind. None for every other key."""
    inner = get_args(kind)[1] if get_origin(kind) is dict else None
    return inner if isinstance(inner, type) and is_dataclass(inner) else None


def _leaves(section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    types = get_type_hints(section)
    for each in fields(section):
        kind = types[each.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from _leaves(kind, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", kind


def _nearest_key(key: str) -> str:
    """A hint for an unknown key: one much like it, else a longer name of its section, else keys of that name in other
    sections, else the nearest."""
    section, _, name = key.rpartition(".")
    deeper = [known for known in keys() if known.startswith(f"{section}.") and known.count(".") > key.count(".")]
    if begins := [known for known in deeper if name.startswith(known.rpartition(".")[2])]:
        return f"; did you mean {max(begins, key=len)}?"
    if "." in key and (much_like := difflib.get_close_matches(key, keys(), n=1, cutoff=0.8)):
        return f"; did you mean {much_like[0]}?"
    if longer := [known for known in keys() if _is_longer(known, section, name)]:
        return f"; did you mean {min(longer, key=len)}?"
    namesakes = [known for known in keys() if known.split(".")[-1] == key.split(".")[-1]]
    if namesakes:
        return f"; did you mean {' or '.join(namesakes)}?"
    sections = sorted({known.split(".")[0] for known in keys()})
    return nearest(key, [*keys(), *sections]) or f"; sections are {', '.join(sections)}"


def _is_longer(known: str, section: str, name: str) -> bool:
    """`distil.temp` is short for `distill.temperature`, `learner.batch` for `learner.global_batch_size`."""
    own, _, whole = known.rpartition(".")
    return len(name) > 2 and name in whole and bool(difflib.get_close_matches(section, [own], cutoff=0.8))


def _enum(kind: Any) -> list[str]:
    """Allowed values of an enum type; none of another."""
    return [member.name for member in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def _takes(kind: Any) -> str:
    """What a key of this type takes, in words."""
    if get_origin(kind) in (UnionType, Union):
        inner = next(each for each in get_args(kind) if each is not NoneType)
        return f"{_takes(inner)}, or null"
    if allowed := _enum(kind):
        return f"one of {', '.join(allowed)}"
    if get_origin(kind) is list:
        return "a list, such as [a, b]"
    if entry := entry_type(kind):
        return f"a mapping from names to sections, such as {{mine: {{{next(iter(dict(_leaves(entry, ''))))}: ...}}}}"
    if get_origin(kind) is dict:
        return "a mapping, such as {sft: {learner: {lr: 1e-4}}}"
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Any: "text, or a list of texts",
    }[kind]


def _yaml_problem(error: yaml.YAMLError, where: bool = True) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or _first_line(error)
    return f"{what} in line {mark.line + 1}, column {mark.column + 1}" if mark and where else str(what)


def _without_value(error: Exception) -> str:
    """What is wrong with a reference; a value from the environment that does not fit its key may be a secret."""
    kinds = (InterpolationKeyError, InterpolationResolutionError)
    if isinstance(error, kinds) and not isinstance(error, InterpolationValidationError):
        return _first_line(error)
    return "the value that its reference stands for is not of the kind that the key takes"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
