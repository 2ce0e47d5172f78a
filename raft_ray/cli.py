"""The command line: reads the config, refuses what cannot work, hands over to `actors`, and ends with an exit code.

Every error that a user can mend is one line on stderr; only defects show a traceback. Exit codes: 0 done,
1 the run failed (or `doctor` found a fault), 2 config, data or model cannot be used, 130 interrupted.
Ray, vLLM and torch are imported inside the commands that need them, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from typer.core import TyperGroup

from raft_ray import __version__, settings
from raft_ray.config import Config
from raft_ray.errors import ConfigError, RaftError

INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns the errors that a user meets into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted; go on with --resume", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            # Ray wraps what an actor raised, and keeps the original as `cause`.
            cause = getattr(error, "cause", None)
            known = cause if isinstance(cause, RaftError) else error
            if not isinstance(known, RaftError):
                raise
            print(f"error: {_one_line(known)}", file=sys.stderr)
            raise typer.Exit(known.exit_code) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Fine-tune an instruction model on a domain without making it forget everything else (RAFT).\n\n"
        "[bold]Begin with[/bold]\n\n"
        "  raft-ray doctor       is everything installed that a run needs?\n\n"
        "  raft-ray run smoke    every part once, in about a minute\n\n"
        "  raft-ray run demo     a real model, a real domain, and a report\n\n"
        "[bold]Configs[/bold] are presets or YAML files; any key can be overridden behind them as key=value: "
        "raft-ray run raft data.train=train.jsonl learner.lr=1e-5. All keys: raft-ray show-config."
    ),
)

ConfigArgument = Annotated[
    str, typer.Argument(metavar="[CONFIG]", help="Preset, YAML file, or the folder of a run.", show_default=True)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys to override, such as learner.lr=1e-5.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run folder.")]
RunDir = Annotated[str | None, typer.Option("--run-dir", metavar="DIR", help="The run folder (run.dir).")]


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"raft-ray {__version__}")
        raise typer.Exit


@app.command()
def run(
    config: ConfigArgument = "demo", overrides: Overrides = None, resume: Resume = False, run_dir: RunDir = None
) -> None:
    r"""Refine, train, evaluate and report: everything, from the data to report.html.

    [bold]Examples[/bold]

      raft-ray run demo

      raft-ray run raft data.train=train.jsonl data.test=test.jsonl model.path=./my-model

      raft-ray run demo run.baselines=\[sft,opd] --run-dir runs/three-methods

      raft-ray run runs/three-methods --resume
    """
    ready = _ready(config, overrides, resume, run_dir)
    from actors.run import run as run_all

    run_all(ready)


@app.command()
def refine(
    config: ConfigArgument = "demo",
    overrides: Overrides = None,
    resume: Resume = False,
    run_dir: RunDir = None,
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            "--export", metavar="FORMAT OUT", help="Export the rows as well: hf DIR, jsonl FILE, parquet FILE."
        ),
    ] = None,
) -> None:
    """Stage 1 only: rewrite the answers, filter and fuse them. Writes RUN/refined/.

    [bold]Examples[/bold]

      raft-ray refine raft data.train=train.jsonl --run-dir runs/refined

      raft-ray refine demo data.limit=50 refine.tau=0.9 --run-dir runs/tau9

      raft-ray refine raft data.train=train.jsonl --run-dir runs/refined --export hf runs/refined-hf

    The refined rows can be trained on later: raft-ray train raft data.train=runs/refined/refined
    """
    ready = _ready(config, overrides, resume, run_dir)
    from raft_ray.refine.export import check_export
    from raft_ray.refine.export import export as export_rows

    if export is not None:
        check_export(*export)
    from actors.run import refine as refine_rows

    folder = refine_rows(ready)
    _say("refined rows", folder)
    if export is not None:
        export_rows(folder, *export)
        _say("exported rows", export[1])


@app.command(name="export")
def export_refined(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that refined.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new file or folder.")],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="hf, jsonl or parquet.")] = "hf",
) -> None:
    """Write a run's refined rows as a data set that other trainers read: chats that end with the fused answer.

    [bold]Examples[/bold]

      raft-ray export runs/refined refined-hf                     for datasets.load_from_disk

      raft-ray export runs/refined refined.jsonl --format jsonl   for TRL, axolotl, LLaMA-Factory
    """
    from raft_ray.refine.export import export as export_rows

    if not run.is_dir():
        raise ConfigError(f"{run}: no such run folder")
    count = export_rows(run / "refined", form, out)
    _say(f"exported {count:,} rows", out)


@app.command()
def train(
    config: ConfigArgument = "demo", overrides: Overrides = None, resume: Resume = False, run_dir: RunDir = None
) -> None:
    """Stage 2 only: train distill.method on the data. Writes RUN/model/, which vllm serve loads.

    [bold]Examples[/bold]

      raft-ray train raft data.train=runs/refined/refined --run-dir runs/trained

      raft-ray train sft data.train=train.jsonl learner.max_steps=100

      raft-ray train runs/trained --resume
    """
    ready = _ready(config, overrides, resume, run_dir)
    from actors.run import train as train_model

    _say("model", train_model(ready))


@app.command()
def compare(
    config: ConfigArgument = "demo", overrides: Overrides = None, resume: Resume = False, run_dir: RunDir = None
) -> None:
    r"""Train every method on the same data, evaluate all, and say what each gained and kept. Writes RUN/compare.html.

    [bold]Examples[/bold]

      raft-ray compare demo --run-dir runs/comparison

      raft-ray compare demo compare.methods=\[sft,raft] compare.seeds=\[0,1,2]

      raft-ray compare runs/comparison --resume
    """
    ready = _ready(config, overrides, resume, run_dir)
    from actors.compare import compare as compare_methods

    _say("comparison", compare_methods(ready))


@app.command(name="eval")
def evaluate(
    config: ConfigArgument = "demo",
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PATH", help="The model; by default that of the run folder, or model.path."),
    ] = None,
    run_dir: RunDir = None,
) -> None:
    """Measure one model beside the base: domain accuracy, IFEval, length, drift. Writes RUN-eval/eval.json.

    [bold]Examples[/bold]

      raft-ray eval demo                        the untouched base model

      raft-ray eval runs/demo                   the model that this run trained

      raft-ray eval demo --model ./my-model eval.ifeval_rows=50
    """
    loaded = _load(config, overrides, run_dir=run_dir)
    settings.check(loaded)
    trained = Path(config) / "model"
    if model is None:
        model = str(trained) if trained.is_dir() else loaded.model.path
    if run_dir is None:
        # Beside the run folder: a run's own eval.json compares all of its methods, and must not be overwritten.
        loaded.run.dir = f"{loaded.run.dir.rstrip('/')}-eval"
    if not Path(loaded.run.dir).exists():
        settings.check_run_dir(loaded)
    from raft_ray import models

    models.load_tokenizer(models.resolve(model), loaded.model)
    from actors.run import evaluate as measure

    measure(loaded, model)
    _say("results", Path(loaded.run.dir) / "eval.json")


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]) -> None:
    """Write RUN/report.html anew from the files in the run folder, and RUN/refine_report.html for stage 1.

    [bold]Example[/bold]

      raft-ray report runs/demo
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run folder")
    from raft_ray.report import REFINE_REPORT, write_report

    path = write_report(run)
    _say("report", path)
    if (run / "refined").is_dir() and path.with_name(REFINE_REPORT).exists():
        _say("report of stage 1", path.with_name(REFINE_REPORT))


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that is going on.")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="Its Ray cluster, if not the one on record in the folder."),
]


