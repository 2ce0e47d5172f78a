"""`raft-ray show-prompts`: what student, teacher and rewriter read for a training row, and the ids around the joins."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from raft_ray.checks import check
from raft_ray.cli.app import BEFORE, ConfigArgument, Overrides, command, load
from raft_ray.config import Config
from raft_ray.errors import ConfigError
from raft_ray.printable import plain

if TYPE_CHECKING:
    from raft_ray.models.prompts import EncodedRow, PromptEncoder

_AROUND = 6
"""Tokens shown on each side of a join."""


@command("show-prompts", BEFORE)
def show_prompts(
    config: ConfigArgument = "demo",
    overrides: Overrides = None,
    row: Annotated[int, typer.Option("--row", min=0, help="Index of the training row.")] = 0,
) -> None:
    """Print what the models read for one training row.

    What student, teacher and rewriter read, token for token.

    [bold]Examples[/bold]
      raft-ray show-prompts demo --row 7
      raft-ray show-prompts raft data.train=train.jsonl teacher.template=my.txt
    """
    loaded = load(config, overrides)
    check(loaded)
    print_prompts(loaded, row, Console())


def print_prompts(config: Config, row: int, console: Console) -> None:
    """Takes the row's fused answer where the file has one, else its gold answer. Raises as `preflight` does."""
    from raft_ray import models
    from raft_ray.preflight import encode, make_encoder, preflight
    from raft_ray.refine.roles import is_local, load_prompts, model_config, rewrite_chat

    prepared = preflight(config)
    if not 0 <= row < len(prepared.train):
        raise ConfigError(f"--row {row}: the training set has rows 0 to {len(prepared.train) - 1}")
    chosen = prepared.train[row]
    chosen = replace(chosen, fused=chosen.fused or chosen.answer)
    encoder = make_encoder(config, models.load_chat(prepared.folder, config.model))
    encoded, _ = encode(config, prepared.folder, [chosen])
    print_row(encoder, encoded[row], console)
    if not config.refine.enabled:
        return
    name = config.refine.rewriter
    asked = rewrite_chat(load_prompts(config.refine).rewrite, chosen.messages, chosen.prompt, chosen.answer)
    if is_local(config.refine, name):
        model = model_config(config, name)
        chat = models.load_chat(models.source(model), model)
        ids = chat.prompt(asked)
        title, text = f"[bold]rewriter ({name})[/] reads {len(ids)} tokens", str(chat.tokenizer.decode(ids))
    else:
        title, text = (
            f"[bold]rewriter ({name}, by its own chat template)[/]",
            "\n".join(f"{each['role']}: {each['content']}" for each in asked),
        )
    console.rule(title, align="left")
    console.print(plain(text), highlight=False)


def print_row(encoder: PromptEncoder, row: EncodedRow, console: Console) -> None:
    """Print what student and teacher read for a row, and the ids on both sides of the joins."""

    def decode(ids: list[int]) -> str:
        return str(encoder.tokenizer.decode(ids))

    parts = [("student", row.prompt)]
    if row.teacher_prompt:
        parts.append(("teacher", row.teacher_prompt))
    for name, prompt in parts:
        console.rule(f"[bold]{name}[/] reads {len(prompt)} tokens, then the response", align="left")
        console.print(plain(decode(prompt)), highlight=False, end="")
        console.print(f"[green]{plain(decode(row.answer))}[/]", highlight=False)
        console.print("\n[bold]The join[/], as id:token")
        for label, ids, style in (
            ("prompt ends", prompt[-_AROUND:], "yellow"),
            ("response begins", row.answer[:_AROUND], "green"),
        ):
            cells = "  ".join(f"{i}:{decode([i])!r}" for i in ids)
            console.print(f"[dim]{label:>15}[/]  [{style}]{plain(cells)}[/]", highlight=False)
        console.print()
    end = repr(decode(row.answer[-1:]))
    console.print(
        f"The answer has {len(row.answer)} tokens and ends with id {row.answer[-1]:d} ({plain(end)}). "
        "In training the response is what the student samples; the teacher gets the same ids.",
        highlight=False,
    )
    console.print(plain(encoder.chat.summary()), highlight=False)
    if difference := encoder.chat.difference():
        console.print(f"[yellow]{plain(difference)}[/]", highlight=False)
