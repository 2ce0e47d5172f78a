"""The program that commands are added to, and what they share: arguments, loading of configs, one-line errors."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raft_ray import __version__
from raft_ray.checks import check
from raft_ray.config import Config, settings
from raft_ray.config.resume import keep_date
from raft_ray.errors import ConfigError, RaftError
from raft_ray.interrupts import interrupts
from raft_ray.printable import one_line, printable
from raft_ray.runs.folders import check_run_dir

_OF_THE_MACHINE = {
    getattr(errno, name) for name in ("EACCES", "EDQUOT", "EFBIG", "ENAMETOOLONG", "ENOSPC", "EPERM", "EROFS")
}
"""What a file system refuses through no fault of the program: full, read-only, not ours, names too long."""
WORK, BEFORE, DURING = "Commands that do the work", "Before a run", "While a run goes on"
"""Where `--help` lists a command."""


class _Commands(TyperGroup):
    """Turns the errors that a user meets into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        with interrupts.heeded():
            try:
                result = super().invoke(ctx)
            except BaseException as error:
                # Whatever was raised after a signal is its consequence.
                if interrupts.received is None and not isinstance(error, KeyboardInterrupt):
                    known = _known(error)
                    if known is None:
                        raise
                    print(f"error: {one_line(str(known))}", file=sys.stderr)
                    raise typer.Exit(known.exit_code) from None
            else:
                if interrupts.received is None:
                    return result
            interrupts.say()
            raise typer.Exit(interrupts.status)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Fine-tune an instruction model on a domain without making it forget (RAFT).\n\n"
        "[bold]Begin with[/bold]\n"
        "  raft-ray doctor       is everything installed that a run needs?\n"
        "  raft-ray run smoke    every part once, in about a minute\n"
        "  raft-ray run demo     a real model, a real domain, and a report\n\n"
        "[bold]Configs[/bold] are presets, YAML files or folders of runs. Keys are set behind them:\n"
        "  raft-ray run raft data.train=train.jsonl learner.lr=1e-5\n"
        "  raft-ray show-config raft --explain    all keys and what they mean"
    ),
)


def command(name: str, panel: str = WORK) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds a function to the program as the command `name`; its docstring is the help."""
    return app.command(name, rich_help_panel=panel)


ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="Preset, YAML file, or the folder of a run.", show_default=True)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys to override, such as learner.lr=1e-5.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run folder.")]
RunDir = Annotated[str | None, typer.Option("--run-dir", metavar="DIR", help="The run folder (run.dir).")]


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"raft-ray {__version__}")
        raise typer.Exit


def load(config: str, overrides: list[str] | None, resume: bool = False, run_dir: str | None = None) -> Config:
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
    loaded = settings.load(config, keys)
    if resume and not any(key.startswith("model.date=") for key in keys):
        keep_date(loaded)
    return loaded


def ready(config: str, overrides: list[str] | None, resume: bool, run_dir: str | None) -> Config:
    """The config of a run that passed all checks which need neither data, model nor cluster."""
    loaded = load(config, overrides, resume, run_dir)
    check(loaded)
    check_run_dir(loaded)
    return loaded


def say(what: str, path: Path) -> None:
    print(printable(f"{what}: {path}"))


def _known(error: BaseException) -> RaftError | None:
    """What of an error is for the user; none of a defect, and of what is no error."""
    # Ray wraps what an actor raised, and keeps the original as `cause`.
    cause = getattr(error, "cause", None)
    known = cause if isinstance(cause, RaftError) else error
    if isinstance(known, OSError) and known.errno in _OF_THE_MACHINE:
        return RaftError(f"{known.filename or 'a file'}: {known.strerror}; see to that, then run this again")
    if isinstance(known, RaftError):
        return known
    if type(error).__module__.partition(".")[0] == "ray":
        # A command that got it has Ray imported.
        from actors.runtime.remote import understood

        return understood(error)
    return None