@app.command()
def status(
    run: RunFolder,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a run is doing: actors, versions, queue, rates, and which role holds the others up.

    [bold]Examples[/bold]

      raft-ray status runs/demo

      watch raft-ray status runs/demo
    """
    from actors.attach import status as ask

    found = ask(run.absolute(), address)
    if as_json:
        print(json.dumps(found))
        return
    from raft_ray.status import status_view

    Console().print(status_view(found))


@app.command()
def scale(
    run: RunFolder,
    rollouts: Annotated[int, typer.Option("--rollouts", metavar="N", min=1, help="Rollout actors from now on.")],
    address: Address = None,
) -> None:
    """Add or remove rollout actors of a run while it goes on; its learners do not pause.

    New actors start where the cluster has room, also on nodes that have just joined; superfluous ones leave after the
    chunk that they are on. The policy of rollout.min_actors and rollout.max_actors is switched off by it.

    [bold]Example[/bold]

      raft-ray scale runs/demo --rollouts 4
    """
    from actors.attach import scale as resize

    before = resize(run.absolute(), rollouts, address)
    print(f"rollout actors: {before} -> {rollouts}")


@app.command()
def show_config(
    config: ConfigArgument = "demo",
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what every key means.")] = False,
) -> None:
    """Print all keys with the values that a run would have. The output is itself a config file.

    [bold]Examples[/bold]

      raft-ray show-config raft --explain

      raft-ray show-config cluster learner.workers=16 > mine.yaml
    """
    loaded = _load(config, overrides)
    text = settings.explained(loaded) if explain else settings.to_yaml(loaded)
    if sys.stdout.isatty():
        Console().print(Syntax(text, "yaml", background_color="default"))
    else:
        print(text, end="")


@app.command()
def show_prompts(
    config: ConfigArgument = "demo",
    overrides: Overrides = None,
    row: Annotated[int, typer.Option("--row", min=0, help="Index of the training row.")] = 0,
) -> None:
    """Print what student, teacher and rewriter read for one training row, token for token.

    [bold]Examples[/bold]

      raft-ray show-prompts demo --row 7

      raft-ray show-prompts raft data.train=train.jsonl teacher.template=my-teacher.txt
    """
    loaded = _load(config, overrides)
    settings.check(loaded)
    from raft_ray import preflight

    preflight.show_prompts(loaded, row, Console())


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Option("--model", metavar="PATH", help="Check this model folder as well.")
    ] = None,
) -> None:
    """Check this machine: versions, memory, GPUs, packages, Ray's token. Exit code 1 if something must be mended.

    [bold]Examples[/bold]

      raft-ray doctor

      raft-ray doctor --model ./my-model
    """
    from raft_ray.doctor import Verdict, examine

    table = Table("", "what", "found", "fix")
    findings = examine(model)
    colours = {Verdict.ok: "green", Verdict.warn: "yellow", Verdict.fail: "red"}
    for finding in findings:
        table.add_row(
            f"[{colours[finding.verdict]}]{finding.verdict.value}[/]", finding.what, finding.found, finding.fix
        )
    Console().print(table)
    if any(finding.verdict is Verdict.fail for finding in findings):
        raise typer.Exit(1)


def _load(config: str, overrides: list[str] | None, resume: bool = False, run_dir: str | None = None) -> Config:
    if "=" in config and not Path(config).exists():
        raise ConfigError(f"{config}: name a preset or YAML file before the overrides, such as demo {config}")
    keys = list(overrides or [])
    if (Path(config) / "config.yaml").is_file():
        # A run may have been moved or copied, and resumed, since its config was written.
        keys = [f"run.dir={json.dumps(config)}", "run.resume=false", *keys]
    if run_dir is not None:
        keys.append(f"run.dir={json.dumps(run_dir)}")
    if resume:
        keys.append("run.resume=true")
    return settings.load(config, keys)


def _ready(config: str, overrides: list[str] | None, resume: bool, run_dir: str | None) -> Config:
    """The config of a run that passed all checks which need neither data, model nor cluster."""
    loaded = _load(config, overrides, resume, run_dir)
    settings.check(loaded)
    settings.check_run_dir(loaded)
    return loaded


def _say(what: str, path: Path) -> None:
    print(f"{what}: {path}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
