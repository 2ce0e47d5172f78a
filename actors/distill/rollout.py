"""The rollout actor: a vLLM engine that samples the student's trajectories with a known weight version.

Its only state is that version. It serves nothing before it has loaded one, also after a restart, and the
pipeline decides when it takes up a new one: between two chunks, or with `sync.in_flight` between two tokens of one.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.engine.gate import Gate
from actors.engine.vllm_engine import Completion, Engine
from actors.engine.weight_receive import Receiver
from actors.runtime.cluster import here, log_to_file
from raft_ray import models
from raft_ray.announce import announce
from raft_ray.config import Config
from raft_ray.distill.order import SampleId
from raft_ray.distill.trajectory import Chunk, Probe, Trajectory, with_tokens
from raft_ray.errors import RaftError
from raft_ray.models.prompts import EncodedRow


class RolloutActor:
    """Samples trajectories from the student.

    Args:
        config: of the run.
        folder: of the original model, which the engine starts with; the learner's weights replace it before use.
        table: the encoded training rows by row index, as a reference in a list.
        name: of the actor, for logs, traces and errors.
        run_dir: where its log goes.
    """

    def __init__(self, config: Config, folder: str, table: list[ray.ObjectRef], name: str, run_dir: str) -> None:
        log_to_file(Path(run_dir), name)
        self.name = name
        self._config = config
        self._table: dict[int, EncodedRow] = ray.get(table[0], timeout=config.rollout.timeout)
        self._version: int | None = None
        self._gate = Gate()
        self._one = threading.Lock()
        """A chunk that nobody waits for any more, after learners began anew, ends before the next."""
        # The pipeline actor imports this class too, and needs no torch.
        from actors.engine import weight_sync

        weight_sync.register()
        self._engine = Engine(
            folder,
            config.model,
            config.rollout,
            context=models.model_context(folder, config.model),
            weight_sync=weight_sync.ENGINES[config.sync.backend][0],
        )
        self._receiver = Receiver(self._engine, config.sync.checksum, f"{name} on {here()}")

    def ready(self) -> str:
        """The actor's node, once its engine runs and has nothing left to do."""
        with self._one:
            return here()

    def load_weights(self, version: int, ref: list[ray.ObjectRef], checksum: int, probe: Probe | None = None) -> float:
        """Take up a version, verified by its checksum and by the probe; returns the seconds it took.

        Raises `RaftError` for other weights, or for an engine that computes something else with them.

        May be called while `generate` runs (`sync.in_flight`): vLLM pauses meanwhile.
        """
        start = time.perf_counter()
        # Fetched before anything stops: generation goes on meanwhile, and what is lost costs nothing.
        ray.get(ref, timeout=self._config.sync.timeout)
        with self._gate.enter():
            announce(self.name, "loading", version)
            self._version = None
            self._receiver.load(version, ref, checksum)
            if probe is not None:
                self._compare(probe)
            self._version = version
            return time.perf_counter() - start

    # What the learner calls while the pipeline keeps this actor at a chunk boundary (`sync.backend` nccl and ipc).

    def join(self, epoch: int, info: dict[str, Any]) -> None:
        """Enter the learner's weight-sync group `epoch`, as `Receiver.join`."""
        self._receiver.join(epoch, info)

    def start_update(self, version: int, epoch: int) -> None:
        """Open an update; until `finish_update` the actor holds no version. Raises `RaftError`."""
        self._version = None
        self._receiver.start(version, epoch)

    def receive(self, info: dict[str, Any]) -> None:
        """Take in a part of the weights, as `Receiver.receive`."""
        self._receiver.receive(info)

    def finish_update(self, version: int, checksum: int) -> None:
        """Take up the version that has arrived, verified by its checksum. Raises `RaftError`."""
        self._receiver.finish(version, checksum)
        self._version = version

    def generate(self, chunk: Chunk) -> tuple[list[int], list[Trajectory]]:
        """Trajectories for a chunk's rows, as two return values: their lengths, and the trajectories.

        Raises `RaftError` when the actor holds no known version.
        """
        with self._one, self._gate.loop():
            version = self._held()
            announce(self.name, "generating", chunk.step, rows=[sample_id.row for sample_id in chunk.sample_ids])
            rollout = self._config.rollout
            spans = [[(version, 0)] for _ in chunk.sample_ids]

            def between(written: list[int]) -> None:
                if not self._gate.knocked:
                    return
                with self._engine.paused():
                    self._gate.let_in()
                if (now := self._held()) != spans[0][-1][0]:
                    for span, tokens in zip(spans, written, strict=True):
                        span.append((now, tokens))

            completions = self._engine.generate(
                [self._table[sample_id.row].prompt for sample_id in chunk.sample_ids],
                max_new_tokens=rollout.max_new_tokens,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                seed=chunk.seed(self._config.run.seed),
                between=between if self._config.sync.in_flight else None,
            )
        trajectories = [
            self._trajectory(sample_id, completion, span)
            for sample_id, completion, span in zip(chunk.sample_ids, completions, spans, strict=True)
        ]
        return [len(t.token_ids) for t in trajectories], trajectories

    def _trajectory(self, sample_id: SampleId, completion: Completion, spans: list[tuple[int, int]]) -> Trajectory:
        spans = with_tokens(spans, len(completion.token_ids))
        return Trajectory(
            sample_id=sample_id,
            version=spans[0][0],
            token_ids=np.asarray(completion.token_ids, dtype=np.int32),
            truncated=completion.truncated,
            rollout=self.name,
            versions=tuple(spans) if len(spans) > 1 else (),
        )

    def _compare(self, probe: Probe) -> None:
        """The engine finds likely what the learner does: weights can arrive whole and be left out by a kernel."""
        error = probe.error(self._engine.logprobs(probe.prompt, probe.answer))
        if not error <= probe.allowed:
            raise RaftError(
                f"{self.name} on {here()}: with the learner's weights its engine gives other log-probabilities than "
                f"the learner, by {error:.3g} nats per token where rounding makes at most {probe.allowed:g}; vLLM and "
                "transformers compute this architecture differently, so it cannot be trained on-policy"
            )

    def _held(self) -> int:
        if self._version is None:
            raise RaftError(f"{self.name} on {here()}: asked to generate before it was given a weight version")
        return self._version
