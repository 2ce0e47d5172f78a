"""Commands that do the work: refine, train, compare, evaluate, report, and all of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raft_ray.checks import check
from raft_ray.cli.app import ConfigArgument, Overrides, Resume, RunDir, app, load, ready, say
from raft_ray.cli.eval_target import find_target
from raft_ray.errors import ConfigError
from raft_ray.runs.folders import check_run_dir


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
    checked = ready(config, overrides, resume, run_dir)
    from actors.run import run as run_all

    run_all(checked)


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
    checked = ready(config, overrides, resume, run_dir)
    from raft_ray.refine.export import check_export
    from raft_ray.refine.export import export as export_rows

    if export is not None:
        check_export(*export)
    from actors.run import refine as refine_rows

    folder = refine_rows(checked)
    say("refined rows", folder)
    if export is not None:
        export_rows(folder, *export)
        say("exported rows", export[1])


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
    say(f"exported {count:,} rows", out)


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
    checked = ready(config, overrides, resume, run_dir)
    from actors.run import train as train_model

    say("model", train_model(checked))


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
    checked = ready(config, overrides, resume, run_dir)
    from actors.compare import compare as compare_methods

    say("comparison", compare_methods(checked))


@app.command(name="eval")
def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="MODEL|CONFIG", help="Model folder or hub name, run folder, preset or YAML file.")
    ],
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PATH", help="With a CONFIG: the model; by default its run's, or model.path."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="PATH", help="With a MODEL: the model it came from, to measure what it lost."),
    ] = None,
    run_dir: RunDir = None,
) -> None:
    """Measure a model: domain accuracy, IFEval, length; beside its base also drift and distance. Writes eval.json.

    [bold]Examples[/bold]

      raft-ray eval ./my-model                                        a model alone

      raft-ray eval ./my-model --base HuggingFaceTB/SmolLM3-3B data.test=test.jsonl eval.ifeval_rows=50

      raft-ray eval runs/demo                                         the model that this run trained

      raft-ray eval demo --model ./my-model                           another model, with the settings of a preset
    """
    found = find_target(target, model, base)
    loaded = load(found.config, [*found.keys, *(overrides or [])], run_dir=run_dir)
    check(loaded, trains=False)
    if run_dir is None:
        loaded.run.dir = found.run_dir or f"{loaded.run.dir.rstrip('/')}-eval"
    check_run_dir(loaded)
    measured = found.model or loaded.model.path
    if measured != loaded.model.path:  # which the evaluation looks at itself
        from raft_ray import models

        folder = models.resolve(measured)
        models.check_weights(folder, loaded.model)
        models.load_chat(folder, loaded.model)
    from actors.run import evaluate_model

    evaluate_model(loaded, measured, base=loaded.model.path if found.has_base else None)
    say("results", Path(loaded.run.dir) / "eval.json")


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
    say("report", path)
    if (run / "refined").is_dir() and path.with_name(REFINE_REPORT).exists():
        say("report of stage 1", path.with_name(REFINE_REPORT))
