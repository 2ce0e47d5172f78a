"""The models of stage 1 on the cluster: engines that serve a local model, and how a worker reaches each model.

    RefineWorker ── CachedGenerate ──> RefineBooks (kept texts)
                         └─ missing ─> RefineEngine × actors (a local model), or Endpoint (over HTTP, from the worker)

An engine takes one call at a time, and a worker's calls go to one engine of each model, so what a call returns does
not depend on who else calls. Ray starts a dead engine again and repeats the call that it was on.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.cluster import actor_options, here, log_to_file
from raft_ray import models
from raft_ray.announce import announce
from raft_ray.config import Config, RefineModelConfig
from raft_ray.prompts import PromptEncoder
from raft_ray.refine.cache import Cache, CachedGenerate
from raft_ray.refine.generation import Ask, Generate, Generation
from raft_ray.refine.roles import SELF, model_roles, role_models

RESTARTS = 3
"""Of each engine; Ray repeats the call that it died on."""


@dataclass(frozen=True)
class LocalModel:
    """A model that engines of this run serve."""

    name: str
    path: str
    actors: int
    num_cpus: float
    num_gpus: float
    tensor_parallel: int
    context: int | None


def local_models(config: Config) -> list[LocalModel]:
    """The local models that play a role, `self` included. Raises `ConfigError` as `role_models` does."""
    described = role_models(config.refine)
    found = []
    for name in model_roles(config.refine):
        if name == SELF:
            rollout = config.rollout
            found.append(
                LocalModel(
                    name,
                    config.model.path,
                    config.refine.actors,
                    rollout.num_cpus,
                    rollout.num_gpus,
                    rollout.tensor_parallel,
                    config.model.context,
                )
            )
        elif (path := described[name].path) is not None:
            role = described[name]
            found.append(
                LocalModel(name, path, role.actors, role.num_cpus, role.num_gpus, role.tensor_parallel, role.context)
            )
    return found


class RefineEngine:
    """A vLLM engine with a local model, its tokenizer and chat template."""

    def __init__(self, config: Config, model: LocalModel, name: str, run_dir: str) -> None:
        log_to_file(Path(run_dir), name)
        self._name = name
        from dataclasses import replace

        from actors.engine import Engine

        loading = replace(config.model, path=model.path, context=model.context)
        folder = models.resolve(model.path)
        self._context = models.model_context(folder, loading)
        self._tokenizer = models.load_tokenizer(folder, loading)
        self._encoder = PromptEncoder(self._tokenizer, self._context)
        self._engine = Engine(
            folder,
            dtype=config.model.dtype,
            context=self._context,
            kv_cache_gib=config.rollout.kv_cache_gib,
            threads=config.rollout.threads,
            tensor_parallel=model.tensor_parallel,
            gpu_memory_utilization=config.rollout.gpu_memory_utilization,
            trust_remote_code=config.model.trust_remote_code,
            allow_pickle=config.model.allow_pickle,
        )

    def ready(self) -> str:
        """The engine's node."""
        return here()

    def generate(
        self,
        asks: Sequence[Ask],
        temperature: float,
        max_new_tokens: int,
        seed: int,
        schema: dict[str, Any] | None,
    ) -> tuple[list[Generation], float]:
        """As `raft_ray.refine.generation.Generate`, special tokens left out; and the seconds that it took."""
        announce(self._name, "refining")
        start = time.perf_counter()
        prompts = [self._encoder.prompt(ask.chat) for ask in asks]
        fitting = [ids for ids in prompts if len(ids) + max_new_tokens <= self._context]
        completions = iter(
            self._engine.generate(
                fitting, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, schema=schema
            )
            if fitting
            else []
        )
        made = []
        for ids in prompts:
            if len(ids) + max_new_tokens > self._context:
                made.append(Generation("", too_long=True))
                continue
            completion = next(completions)
            text = str(self._tokenizer.decode(completion.token_ids, skip_special_tokens=True))
            made.append(
                Generation(
                    text,
                    completion.truncated,
                    input_tokens=len(ids),
                    output_tokens=len(completion.token_ids),
                )
            )
        return made, time.perf_counter() - start


