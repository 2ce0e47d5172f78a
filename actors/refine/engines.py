"""Stage 1's local models: pools of vLLM engines, one pool a model, which all workers of all roles share.

    worker ── requests ──> EnginePool ──> RefineEngine refine-NAME-0     one call at a time an engine, so that a call's
    worker ── requests ──>  (a queue)  └> RefineEngine refine-NAME-1     texts depend on its requests and its seed alone

Engines start with the first call: where the cache knows everything, none is needed. One that dies is started again by
Ray, and its call repeated. Knows nothing about rows or prompts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import ray

from actors.runtime.cluster import actor_options, here, log_to_file
from actors.runtime.limits import Limits
from actors.runtime.remote import Hung, patiently, within
from raft_ray.announce import announce
from raft_ray.config import Config, ModelConfig, RolloutConfig
from raft_ray.errors import RaftError
from raft_ray.models import load_chat, model_context, model_identity, resolve, source
from raft_ray.refine.generation import Completion, Request
from raft_ray.refine.roles import SELF, is_local, model_config, models_used

PING = 60.0
"""Seconds within which a pool answers, while its engines may take hours."""


@dataclass(frozen=True)
class PoolPlan:
    """What the engines of one local model are, and what they take."""

    name: str
    """`self`, or a key of `refine.models`."""
    model: ModelConfig
    engines: int
    resources: RolloutConfig
    """Section `rollout`, with what this model's engines ask for."""

    @property
    def key(self) -> str:
        """The config key of the number of engines."""
        return "refine.actors" if self.name == SELF else f"refine.models.{self.name}.actors"


def plan_pool(config: Config, name: str) -> PoolPlan:
    """The engines of a local model as the config describes them."""
    model, own = model_config(config, name), config.rollout
    if name == SELF:
        return PoolPlan(name, model, config.refine.actors, own)
    section = config.refine.models[name]
    own = replace(own, num_cpus=section.num_cpus, num_gpus=section.num_gpus, tensor_parallel=section.tensor_parallel)
    return PoolPlan(name, model, section.actors, own)


def engine_options(plan: PoolPlan, overlapped: bool) -> dict[str, Any]:
    """Resources and process environment of a pool's engines."""
    own = plan.resources
    return actor_options(
        role="refine", num_cpus=own.num_cpus, num_gpus=own.num_gpus, threads=own.threads, overlapped=overlapped
    )


class RefineEngine:
    """An actor: one engine, with the tokenizer and chat template of its model."""

    def __init__(self, plan: PoolPlan, name: str, run_dir: str) -> None:
        log_to_file(Path(run_dir), name)
        self._name = name
        from actors.engine.vllm_engine import Engine

        folder = resolve(source(plan.model), plan.model)
        self._context = model_context(folder, plan.model)
        self._chat = load_chat(folder, plan.model)
        self._engine = Engine(folder, plan.model, plan.resources, context=self._context)

    def ready(self) -> str:
        """Its host."""
        return here()

    def generate(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        schema: dict[str, Any] | None = None,
    ) -> list[Completion]:
        """A text for each request, without special tokens and thinking; see `raft_ray.refine.generation.Generate`.
        Requests without a chat are for user's turns, and come by themselves."""
        announce(self._name, "generating", requests=len(requests))
        asks = not any(request.chat for request in requests)
        opening, end = self._chat.user_turn if asks else ([], 0)
        prompts = [self._chat.prompt(request.chat) if request.chat else opening for request in requests]
        fitting = [ids for ids in prompts if len(ids) + max_new_tokens <= self._context]
        # What the prefix cache holds depends on earlier calls, and what it gives differs in the last bits.
        self._engine.llm.reset_prefix_cache()
        stop_ids = [*self._chat.stop_ids, end] if asks else None
        options: dict[str, Any] = {"temperature": temperature, "seed": seed, "schema": schema, "stop_ids": stop_ids}
        text = self._chat.user_text if asks else self._chat.text
        outputs = iter(self._engine.generate(fitting, max_new_tokens=max_new_tokens, **options) if fitting else [])
        completions = []
        for ids in prompts:
            if len(ids) + max_new_tokens > self._context:
                completions.append(Completion("", too_long=True))
                continue
            output = next(outputs)
            completions.append(
                Completion(
                    text(output.token_ids),
                    truncated=output.truncated,
                    input_tokens=len(ids),
                    output_tokens=len(output.token_ids),
                )
            )
        return completions


