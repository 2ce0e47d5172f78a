"""Reads a preset or YAML file plus `key=value` overrides into a `Config`, and writes one back.

A file may name another to start from: `extends: NAME`. OmegaConf reads and resolves (`${run.seed}`,
`${oc.env:HOME}`), pydantic makes the `Config`, and `refusals` says what it refuses. Whether the values make sense
together is for `checks`; this module knows nothing about models, data, Ray or run folders.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import raft_ray
from raft_ray.config import Balance, Config, Method, Target, TeacherPlace
from raft_ray.config.keys import is_section, keys, nearest, type_at
from raft_ray.config.precision import settle
from raft_ray.config.references import check_no_credentials, keep_references, shown
from raft_ray.config.refusals import number_for_boolean, refusal, wrong
from raft_ray.errors import ConfigError, first_line
from raft_ray.files import write_whole

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MISSING = "???"
"""The value of a key that has none yet (`data.train`)."""

_KEY = re.compile(r"[A-Za-z_][\w-]{0,63}")

_Layer = tuple[str, dict[str, Any]]
"""Where values come from, as it opens an error message, and the values."""


def configs_dir() -> Path:
    """The folder of presets and `prompts/`: in the installed package, or at the top of the checkout."""
    package = Path(raft_ray.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def presets() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(path.stem for path in configs_dir().glob("*.yaml"))


def load(preset_or_path: str, overrides: list[str] | None = None) -> Config:
    """The config of a preset, YAML file or run folder, with `key=value` overrides applied last. What came from the
    environment (`${oc.env:NAME}`) is there resolved, as a `raft_ray.config.references.Reference`. Keys without a value
    keep `MISSING`; `raft_ray.config.checks.check` refuses those that a run needs. Raises `ConfigError`: one line that
    names file, key, what the key takes and the nearest valid name."""
    made = make(Config(), [*_files(_find(preset_or_path)), *(("", _parse(each)) for each in overrides or [])])
    settle(made)
    return made


def save(config: Config, path: str | Path) -> None:
    """Write all keys of `config` to the YAML file `path`; what came from the environment as its reference."""
    write_whole(Path(path), to_yaml(config))


def to_yaml(config: Config) -> str:
    """All keys of `config` as YAML, which `load` reads back; what came from the environment as its reference."""
    return OmegaConf.to_yaml(OmegaConf.create(shown(config)))


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> value as it is written and compared: references for what came from the environment."""
    return {key: shown(attrgetter(key)(config)) for key in keys()}


def for_method(config: Config, method: str) -> Config:
    """`config` as it is for training `method` as a baseline: its `run.overrides` applied, its own target. Another
    method than the config's own rehearses, keeps a drift budget, and has a teacher that it does not need in the
    learners, only where its overrides say so. Raises `ConfigError` if those overrides have unknown keys or wrong
    values."""
    distill = replace(config.distill, method=Method(method), target=Target.auto)
    if distill.method is not config.distill.method:
        balance = Balance.ema if distill.balance is Balance.budget else distill.balance
        distill = replace(distill, balance=balance, rehearsal=replace(distill.rehearsal, rows=0))
    baseline = replace(config, run=replace(config.run, baselines=[], overrides={}), distill=distill)
    if not baseline.uses_rollouts:
        baseline = replace(baseline, teacher=replace(config.teacher, place=TeacherPlace.own))
    return make(baseline, [(f"run.overrides.{method}: ", shown(config.run.overrides.get(method) or {}))])


def make(below: Config, layers: list[_Layer]) -> Config:
    """`below` with the values of `layers`, later ones over earlier, resolved and validated. Raises `ConfigError` for
    the first value that pydantic refuses, with the layer that it came from."""
    from pydantic import ValidationError

    raw = shown(below)
    for _, values in layers:
        raw = _merged(raw, values, ())

    def where(path: tuple[Any, ...]) -> str:
        return next((where for where, values in reversed(layers) if _sets(values, path)), "")

    resolved: Any
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{where(tuple(key.split('.')))}{key}: {first_line(error)}") from error
    check_no_credentials(resolved)
    if path := number_for_boolean(resolved):
        raise ConfigError(f"{where(path)}{wrong(path, raw)}")
    try:
        made: Config = _adapter().validate_python(resolved)
    except ValidationError as error:
        path, said = refusal(error.errors(include_url=False)[0], raw)
        raise ConfigError(f"{where(path)}{said}") from error
    keep_references(made, raw)
    return made


@cache
def _adapter() -> TypeAdapter[Config]:
    # Importing a section does not load it.
    from pydantic import TypeAdapter

    return TypeAdapter(Config)


def _merged(below: dict[str, Any], above: dict[Any, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The values of `above` over those of `below`; a section with all its keys commented out sets nothing."""
    merged = dict(below)
    for name, value in ((str(name), value) for name, value in above.items()):
        old = below.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[name] = _merged(old, value, (*path, name))
        elif not (value is None and isinstance(old, dict) and is_section(type_at((*path, name)))):
            merged[name] = value
    return merged


def _sets(values: Any, path: tuple[Any, ...]) -> bool:
    """Whether a layer has a value at `path`, or one around it."""
    for name in path:
        if not isinstance(values, dict):
            return True
        if name not in values:
            return False
        values = values[name]
    return True


def _find(preset_or_path: str) -> Path:
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


def _files(path: Path) -> list[_Layer]:
    """What is in `path` and in the files that it extends, the outermost base first."""
    layers: list[_Layer] = []
    seen: list[Path] = []
    while True:
        seen.append(path)
        if path.resolve() in [other.resolve() for other in seen[:-1]]:
            names = " -> ".join(other.name for other in seen)
            raise ConfigError(f"{seen[0]}: extends goes round in a circle ({names})")
        content = _read(path)
        base = content.pop("extends", None)
        layers.insert(0, (f"{path}: ", content))
        if base is None:
            return layers
        if not isinstance(base, str):
            raise ConfigError(f"{path}: extends takes the name of one preset or YAML file")
        beside = path.parent / base
        try:
            path = beside if beside.is_file() else _find(base)
        except ConfigError as error:
            raise ConfigError(f"{path}: extends: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_yaml_problem(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply; a config has sections with keys in them") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold sections such as `learner:` with keys in them")
    # A name that is none may be the content of some other file, which is nobody's to print.
    if not all(isinstance(key, str) and _KEY.fullmatch(key) for key in content) or None in content.values():
        _check_keys(path)
    return {str(key): value for key, value in content.items()}


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
        raise ConfigError(f"{override}: {first_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{override[:40]}...: nested too deeply") from error
    assert isinstance(parsed, dict)
    return {str(name): value for name, value in parsed.items()}


def _yaml_problem(error: yaml.YAMLError, where: bool = True) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or first_line(error)
    return f"{what} in line {mark.line + 1}, column {mark.column + 1}" if mark and where else str(what)
