"""Checkpoints in Ray Train's hands: on another number of ranks, after a death in the middle of one, elsewhere."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_files import lines, without_times

from actors.distill.storage import Storage
from actors.runtime.cluster import actor_options
from raft_ray.config import Config
from raft_ray.distill.order import RowOrder
from raft_ray.distill.step import train_step
from raft_ray.distill.student import make_micro_batches
from raft_ray.errors import RaftError
from raft_ray.models import TINY, resolve
from raft_ray.models.prompts import EncodedRow

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(1200)]
MakeConfig = Callable[..., Config]
KEY = bytes(32)
ORDER = RowOrder(rows=4, batch=4, epochs=9, seed=7)


@pytest.fixture(scope="module", autouse=True)
def workers_get_this_module_by_value() -> Iterator[None]:
    """They cannot import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def fit(train: Callable[..., None], arguments: dict[str, Any], ranks: int, storage: Storage, **options: Any) -> None:
    """`train` on a group of workers as the learners are, with restarts and `learner.keep=2`."""
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    environment = actor_options(role="learner", num_cpus=1, num_gpus=0, threads=1, keep_memory=True)["runtime_env"]
    TorchTrainer(
        train,
        train_loop_config={**arguments, "storage": storage, "start": storage.recover(keep=2, key=KEY)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=ranks, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=storage.name,
            storage_path=storage.path,
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env=environment,
            **options,
        ),
    ).fit()


def rows() -> list[EncodedRow]:
    generator = np.random.default_rng(0)
    return [
        EncodedRow(i, generator.integers(3, 400, 5 + i).tolist(), generator.integers(3, 400, 4).tolist(), [5])
        for i in range(4)
    ]


def full_state(engine: Any, stage: int) -> dict[str, torch.Tensor]:
    """The optimizer's weights and moments, gathered from all ranks."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if stage < 3:
        # DeepSpeed itself does this at the first step after a restore.
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    found = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        found[f"{name}.weight"] = safe_get_full_fp32_param(parameter).detach().clone().view(-1)
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"{name}.{key}"] = safe_get_full_optimizer_state(parameter, key).detach().clone().view(-1)
    return found


def summed(values: list[float]) -> list[float]:
    total = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total]


def life(arguments: dict[str, Any]) -> None:
    """What a worker does: go on from the last checkpoint to a step, checkpoint each, and write down what it saw."""
    import ray.train

    from actors.distill.checkpoint import Checkpoints
    from actors.distill.student_engine import make_engine

    config, out, stop = arguments["config"], Path(arguments["out"]), arguments["stop"]
    rank, ranks = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    checkpoints = Checkpoints(arguments["storage"], arguments["start"], config, ORDER, "digest of the rows", KEY)
    engine = make_engine(config, arguments["folder"], universal=checkpoints.universal)
    restored = checkpoints.restore(engine)
    seen: dict[str, Any] = {
        "loaded": None if restored is None else full_state(engine, config.learner.zero_stage),
        "random": None,
    }
    if restored is None:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(100 + rank)
    else:
        seen |= {"step": restored.step, "balancer": restored.balancer, "order": restored.order}
        seen["random"] = (random.random(), np.random.rand(), torch.rand(1).item())
    seen["folders"] = sorted(path.name for path in Path(str(arguments["storage"])).glob("checkpoint_0*"))
    for step in range(restored.step if restored else 0, stop):
        train_step(
            engine,
            make_micro_batches(rows()[rank::ranks], None, total=4, tokens=200, share_prompt=True),
            balancer=None,
            ranks=ranks,
            keep_graph=True,
            reduce=summed,
        )
        if die := arguments.get("die"):
            die(engine, step, rank, out / "died")
        balancer = {"steps": step + 1, "sft": 1 / 3, "kl": 0.1}
        checkpoints.save(engine, step + 1, balancer)
    seen["saved"] = full_state(engine, config.learner.zero_stage)
    torch.save(seen, out / f"{stop}-{rank}.pt")


def assert_equal(found: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("stage", "dtype", "lora", "downloads"),
    [(2, "float32", 0, True), (3, "bfloat16", 0, False), (1, "bfloat16", 4, False), (3, "float32", 4, False)],
)
def test_another_number_of_ranks_takes_up_the_whole_state_bit_for_bit(
    tmp_path: Path, make_config: MakeConfig, stage: int, dtype: str, lora: int, downloads: bool
) -> None:
    """Two ranks, one, two again: fp32 weights and both moments of all that is trained."""
    options: dict[str, Any] = {}
    if downloads:
        # To Ray Train this file system is a remote one.
        from fsspec.implementations.local import LocalFileSystem
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        options["storage_filesystem"] = PyFileSystem(FSSpecHandler(LocalFileSystem()))
    storage = Storage(str(tmp_path), "checkpoints")
    keys = (f"learner.zero_stage={stage}", f"model.dtype={dtype}", f"learner.lora.rank={lora}")
    config = make_config(tmp_path / "run", *keys)
    common = {"config": config, "folder": resolve(TINY), "out": str(tmp_path)}
    for ranks, stop in ((2, 1), (1, 2), (2, 3)):
        fit(life, {**common, "stop": stop}, ranks, storage, **options)

    first, second, third = (torch.load(tmp_path / f"{stop}-0.pt", weights_only=False) for stop in (1, 2, 3))
    assert_equal(second["loaded"], first["saved"])
    assert_equal(third["loaded"], second["saved"])
    assert (second["step"], third["step"]) == (1, 2)
    assert third["balancer"] == {"steps": 2, "sft": 1 / 3, "kl": 0.1}
    assert third["order"] == {"rows": 4, "batch": 4, "seed": 7, "position": 8}


def dies_in_deepspeed(engine: Any, step: int, rank: int, mark: Path) -> None:
    """Rank 1 writes a piece of step 2's checkpoint and is killed, once."""
    if step != 1 or rank != 1 or mark.exists():
        return

    def cut_off(folder: str, tag: str, **_: Any) -> None:
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(b"half")
        mark.write_text(folder)
        os.kill(os.getpid(), signal.SIGKILL)

    engine.save_checkpoint = cut_off