@dataclass
class _Engine:
    name: str
    handle: Any
    node: str = "a node unknown"
    trouble: RaftError | None = None
    """Why it never started."""

    @property
    def who(self) -> str:
        return f"RefineEngine {self.name} on {self.node}"


class EnginePool:
    """An asyncio actor: hands calls to whichever engine is free. `options`: of each engine's actor, made where the
    run's environment is known."""

    def __init__(self, plan: PoolPlan, options: dict[str, Any], run_dir: str) -> None:
        self._plan = plan
        self._options = options
        self._run_dir = run_dir
        self._free: asyncio.Queue[_Engine] = asyncio.Queue()
        self._starting: list[asyncio.Task[None]] = []
        self._limits = Limits()

    async def generate(self, requests: Sequence[Request], **options: Any) -> list[Completion]:
        """As `RefineEngine.generate`. Raises `RaftError` naming engine, node and cause when no retry helped."""
        if not self._starting:
            self._starting = [asyncio.create_task(self._start(number)) for number in range(self._plan.engines)]
        engine = await self._free.get()
        try:
            if engine.trouble:
                raise engine.trouble
            return await self._generated(engine, requests, options)
        finally:
            self._free.put_nowait(engine)

    async def _generated(
        self, engine: _Engine, requests: Sequence[Request], options: dict[str, Any]
    ) -> list[Completion]:
        """An engine's answer. One that hangs is killed; Ray starts it again, and repeats the call by itself."""
        own = self._plan.resources
        call = engine.handle.generate.remote(requests, **options)
        limit = self._limits.of("generate", own.timeout, len(requests))
        for attempt in count():
            begun = time.monotonic()
            try:
                completions: list[Completion] = await within(call, limit, engine.who, "generating")
                break
            except Hung as hung:
                ray.kill(engine.handle, no_restart=False)
                if attempt == own.max_failures:
                    raise RaftError(f"{hung}; it was killed and started again {attempt} times") from None
                limit = own.timeout  # now it starts anew first
        self._limits.took("generate", time.monotonic() - begun, len(requests))
        return completions

    async def ping(self) -> None:
        """Says that this process lives, while engines work or wait."""

    async def _start(self, number: int) -> None:
        own = self._plan.resources
        name = f"refine-{self._plan.name}-{number}"
        options = {"max_restarts": own.max_restarts, "max_task_retries": own.max_failures, **self._options}
        actor: Any = ray.remote(RefineEngine)
        arguments = (self._plan, name, self._run_dir)
        try:
            handle = actor.options(name=name, **options).remote(*arguments)
        except ValueError:
            # An engine of before has the name until it has ended.
            handle = actor.options(**options).remote(*arguments)
        engine = _Engine(name, handle)
        try:
            engine.node = await within(handle.ready.remote(), own.timeout, engine.who, "starting")
        except RaftError as error:
            engine.trouble = error
        self._free.put_nowait(engine)


class PooledGenerate:
    """A pool of engines as a `Generate`, in the process of a worker."""

    def __init__(self, pool: Any, identity: str) -> None:
        self.identity = identity
        self._pool = pool

    def __call__(self, requests: Sequence[Request], **options: Any) -> list[Completion]:
        call = self._pool.generate.remote(requests, **options)
        completions: list[Completion] = patiently(call, self._pool.ping.remote, PING, "an EnginePool")
        return completions


def identities(config: Config) -> dict[str, str]:
    """Of the models that have a role, by name: what their texts depend on."""
    return {name: identity(config, name) for name in models_used(config.refine)}


def identity(config: Config, name: str) -> str:
    """What the texts of a model (`self`, or a key of `refine.models`) depend on."""
    if is_local(config.refine, name):
        model = model_config(config, name)
        folder = source(model)
        thinks = " thinking" if model.thinking else ""
        return f"{model_identity(folder)} {model.dtype.value} {model_context(folder, model)}{thinks}"
    remote = config.refine.models[name]
    return f"{remote.base_url} {remote.model}"
