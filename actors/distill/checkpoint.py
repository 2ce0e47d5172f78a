"""A checkpoint: what it holds, how it is written and loaded, also by another number of ranks.

```
 checkpoint_TIME/state/...          DeepSpeed's files: what is trained, optimizer, and every rank's shard under ZeRO
                 state.json         step, λ's averages, place in the rows' order, number of ranks, ZeRO stage; rank 0's
                 random-R.pt        random states of rank R
                 part-R.json        what rank R has written, under the run's seal (`actors.distill.seal`)
```

The same number of ranks goes on bit for bit. Another number does so to rounding: without ZeRO every rank holds
everything; with it, DeepSpeed's universal checkpoint, made on the fly from the shards, is cut anew.

Who waits for whom: all ranks save and restore together. On restore, the first rank of each node copies the checkpoint
into a folder of its own, checking the seal of every file on the way, and the others of its node wait for it. Nothing is
unpickled that was not sealed. A rank that dies in between takes the group with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray.train
import torch

from actors.distill.seal import seal
from actors.distill.storage import Storage
from raft_ray.announce import announce
from raft_ray.config import Config
from raft_ray.config.resume import changes, deciding
from raft_ray.distill.order import RowOrder
from raft_ray.errors import RaftError
from raft_ray.files import writing

_logger = logging.getLogger(__name__)

STATE = "state.json"
_TAG = "state"
"""DeepSpeed's name for the checkpoint, its folder in ours."""


@dataclass(frozen=True)
class State:
    """What a checkpoint holds beside DeepSpeed's state and the random states."""

    step: int
    """Optimizer steps done."""
    balancer: dict[str, float]
    """λ's averages."""
    ranks: int
    zero_stage: int
    order: dict[str, int]
    """`RowOrder.done`: with the step, which rows are trained and which come next. Versions are counted in steps."""
    digest: str
    """`rows_digest` of the training set."""
    settings: dict[str, Any]
    """`resume.deciding`: the values that decide what model comes out."""

    def check_settings(self, config: Config) -> str | None:
        """Refuse keys that decide the model and have changed since, or name them where `run.allow_changes` allows it.
        Raises `RaftError`."""
        changed = "; ".join(changes(self.settings, deciding(config)))
        if not changed:
            return None
        if not config.run.allow_changes:
            raise RaftError(
                f"{changed}: not what the run's checkpoint of step {self.step} was made with; resume with the old "
                "values, set run.allow_changes=true to go on with the new ones, or start anew with another --run-dir"
            )
        return f"from step {self.step} on with {changed}"

    def check(self, ranks: int, zero_stage: int, order: RowOrder, digest: str) -> None:
        """Refuse what these ranks cannot load whole, another training set, and a shorter run. Raises `RaftError`."""
        if self.step > order.steps:
            raise RaftError(
                f"learner.max_steps: the run's newest checkpoint is of step {self.step}, the run would end after "
                f"{order.steps}; resume with as many steps, or start anew with another --run-dir"
            )
        place = order.done(self.step)
        if digest != self.digest or place | {"position": 0} != self.order | {"position": 0}:
            also = " or, in rehearsal.jsonl, its prompts are other ones" if order.rehearsal else ""
            raise RaftError(
                f"data.train: its {order.rows} rows are not the {self.order['rows']} that the run's checkpoint of step "
                f"{self.step} was trained on, in their order{also}; put them back, or start anew with another --run-dir"
            )
        if place != self.order:
            raise RaftError(
                f"learner.epochs: the run's checkpoint of step {self.step} ends with a short batch, after "
                f"{self.order['position']} rows; going on from there would leave out the {place['position']}th row and "
                "others before it; start anew with another --run-dir"
            )
        if zero_stage != self.zero_stage:
            raise RaftError(
                f"learner.zero_stage={zero_stage}: the run's checkpoint of step {self.step} was written by "
                f"{self.ranks} ranks at ZeRO stage {self.zero_stage}, now {ranks} would read it at stage "
                f"{zero_stage}; resume with learner.zero_stage={self.zero_stage}"
            )


