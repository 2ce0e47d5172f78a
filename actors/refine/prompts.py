"""The prompts of a training's rehearsal, in its run folder: from a source, or written by the original model itself.

    Sieve <── texts ── CachedGenerate ── EnginePool ── RefineEngine self       batch after batch, until there are enough

For prompts the model is given the opening of a user's turn and nothing else, at temperature 1. With
`distill.rehearsal.kind=replay` or `replay_kl` it then answers them. One engine of stage 1's kind writes both, and stage
1's cache keeps them, for a run that goes on and for all of a comparison's rows; what a batch holds depends on the run's
seed and its number alone (`RefineEngine` forgets prefixes before each).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.refine.cache import RemoteStore, cache_actor
from actors.refine.engines import PooledGenerate, identity, plan_pool
from actors.refine.flow import Progress, engine_pools
from actors.runtime.cluster import here
from raft_ray.config import Config
from raft_ray.config.references import shown
from raft_ray.distill.rehearsal import FILE, Messages, given_prompts, read_prompts, room, with_forms, write_prompts
from raft_ray.distill.sieve import Sieve
from raft_ray.errors import DataError, RaftError
from raft_ray.files import writing
from raft_ray.models.chat import Chat
from raft_ray.refine.cache import CachedGenerate
from raft_ray.refine.embed import make_embedder
from raft_ray.refine.generation import Generate, Request
from raft_ray.refine.roles import SELF
from raft_ray.runs.records import steps_done, write_event

TURN_TOKENS = 256
"""Of a user's turn, at most half of the context."""
PATIENCE = 8
"""Texts asked for, by prompts wanted: of a model that writes less of use, no more is expected."""


def rehearsal_prompts(
    config: Config, chat: Chat, context: int, root: Path, run_dir: Path, progress: Progress
) -> tuple[list[Messages], str]:
    """The prompts in `rehearsal.jsonl` of `run_dir`, which is written first where it is not there, and where they come
    from, in words (blank where they were there). `chat`, `context`: of the original model. `root`: the run folder whose
    cache keeps what the model writes, of which `run_dir` may be a part. `progress`: called with (prompts there, prompts
    wanted). Raises `RaftError` where too few can be had, and where the file has gone from a training that has begun.
    """
    rehearsal, seed = config.distill.rehearsal, config.run.seed
    told = ""
    if not (run_dir / FILE).exists():
        if (run_dir / "model").exists() or steps_done(run_dir):
            raise RaftError(
                f"{run_dir / FILE}: gone, and the training that is there goes on with no other prompts; put it back, "
                "or start anew with another --run-dir"
            )
        writes = rehearsal.prompts == SELF or config.keeps_answers
        models: AbstractContextManager[dict[str, Generate]] = _models(config, root) if writes else nullcontext({})
        with models as generate:
            if rehearsal.prompts == SELF:
                texts, refused = _self_written(config, chat, context, generate[SELF], progress)
                prompts = [[{"role": "user", "content": text}] for text in texts]
                told = f"{len(prompts)} prompts that the model wrote, {refused}"
            else:
                prompts = given_prompts(config, chat, context)
                told = f"{len(prompts)} prompts of {shown(rehearsal.prompts)}"
            lines = with_forms(prompts, rehearsal.forms, seed)
            told += f"; {sum(line['form'] is not None for line in lines)} end with a form"
            if config.keeps_answers:
                lines = _answered(config, lines, generate[SELF], progress)
                told += f"; the model answered them, {sum(line['truncated'] for line in lines)} up to the token limit"
        with writing(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
        write_prompts(run_dir, lines)
        write_event(run_dir, "rehearsal", "driver", here(), told)
    return read_prompts(run_dir, rehearsal.count), told


@contextmanager
def _models(config: Config, root: Path) -> Iterator[dict[str, Generate]]:
    """The original model under its name; it writes nothing twice for a run folder."""
    plan = replace(plan_pool(config, SELF), engines=1)
    with cache_actor(root, "refine") as cache, engine_pools([plan], str(root)) as pools:
        model = PooledGenerate(pools[SELF], identity(config, SELF))
        yield {SELF: CachedGenerate(model, RemoteStore(cache), "rehearsal", scope="rehearsal")}


def _answered(
    config: Config, lines: list[dict[str, Any]], generate: Generate, progress: Progress
) -> list[dict[str, Any]]:
    """The lines with the original model's `answer`, and whether the token limit ended it (`truncated`)."""
    size, answered = config.refine.batch, []
    for start in range(0, len(lines), size):
        progress(start, len(lines))
        part = lines[start : start + size]
        texts = generate(
            [Request(line["messages"], index) for index, line in enumerate(part, start)],
            temperature=config.rollout.temperature,
            max_new_tokens=config.distill.rehearsal.max_new_tokens,
            seed=config.run.seed,
        )
        answered += [
            {**line, "answer": text.text, "truncated": text.truncated} for line, text in zip(part, texts, strict=True)
        ]
    progress(len(lines), len(lines))
    return answered


def _self_written(
    config: Config, chat: Chat, context: int, generate: Generate, progress: Progress
) -> tuple[list[str], str]:
    """`distill.rehearsal.count` prompts, and what was refused beside them, in words."""
    count = config.distill.rehearsal.count
    has_room = room(config, chat, context)

    def fits(text: str) -> bool:
        try:
            return has_room([{"role": "user", "content": text}])
        except DataError:  # It names a marker that the tokenizer cannot write as text.
            return False

    sieve = Sieve(fits, make_embedder(config.refine.embedder).embed)
    asked = 0
    progress(0, count)
    while len(sieve.kept) < count and asked < PATIENCE * count:
        texts = generate(
            [Request([], index) for index in range(asked, asked + config.refine.batch)],
            temperature=1.0,
            max_new_tokens=min(TURN_TOKENS, context // 2),
            seed=config.run.seed,
        )
        sieve.add((text.text, text.truncated) for text in texts)
        asked += len(texts)
        progress(min(count, len(sieve.kept)), count)
    if len(sieve.kept) < count:
        raise RaftError(
            f"distill.rehearsal.count={count}: of {asked} user's turns that {config.model.path} wrote, "
            f"{len(sieve.kept)} can be used, {sieve.summary()}; lower it, or name a file or data set with prompts in "
            "distill.rehearsal.prompts"
        )
    return sieve.kept[:count], sieve.summary()