class RefineBooks:
    """What stage 1 keeps in one place: finished texts (`raft_ray.refine.cache`), counts, and the workers' numbers."""

    def __init__(self, cache: str) -> None:
        self._cache = Cache(Path(cache))
        self._workers = 0
        self._counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def number(self) -> int:
        """A number for a worker that starts: 0, 1, 2, ..."""
        self._workers += 1
        return self._workers - 1

    def find(self, model: str, keys: list[str]) -> dict[str, Generation]:
        """See `Cache.find`; counts hits and misses."""
        found = self._cache.find(keys)
        self.count(model, {"found": len(found), "generated": len(keys) - len(found)})
        return found

    def keep(self, model: str, made: dict[str, Generation]) -> None:
        """See `Cache.keep`; counts tokens."""
        announce("books", "keeping")
        self._cache.keep(made)
        for count in ("input_tokens", "output_tokens"):
            self.count(model, {count: sum(getattr(generation, count) for generation in made.values())})

    def count(self, what: str, counts: dict[str, float]) -> None:
        """Add to the counts of a model, a judge or a stage."""
        for name, value in counts.items():
            self._counts[what][name] += value

    def counts(self) -> dict[str, dict[str, float]]:
        """All counts, by model (or judge or stage) and name."""
        return {name: dict(counts) for name, counts in self._counts.items()}


def identities(config: Config) -> dict[str, str]:
    """`Generate.identity` of the local models, as this node sees them."""
    return {model.name: f"{models.fingerprint(model.path)} {config.model.dtype}" for model in local_models(config)}


def start_engines(config: Config, run_dir: str) -> dict[str, list[Any]]:
    """The engines of all local models, by model; they start side by side, each as its resources are free."""
    import ray

    engines: dict[str, list[Any]] = {}
    for model in local_models(config):
        options = actor_options(
            role="refine",
            num_cpus=model.num_cpus,
            num_gpus=model.num_gpus,
            threads=config.rollout.threads,
            overlapped=config.refine.actors > 1,
        )
        engines[model.name] = [
            ray.remote(RefineEngine)
            .options(**options, max_restarts=RESTARTS, max_task_retries=RESTARTS)
            .remote(config, model, f"refine-{model.name}-{number}", run_dir)
            for number in range(model.actors)
        ]
    return engines


class RemoteGenerate:
    """A `Generate` that asks an engine elsewhere."""

    def __init__(self, identity: str, engine: Any, timeout: float, seconds: dict[str, float], name: str) -> None:
        self.identity = identity
        self._engine = engine
        self._timeout = timeout
        self._seconds = seconds
        self._name = name

    def __call__(
        self,
        asks: Sequence[Ask],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        schema: dict[str, Any] | None = None,
    ) -> list[Generation]:
        import ray

        call = self._engine.generate.remote(list(asks), temperature, max_new_tokens, seed, schema)
        made, seconds = ray.get(call, timeout=self._timeout)
        self._seconds[self._name] += seconds
        generations: list[Generation] = made
        return generations


def connect(
    config: Config,
    engines: dict[str, list[Any]],
    identities: dict[str, str],
    books: Any,
    number: int,
    seconds: dict[str, float],
) -> dict[str, Generate]:
    """How worker `number` reaches each model, by name; every text is kept in `books`.

    Args:
        identities: of the local models, see `Generate.identity`.
        seconds: gets the engines' seconds by model.
    """
    import ray

    described = role_models(config.refine)
    reached: dict[str, Generate] = {}
    # Counted with the workers' own retries: an engine may be dead and start anew in the middle of a call.
    limit = config.rollout.timeout * (1 + RESTARTS)
    for name in model_roles(config.refine):
        generate: Generate
        if name in engines:
            engine = engines[name][number % len(engines[name])]
            generate = RemoteGenerate(identities[name], engine, limit, seconds, name)
        else:
            generate = _endpoint(name, described[name])

        def find(keys: list[str], name: str = name) -> dict[str, Generation]:
            found: dict[str, Generation] = ray.get(books.find.remote(name, keys), timeout=limit)
            return found

        def keep(made: dict[str, Generation], name: str = name) -> None:
            ray.get(books.keep.remote(name, made), timeout=limit)

        reached[name] = CachedGenerate(generate, config.run.seed, find, keep)
    return reached


def _endpoint(name: str, described: RefineModelConfig) -> Generate:
    from raft_ray.refine.endpoint import Endpoint

    return Endpoint(name, described)