def check_resumable(
    storage: Storage, key: bytes, config: Config, order: RowOrder, digest: str
) -> tuple[str | None, int]:
    """What the driver does before a run's actors start: clear up the storage, and refuse a checkpoint that its learners
    could not load. Returns the checkpoint to go on from and its step; none and 0 without one. Raises `RaftError`; see
    `Storage.recover` and `State.check`."""
    if not (name := storage.recover(config.learner.keep, key)):
        return None, 0
    state = read_state(storage, name, key)
    state.check_settings(config)
    state.check(config.learner.num_workers, config.learner.zero_stage, order, digest)
    return name, state.step


class Checkpoints:
    """The checkpoints of a run as one rank of the learners sees them; made by all ranks together.

    Args:
        start: the checkpoint from which the driver goes on, if there is one; after a restart of the learners the last
            one that they reported takes its place.
        order, digest: of the rows that the run trains on (`rows_digest`).
        key: of the run's seal.

    Raises `RaftError` when the checkpoint to go on from cannot be loaded whole.
    """

    def __init__(
        self, storage: Storage, start: str | None, config: Config, order: RowOrder, digest: str, key: bytes
    ) -> None:
        context = ray.train.get_context()
        self._storage, self._key = storage, key
        self._settings = deciding(config)
        self._order, self._digest = order, digest
        self._rank, self._ranks = context.get_world_rank(), context.get_world_size()
        self._node, self._first = context.get_node_rank(), context.get_local_rank() == 0
        self._zero_stage, self._keep = config.learner.zero_stage, config.learner.keep
        # Weights beside an adapter are the original model's.
        self._adapter_alone = config.learner.lora.rank > 0
        # Names the temporary folders of this run on every node, so that those of a killed process can be found.
        self._prefix = f"raft-ray-{hashlib.sha256(str(storage).encode()).hexdigest()[:12]}-"
        reported = ray.train.get_checkpoint()
        self._name = Path(reported.path).name if reported is not None else start
        self._state: State | None = None
        if self._name is not None:
            self._state = read_state(storage, self._name, key)
            self._state.check(self._ranks, self._zero_stage, order, digest)
        self._sweep()

    @property
    def universal(self) -> bool:
        """`restore` needs an engine that loads DeepSpeed's universal checkpoints: the shards are to be cut anew."""
        return self._state is not None and self._state.ranks != self._ranks and self._zero_stage > 0

    def save(self, engine: Any, step: int, balancer: dict[str, float]) -> None:
        """Write a checkpoint to the storage; all ranks. It is registered when rank 0's call returns.

        Args:
            engine: of DeepSpeed.
            step: optimizer steps done.
            balancer: λ's averages.
        """
        place = self._order.done(step)
        state = State(step, balancer, self._ranks, self._zero_stage, place, self._digest, self._settings)
        with self._folder() as folder:
            with _writing(folder):
                torch.save(_random_states(engine.device), folder / f"random-{self._rank}.pt")
                engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=self._adapter_alone)
                if self._rank == 0:
                    (folder / STATE).write_text(json.dumps(asdict(state)))
                seal(folder, self._key, step=step, rank=self._rank, ranks=self._ranks)
            announce(f"learner-{self._rank}", "checkpoint", step)
            # Returns when this rank's part is uploaded. Ray Train's controller registers the checkpoint when it has
            # seen every rank's report, which it asks for now and then: a rank that died before would undo it.
            with writing(f"checkpoint in {self._storage}"):
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report({"step": step}, checkpoint, checkpoint_dir_name=self._storage.name_of(step))
        if self._rank == 0:
            reported = ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
            self._storage.register(Path(reported[-1].checkpoint.path).name, self._keep)

    def restore(self, engine: Any) -> State | None:
        """Load the last checkpoint into the engine and the random generators; None without one. All ranks. On another
        number of ranks the random states are left as they are: each belongs to a share of the rows that no rank has any
        more. Raises `RaftError` when a file is not what was sealed, or DeepSpeed cannot convert or load it."""
        if self._state is None:
            return None
        with self._readable() as (folder, shards):
            engine.checkpoint_engine.load = _load_weights_only
            loaded, _ = engine.load_checkpoint(str(shards), tag=_TAG, load_module_strict=not self._adapter_alone)
            if loaded is None:
                raise RaftError(f"checkpoint {self._storage}/{self._name}: DeepSpeed finds no state in it")
            if self._state.ranks == self._ranks:
                states = torch.load(folder / f"random-{self._rank}.pt", weights_only=True)
                _set_random_states(states, engine.device)
            else:
                _logger.warning("%d ranks go on from %d: random states start anew", self._ranks, self._state.ranks)
        return self._state

    @contextlib.contextmanager
    def _readable(self) -> Iterator[tuple[Path, Path]]:
        """The checkpoint in a folder of this node, and the folder that holds DeepSpeed's state for these ranks."""
        assert self._name is not None
        with contextlib.ExitStack() as stack:
            mine: tuple[Path, Path] | None = None
            if self._first:
                folder = stack.enter_context(self._folder())
                self._storage.fetch(self._name, self._key, folder)
                shards = folder
                if self.universal:
                    shards = stack.enter_context(self._folder())
                    self._convert(folder / _TAG, shards / _TAG)
                mine = (folder, shards)
            offers: list[Any] = [None] * self._ranks
            torch.distributed.all_gather_object(offers, (self._node, mine))
            yield next(paths for node, paths in offers if node == self._node and paths)
            # Nobody's folder goes while another rank reads it.
            torch.distributed.barrier()

    def _convert(self, source: Path, target: Path) -> None:
        """DeepSpeed's universal checkpoint of the shards in `source`."""
        from deepspeed.checkpoint import ds_to_universal

        assert self._state is not None
        options = SimpleNamespace(
            input_folder=str(source),
            output_folder=str(target),
            # One process each: forking more from one that runs Ray and torch threads is not safe.
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            # DeepSpeed writes what only Megatron's models need in place of the state that ours lacks.
            inject_missing_state=True,
        )
        try:
            with contextlib.redirect_stdout(sys.stderr):
                ds_to_universal.main(options)
        except Exception as error:
            raise RaftError(
                f"learner.num_workers={self._ranks}: the checkpoint of step {self._state.step}, written by "
                f"{self._state.ranks} ranks at ZeRO stage {self._state.zero_stage}, cannot be converted "
                f"({type(error).__name__}: {error}); resume with learner.num_workers={self._state.ranks}"
            ) from error

    def _sweep(self) -> None:
        """Delete what a process that was killed has left: here and in the storage."""
        if self._first:
            for rest in Path(tempfile.gettempdir()).glob(f"{self._prefix}*"):
                if rest.stat().st_uid == os.getuid():  # not another user's, whose run may go on
                    shutil.rmtree(rest)
        if self._rank == 0:
            self._storage.register(self._name, self._keep)
        # No rank makes a new folder before the old ones are gone.
        torch.distributed.barrier()

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=self._prefix) as folder:
            yield Path(folder)


def read_state(storage: Storage, name: str, key: bytes) -> State:
    """What a checkpoint says of itself. Raises `RaftError` where it cannot be read."""
    try:
        return State(**json.loads(storage.read(name, STATE, key)))
    except TypeError as error:
        raise RaftError(
            f"checkpoint {storage}/{name}: written by another version of raft-ray; go on with that, or start a new run "
            "with --run-dir"
        ) from error


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """As `writing`. Torch raises RuntimeError for a failed write, as do its collectives where a rank has died."""
    with writing(folder):
        try:
            yield
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error):
                raise
            raise OSError(f"torch could not write it all: {str(error).splitlines()[0]}") from error


def _load_weights_only(path: str, map_location: Any = None) -> Any:
    """A file of DeepSpeed's, in place of its own reader, which unpickles whatever is there."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location=map_location, weights_only=True)


def _random_states(device: torch.device) -> dict[str, Any]:
    """Of Python, numpy and torch in this process, in types that `torch.load` reads without unpickling code."""
    kind, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: dict[str, Any], device: torch.device) -> None:
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