def dies_in_the_upload(engine: Any, step: int, rank: int, mark: Path) -> None:
    """Rank 1 uploads a piece of step 2's checkpoint and is killed, once."""
    if step != 1 or rank != 1 or mark.exists():
        return
    from ray.train.v2._internal.execution.storage import StorageContext

    def cut_off(context: StorageContext, checkpoint: Any, name: str) -> None:
        target = Path(context.build_checkpoint_path_from_name(name)) / "state"
        target.mkdir(parents=True, exist_ok=True)
        (target / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(b"half")
        mark.write_text(checkpoint.path)
        os.kill(os.getpid(), signal.SIGKILL)

    StorageContext.persist_current_checkpoint = cut_off  # type: ignore[method-assign, assignment]


def test_a_rank_killed_in_the_middle_of_a_checkpoint_goes_on_from_the_one_before(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(tmp_path / "run", "learner.zero_stage=2")
    seen: dict[Any, list[dict[str, Any]]] = {}
    for die in (None, dies_in_deepspeed, dies_in_the_upload):
        out = tmp_path / getattr(die, "__name__", "lives")
        out.mkdir()
        storage = Storage(str(out), "checkpoints")
        common = {"config": config, "folder": resolve(TINY), "out": str(out), "stop": 3}
        fit(life, {**common, "die": die}, 2, storage)
        seen[die] = [torch.load(out / f"3-{rank}.pt", weights_only=False) for rank in (0, 1)]
        newest = storage.recover(keep=2, key=KEY)
        assert newest is not None
        assert json.loads(storage.read(newest, "state.json", KEY))["step"] == 3
        assert len(list((out / "checkpoints").glob("checkpoint_0*"))) == 2
        if die:
            # The folder in which the killed rank wrote its part is gone, too.
            assert not Path((out / "died").read_text()).exists()

    whole = seen.pop(None)
    for restarted in seen.values():
        for rank, found in enumerate(restarted):
            assert found["step"] == 1
            assert len(found["folders"]) == 1
            assert_equal(found["saved"], whole[rank]["saved"])
            # Nothing was drawn between the seed and the checkpoint.
            draws = random.Random(100 + rank).random(), np.random.RandomState(100 + rank).rand()
            assert found["random"] == (*draws, torch.rand(1, generator=torch.manual_seed(100 + rank)).item())


def run(config: Config) -> Path:
    from actors.run import train

    return train(config).parent


def metrics(folder: Path) -> list[dict[str, Any]]:
    return without_times(lines(folder / "metrics.jsonl"))


def test_a_run_resumes_from_a_storage_elsewhere(tmp_path: Path, make_config: MakeConfig) -> None:
    sft = ("distill.method=sft", "learner.checkpoint_every=1", f"run.storage=file://{tmp_path}/else%20where")
    whole = run(make_config(tmp_path / "whole", *sft, "learner.max_steps=3"))
    parts = run(make_config(tmp_path / "parts", *sft, "learner.max_steps=2"))
    # What a driver leaves that is killed while it registers: a list cut off, and an upload that nothing lists.
    place = json.loads((parts / "storage.json").read_text())
    folder = Path(place["path"], place["name"])
    assert folder.parent == tmp_path / "else where"
    assert not (parts / "checkpoints").exists()
    snapshot = folder / "checkpoint_manager_snapshot.json"
    snapshot.write_text(snapshot.read_text()[:40])
    (folder / "checkpoint_9999" / "state").mkdir(parents=True)

    run(make_config(tmp_path / "parts", *sft, "learner.max_steps=3", "run.resume=true"))

    assert metrics(parts) == metrics(whole)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2
    weights = [(run_dir / "model" / "model.safetensors").read_bytes() for run_dir in (whole, parts)]
    assert weights[0] == weights[1]


def test_a_run_goes_on_with_fewer_learners_but_not_at_another_zero_stage_or_on_other_rows(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"What is {n}?", "answer": f"It is {n}."}) + "\n" for n in range(12)))
    sft = ("distill.method=sft", "learner.checkpoint_every=1", f"data.train={data}")
    more = (*sft, "learner.max_steps=3", "run.resume=true")
    whole = run(make_config(tmp_path / "whole", *sft, "learner.max_steps=3"))
    for stage in (0, 2):
        two = ("learner.max_steps=2", "learner.num_workers=2", f"learner.zero_stage={stage}")
        folder = run(make_config(tmp_path / f"{stage}", *sft, *two))
        with pytest.raises(RaftError, match=rf"by 2 ranks at ZeRO stage {stage}.*with learner\.zero_stage={stage}"):
            run(make_config(folder, *more, "learner.zero_stage=3"))
        before = data.read_text()
        data.write_text(before.replace("It is 7", "It is 8"))
        with pytest.raises(RaftError, match=r"^data\.train: the model in .* was trained on other rows; put that back"):
            run(make_config(folder, *more, f"learner.zero_stage={stage}"))
        data.write_text(before)

        run(make_config(folder, *more, f"learner.zero_stage={stage}"))

        for found, want in zip(metrics(folder), metrics(whole), strict=True):
            assert found["sft_loss"] == pytest.approx(want["sft_loss"], rel=1e-4)
