"""What a report reads: the files of a run folder, checked, as plain Python values.

Knows the schemas of docs/design.md and nothing about how they are shown. A file that is not there is `None` or
empty (a run without refinement or evaluation is a run); a file that is there and cannot be understood is a
`RaftError` that names the file, and the line, row or key in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raft_ray.errors import RaftError
from raft_ray.json_files import read_json, read_lines, read_object
from raft_ray.refine.gap import read_gap
from raft_ray.refine.schema import SUMMARY, part_files
from raft_ray.report.refine_facts import Facts, Record, read_facts
from raft_ray.report.words import number
from raft_ray.runs.spans import Span, read_spans
from raft_ray.runs.tracked import EVALUATIONS, read_evaluations

METHOD_ORDER = ("base", "sft", "fapm", "wise", "sdft", "opd")
"""The usual methods from plain to involved; others follow in alphabetical order, `raft` comes last."""

LOSSES = ("loss", "sft_loss", "kl_loss", "lambda", "ce_kl_ratio", "teacher_mass", "student_mass")
ROLLOUTS = ("response_length", "truncated", "staleness", "staleness_max", "tokens")
REHEARSAL = (
    *("rehearsal_kl", "rehearsal_ce", "drift", "drift_mean"),
    *("rehearsal_rows", "rehearsal_length", "rehearsal_truncated"),
)
NUMBERS = ("epoch", *LOSSES, *ROLLOUTS, *REHEARSAL, "lr", "grad_norm", "rows")
"""The keys of a metrics line that hold a number or null."""


@dataclass(frozen=True)
class Run:
    """A run folder's content. `metrics` and `traces` are by method, the main method included."""

    folder: Path
    main: str
    config: dict[str, Any] | None
    metrics: dict[str, list[Record]] = field(default_factory=dict)
    traces: dict[str, list[Record]] = field(default_factory=dict)
    evaluations: dict[str, list[Record]] = field(default_factory=dict)
    """Made while a method trained, by method; those without any are left out."""
    spans: list[Span] = field(default_factory=list)
    """Of the main method; empty if they were not recorded."""
    refined: Facts | None = None
    summary: Record = field(default_factory=dict)
    """What stage 1 left when it finished."""
    gap: Record | None = None
    """The compatibility gap of the refined rows, if it was measured."""
    evaluation: dict[str, Record] | None = None
    """`methods` of eval.json, in `in_order`."""
    finished: datetime | None = None
    """When the newest of the files was written (UTC)."""

    def setting(self, key: str) -> Any:
        """`config.yaml`'s value of a dotted key, or None where it is not there."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def in_order(methods: Iterable[str]) -> list[str]:
    """Method names as every table and figure lists them: base first, `raft` last."""

    def place(name: str) -> tuple[int, str]:
        if name in METHOD_ORDER:
            return METHOD_ORDER.index(name), name
        return (len(METHOD_ORDER) + (name == "raft"), name)

    return sorted(methods, key=place)


def read_run(folder: Path) -> Run:
    """All that the report shows of `folder`. Raises `RaftError` for a folder without a run and for a malformed file."""
    if not folder.is_dir():
        raise RaftError(f"{folder}: no such run folder")
    config = _read_config(folder / "config.yaml")
    evaluation = read_evaluation(folder / "eval.json") if (folder / "eval.json").exists() else None
    bare = Run(folder, "run", config)
    main = str(evaluation["main"] if evaluation else bare.setting("distill.method") or "run")
    folders = {**{path.name: path for path in sorted(folder.glob("methods/*/"))}, main: folder}
    metrics = {name: read_metrics(place / "metrics.jsonl") for name, place in folders.items()}
    traces = {name: _read_trace(place / "trace.jsonl") for name, place in folders.items()}
    parts = part_files(folder / "refined")
    if not (config or evaluation or any(metrics.values()) or parts):
        raise RaftError(
            f"{folder}: not a run folder (no config.yaml, metrics.jsonl, eval.json or refined/*.parquet there)"
        )
    files = [folder / name for name in ("config.yaml", "metrics.jsonl", "eval.json")]
    written = [path.stat().st_mtime for path in [*files, *parts] if path.exists()]
    return replace(
        bare,
        main=main,
        metrics={name: metrics[name] for name in in_order(metrics) if metrics[name]},
        traces=traces,
        evaluations={name: found for name in in_order(folders) if (found := _read_evaluations(folders[name]))},
        spans=read_spans(folder / "spans.jsonl"),
        refined=read_facts(folder / "refined", number(bare.setting("refine.tau"))),
        summary=_read_summary(folder / "refined" / SUMMARY),
        gap=read_gap(folder / "refined"),
        evaluation=evaluation["methods"] if evaluation else None,
        finished=datetime.fromtimestamp(max(written), UTC) if written else None,
    )


def _require(holds: bool, where: str, wanted: str) -> None:
    if not holds:
        raise RaftError(f"{where} must be {wanted}")


def _read_config(path: Path) -> dict[str, Any] | None:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not path.exists():
        return None
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise RaftError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from error
    except UnicodeDecodeError as error:
        raise RaftError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except (OmegaConfBaseException, OSError) as error:
        raise RaftError(f"{path}: not a configuration ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict):
        raise RaftError(f"{path} line 1: expected sections with keys, found {type(config).__name__}")
    return {str(key): value for key, value in config.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_metrics(path: Path) -> list[Record]:
    """A row per step, in order; none without a file. Of a step that a resumed run repeats the last counts."""
    steps: dict[int, Record] = {}
    for where, row in read_lines(path, ["step"]):
        for key in NUMBERS:
            found = row.get(key)
            _require(found is None or _is_number(found), f"{where}: `{key}`", f"a number or null, found {found!r}")
        seconds = row.get("seconds") or {}
        fine = isinstance(seconds, dict) and all(value is None or _is_number(value) for value in seconds.values())
        _require(fine, f"{where}: `seconds`", f"an object of numbers, found {seconds!r}")
        steps[row["step"]] = row
    return [steps[step] for step in sorted(steps)]


def _read_evaluations(folder: Path) -> list[Record]:
    """The evaluations that were made while a method trained, by step."""
    found = read_evaluations(folder)
    for at, line in enumerate(found, start=1):
        where = f"{folder / EVALUATIONS} line {at}"
        shares: Any = line.get("of_base")
        _require(isinstance(shares, dict), f"{where}: `of_base`", f"an object, found {shares!r}")
        for key, value in {**{key: line.get(key) for key in ("accuracy", "drift", "words")}, **shares}.items():
            fine = _is_number(value) or (value is None and key in shares)
            _require(fine, f"{where}: `{key}`", f"a number, found {value!r}")
    return sorted(found, key=lambda line: line["step"])


def _read_trace(path: Path) -> list[Record]:
    found = read_lines(path, ["epoch", "step", "row"])
    for where, row in found:
        version = row.get("version")
        wanted = f"a whole number, found {version!r}; repair or delete it"
        _require(version is None or type(version) is int, f"{where}: `version`", wanted)
    return [row for _, row in found]


def _read_summary(path: Path) -> Record:
    """The counts that stage 1 left when it finished; an empty dictionary before that."""
    summary = read_object(path) if path.exists() else {}
    seconds = summary.get("seconds")
    _require(seconds is None or _is_number(seconds), f"{path} line 1: `seconds`", f"a number, found {seconds!r}")
    return summary


_ANEW = "remove it to measure all models anew"
_FIGURES = {
    "domain": ("accuracy",),
    "ifeval": ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"),
    "open": ("score",),
    "length": ("words_mean", "words_median", "truncated"),
    "drift": ("kl", "kl_first", "top1_agreement"),
    "weight_distance": ("total",),
}


def read_evaluation(path: Path) -> dict[str, Any]:
    """What an evaluation has written to `eval.json`. Raises `RaftError`."""
    value = read_json(path, _ANEW)
    methods = value.get("methods") if isinstance(value, dict) else None
    if not isinstance(methods, dict) or not methods:
        raise RaftError(f"{path} line 1: `methods` must be an object with an entry per method; {_ANEW}")
    main = value.get("main")
    _require(isinstance(main, str), f"{path} line 1: `main`", f"the name of the main method, found {main!r}; {_ANEW}")
    for name, result in methods.items():
        _check_result(f"{path}: methods.{name}", result)
    return {**value, "methods": {name: methods[name] for name in in_order(methods)}}


def _check_result(where: str, result: Any) -> None:
    """Raise `RaftError` unless `result` has the shape of `M` in docs/design.md (any part of it may be null)."""
    if not isinstance(result, dict):
        raise RaftError(f"{where} must be an object, found {result!r}")
    for part, keys in _FIGURES.items():
        value = result.get(part)
        if value is not None:
            _require(isinstance(value, dict), f"{where}.{part}", f"an object or null, found {value!r}")
            for key in keys:
                _require(_is_number(value.get(key)), f"{where}.{part}.{key}", f"a number, found {value.get(key)!r}")
    ifeval = result.get("ifeval") or {}
    _require(
        _is_counted(ifeval.get("kinds") or {}), f"{where}.ifeval.kinds", "objects with `followed`, `n` and `share`"
    )
    _require(_is_tested(ifeval), f"{where}.ifeval", "tested against the base, or not at all")
    layers = (result.get("weight_distance") or {}).get("layers") or {}
    fine = isinstance(layers, dict) and all(map(_is_number, layers.values()))
    _require(fine, f"{where}.weight_distance.layers", "an object of numbers")
    for part, fits, wanted in (
        ("answers", _is_answer, "`prompt` and `answer`"),
        ("general_answers", _is_answer, "`prompt` and `answer`"),
        ("open_answers", _is_open_sample, "a `score` and judged `turns`"),
    ):
        samples = result.get(part) or []
        fine = isinstance(samples, list) and all(map(fits, samples))
        _require(fine, f"{where}.{part}", f"a list of objects with {wanted}")


def _is_counted(kinds: Any) -> bool:
    return isinstance(kinds, dict) and all(
        isinstance(one, dict) and all(_is_number(one.get(key)) for key in ("followed", "n", "share"))
        for one in kinds.values()
    )


def _is_tested(ifeval: Record) -> bool:
    """It has neither interval nor test, as those of older evaluations, or all of both; what cannot be told is null."""
    if ifeval.get("low") is None:
        return ifeval.get("on_base") is None
    told, test = [ifeval.get(f"retention{end}", "") for end in ("", "_low", "_high")], ifeval.get("on_base", "")
    return (
        all(_is_number(ifeval.get(key)) for key in ("low", "high", "n", "samples"))
        and all(value is None or _is_number(value) for value in told)
        and (
            test is None or (isinstance(test, dict) and _is_number(test.get("p")) and _has_mean(test.get("difference")))
        )
    )


def _has_mean(value: Any) -> bool:
    return isinstance(value, dict) and _is_number(value.get("mean"))


def _is_answer(sample: Any) -> bool:
    return isinstance(sample, dict) and "prompt" in sample


def _is_open_sample(sample: Any) -> bool:
    """It has a score, and of each turn what was asked and what each judge says."""
    return (
        isinstance(sample, dict)
        and _is_number(sample.get("score"))
        and isinstance(turns := sample.get("turns"), list)
        and all(_is_answer(turn) and _is_judged(turn.get("judges")) for turn in turns)
    )


def _is_judged(judges: Any) -> bool:
    return isinstance(judges, dict) and all(
        isinstance(said, dict) and "reason" in said and (said.get("score") is None or _is_number(said["score"]))
        for said in judges.values()
    )
