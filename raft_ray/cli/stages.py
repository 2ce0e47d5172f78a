"""Commands that do the work: refine, train, compare, and all of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raft_ray.cli.app import ConfigArgument, Overrides, Resume, RunDir, command, ready, say
from raft_ray.errors import ConfigError


@command("run")
def run(
    config: ConfigArgument = "demo", overrides: Overrides = None, resume: Resume = False, run_dir: RunDir = None
) -> None:
    r"""Refine, train, evaluate and report: a whole run, in order.

    Takes the data that the config names, and ends with RUN/report.html.

    [bold]Examples[/bold]
      raft-ray run demo
      raft-ray run raft data.train=train.jsonl data.test=test.jsonl
      raft-ray run demo run.baselines=\[sft,opd] --run-dir runs/three
      raft-ray run runs/three --resume
    """
    checked = ready(config, overrides, resume, run_dir)
    from actors.run import run as run_all

    run_all(checked)


@command("refine")
def refine(
    config: ConfigArgument = "demo",
    overrides: Overrides = None,
    resume: Resume = False,
    run_dir: RunDir = None,
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option("--export", metavar="FORMAT OUT", help="Export the rows as well; see raft-ray export."),
    ] = None,
) -> None:
    """Stage 1 alone: rewrite the answers, filter and fuse them.

    Writes RUN/refined/, which can be trained on later.

    [bold]Examples[/bold]
      raft-ray refine raft data.train=train.jsonl --run-dir runs/refined
      raft-ray train raft data.train=runs/refined/refined
      raft-ray refine demo data.limit=50 refine.tau=0.9 --run-dir runs/tau9
      raft-ray refine demo --export jsonl refined.jsonl
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


@command("export")
def export_refined(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that refined.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new file or folder.")],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="hf, jsonl or parquet.")] = "hf",
) -> None:
    """Write a run's refined rows as a data set for other trainers.

    Each row is a chat that ends with the fused answer. hf is a folder for
    datasets.load_from_disk; jsonl a file for TRL, axolotl or LLaMA-Factory.

    [bold]Examples[/bold]
      raft-ray export runs/refined refined-hf
      raft-ray export runs/refined refined.jsonl --format jsonl
    """
    from raft_ray.refine.export import export as export_rows

    if not run.is_dir():
        raise ConfigError(f"{run}: no such run folder")
    count = export_rows(run / "refined", form, out)
    say(f"exported {count:,} rows", out)


@command("train")
def train(
    config: ConfigArgument = "demo", overrides: Overrides = None, resume: Resume = False, run_dir: RunDir = None
) -> None:
    """Stage 2 alone: train distill.method on the data.

    Writes RUN/model/, which vllm serve loads.

    [bold]Examples[/bold]
      raft-ray train raft data.train=runs/refined/refined --run-dir runs/trained
      raft-ray train sft data.train=train.jsonl learner.max_steps=100
      raft-ray train sft data.train=train.jsonl distill.rehearsal.rows=4
      raft-ray train runs/trained --resume
    """
    checked = ready(config, overrides, resume, run_dir)
    from actors.run import train as train_model

    say("model", train_model(checked))


@command("compare")
def compare(
    config: ConfigArgument = "demo", overrides: Overrides = None, resume: Resume = False, run_dir: RunDir = None
) -> None:
    r"""Train several methods on the same data and compare them.

    Evaluates every model, says what each gained and kept, and writes
    RUN/compare.html.

    [bold]Examples[/bold]
      raft-ray compare demo --run-dir runs/comparison
      raft-ray compare demo compare.methods=\[sft,raft] compare.seeds=\[0,1,2]
      raft-ray compare runs/comparison --resume
    """
    checked = ready(config, overrides, resume, run_dir)
    from actors.compare import compare as compare_methods

    say("comparison", compare_methods(checked))
