"""What a run is doing, for the terminal. Knows nothing about Ray: it draws what `PipelineActor.status` returns."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raft_ray.printable import plain, printable


def status_view(status: dict[str, Any]) -> RenderableType:
    """Progress, actors, queue, rates and advice. `status`: `step, steps, version, last, error, actors, learners, ranks,
    waits_for_room, queue, rates, advice, evaluation, evaluating`."""
    lines: list[RenderableType] = [_progress(status)]
    if status.get("evaluation") or status.get("evaluating"):
        lines.append(_evaluation(status.get("evaluation"), status.get("evaluating")))
    if status["error"]:
        lines.append(Text(printable(f"stopped: {status['error']}"), style="red"))
    if status["actors"] or status["ranks"]:
        lines.append(_actors([*status["actors"], *status["ranks"]]))
    if status["actors"]:
        lines.append(_queue(status["queue"]))
    if status["waits_for_room"]:
        lines.append(Text(f"rollout actors: {status['waits_for_room']}"))
    if status["advice"]:
        lines.append(Text(status["advice"], style="bold"))
    return Group(*lines)


def _progress(status: dict[str, Any]) -> Text:
    text = f"step {status['step']} of {status['steps']}, weights of version {status['version']}"
    text += f", {status['learners']} learner{'s' if status['learners'] != 1 else ''}"
    if rates := status["rates"]:
        text += (
            f": {rates['steps_per_minute']:.1f} steps/min, {rates['rows_per_second']:.2f} rows/s, "
            f"{rates['tokens_per_second']:.0f} tokens/s"
        )
    if (last := status["last"]) and last.get("staleness") is not None:
        text += f", staleness {last['staleness']:.1f} (most {last['staleness_max']})"
    if last and last.get("rehearsal_kl") is not None:
        text += f", rehearsal KL {last['rehearsal_kl']:.3f}"
    if last and last.get("drift_mean") is not None:
        text += f", drift {last['drift_mean']:.3f} nats per token, λ {last['lambda']:.2f}"
    return Text(text)


def _evaluation(last: dict[str, Any] | None, going: dict[str, int] | None) -> Text:
    texts = []
    if last:
        shares = [(name, last["of_base"][name]) for name in ("accuracy", "words", "ifeval")]
        text = f"evaluation of step {last['step']}: accuracy {last['accuracy']:.1%}, drift {last['drift']:.3g}"
        shown = [f"{name} {share:.0%}" for name, share in shares if share is not None]
        texts.append(text + (f" (of the base's: {', '.join(shown)})" if shown and last["step"] else ""))
    if going:
        texts.append(f"evaluates step {going['step']}: {going['done']} of {going['total']} answers")
    return Text("; ".join(texts))


def _actors(actors: list[dict[str, Any]]) -> Table:
    table = Table("actor", "node", "does")
    for name in ("for, s", "version", "rows", "restarts"):
        table.add_column(name, justify="right")
    for actor in actors:
        numbers = [actor.get(key) for key in ("version", "rows", "restarts")]
        table.add_row(
            *(plain(text) for text in (actor["name"], actor.get("node", "-"), actor["state"])),
            f"{actor['seconds']:.0f}",
            *("-" if number is None else str(number) for number in numbers),
        )
    return table


def _queue(queue: dict[str, int]) -> Text:
    used = queue["in_flight"] + queue["ready"]
    text = f"rows: {queue['in_flight']} in flight, {queue['ready']} ready, {used} of {queue['limit']} places taken"
    if queue["came_back"]:
        text += f", {queue['came_back']} came back from a lost actor"
    if queue["quarantined"]:
        text += f", {queue['quarantined']} quarantined (quarantined.jsonl)"
    return Text(text)
