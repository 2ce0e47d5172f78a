"""What a rank does step by step, among stand-ins for Ray, DeepSpeed and the pipeline: in which order, and with what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.distill import learner
from actors.engine.weight_sync import WeightVersion
from raft_ray.config import settings
from raft_ray.distill.order import RowOrder, SampleId
from raft_ray.distill.step import StepLosses
from raft_ray.distill.trajectory import Sample, Trajectory
from raft_ray.models.prompts import EncodedRow

TABLE = {row: EncodedRow(row, [1, 2], [3, 4], [5]) for row in range(6)}
TEACHER = np.zeros((2, 4), np.int32), np.zeros((2, 4), np.float16)
SAMPLE = Sample(Trajectory(SampleId(0, 0), 0, np.array([6, 7], np.int32), False, "rollout-0"), *TEACHER)


class Run:
    """A rank on its own, from the checkpoint of step `start` if there is one; `said` is what it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, start: int, *keys: str) -> None:
        self.said: list[Any] = []
        self.weights: list[WeightVersion] = []
        self.published: list[dict[str, Any]] = []
        self.lost = method == "raft"
        order = RowOrder(rows=6, batch=2, epochs=1, seed=0)
        parameter = torch.zeros(1)
        student = SimpleNamespace(model=None, topk_mass=[], parameters=lambda: iter([parameter]))
        engine = SimpleNamespace(
            module=student, optimizer=SimpleNamespace(param_groups=[{}]), get_global_grad_norm=lambda: 2.0
        )
        restored = SimpleNamespace(step=start, balancer={"steps": start, "sft": 1.0, "kl": 1.0}) if start else None
        self.publisher = SimpleNamespace(
            push=None,
            offer=lambda version: self.say("offer", version),
            pack=lambda version: self.say("pack", version),
            publish=lambda version: self.say("push", version),
        )
        pipeline = {
            name: SimpleNamespace(remote=getattr(self, f"_{name}"))
            for name in ("begin", "next_batch", "publish", "regenerated", "scored")
        }
        pipeline["lost"] = pipeline.pop("regenerated")
        pipeline["checkpoint_key"] = SimpleNamespace(remote=lambda: bytes(32))
        checkpoints = SimpleNamespace(
            universal=False,
            restore=lambda _: restored,
            save=lambda _, step, balancer: self.say("save", step),
        )
        ready = {
            "Checkpoints": lambda *_: checkpoints,
            "make_engine": lambda *_, **__: engine,
            "Publisher": lambda *_: self.publisher,
            "may_share_prompts": lambda *_: (True, None),
            "make_probe": lambda *_: "probe",
            "BaseTeacher": lambda *_: SimpleNamespace(score=self._score),
            "adapter_tensors": lambda *_: [],
            "adapter_files": lambda *_: {},
            "train_step": self._train_step,
            "export_model": SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._export)),
            "on_node": lambda *_: {},
        }
        for name, stand_in in ready.items():
            monkeypatch.setattr(learner, name, stand_in)
        monkeypatch.setattr("raft_ray.models.vocabulary_size", lambda *_: 4)
        for name in ("all_reduce", "barrier"):
            monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
        monkeypatch.setattr(ray, "get", self._get)
        config = settings.load("smoke", ["data.train=train.jsonl", f"distill.method={method}", *keys])
        self.sample: Any = "a rollout batch" if config.learners_score else SAMPLE
        self.has_adapter = config.learner.lora.rank > 0
        task: Any = SimpleNamespace(
            config=config,
            folder="model",
            table=[TABLE],
            pipeline=SimpleNamespace(**pipeline),
            order=order,
            digest="",
            run_dir="run",
            node="node",
            storage=None,
            start=None,
            trained=None,
        )
        learner.Rank(task, 0, 1).run()

    def say(self, what: str, number: int) -> WeightVersion:
        self.said.append((what, number))
        return WeightVersion(number, f"weights {number}", 7, 100)

    def _get(self, value: Any, timeout: float) -> Any:
        if value == "gone":
            raise ray.exceptions.ObjectLostError("", "", "")
        return [SAMPLE.trajectory] if value == "a rollout batch" else value

    def _begin(self, weights: WeightVersion, table: Any) -> None:
        self.said.append(("begin", weights))

    def _next_batch(self, step: int, rank: int, ranks: int) -> list[Any]:
        samples = [["gone"] if self.lost else [self.sample], [self.sample]]
        return [(SAMPLE.trajectory.info, samples[index], 2 * step + index) for index in range(2)]

    def _score(self, rows: list[Any]) -> Any:
        given = [unscored for _, (unscored,) in rows]
        assert {unscored.sample_id for unscored in given} == {SampleId(0, 0)}
        # Rows of a rollout batch are known by it.
        assert len({id(unscored.trajectories) for unscored in given}) == 1
        self.said.append(("score", [row.row for row, _ in rows]))
        return [(row, [SAMPLE]) for row, _ in rows], [SAMPLE.info(0.5)]

    def _scored(self, step: int, rank: int, infos: list[Any]) -> None:
        self.said.append(("scored", step, [info.teacher_mass for info in infos]))

    def _regenerated(self, step: int, rows: list[int]) -> None:
        self.lost = False
        self.said.append(("lost", step, rows))

    def _publish(self, weights: WeightVersion, metrics: dict[str, Any]) -> None:
        self.said.append(("publish", weights.version))
        self.weights.append(weights)
        self.published.append(metrics)

    def _train_step(self, engine: Any, batches: Any, *, balancer: Any, reduce: Any, on_gradients: Any, **_: Any) -> Any:
        assert reduce([1.0, 2.0]) == [1.0, 2.0]
        on_gradients()
        engine.module.topk_mass += [(0.25, 3), (0.75, 1)]
        return StepLosses(3.0, 1.0, 2.0, 1.0) if balancer else StepLosses(1.0, 1.0, None, None)

    def _export(
        self, config: Any, folder: str, weights: WeightVersion, target: str, trained: Any, adapter: Any
    ) -> None:
        assert (adapter is None) is not self.has_adapter
        self.said.append(("export", weights.packed))


def test_each_step_is_published_before_it_is_checkpointed_and_the_last_one_is_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, "raft", 0, "learner.checkpoint_every=2")
    assert run.said == [
        ("offer", 0),
        ("begin", WeightVersion(0, "weights 0", 7, 100, "probe")),
        ("lost", 0, [0]),
        ("push", 1),
        ("publish", 1),
        ("push", 2),
        ("publish", 2),
        ("save", 2),
        ("pack", 3),
        ("publish", 3),
        ("save", 3),
        ("export", "weights 3"),
    ]
    metrics = run.published[0]
    assert {key: metrics[key] for key in ("loss", "lambda", "ce_kl_ratio", "student_mass", "grad_norm")} == {
        "loss": 3.0,
        "lambda": 1.0,
        "ce_kl_ratio": 0.5,
        "student_mass": 0.375,
        "grad_norm": 2.0,
    }
    # Answer and response of two rows.
    assert metrics["tokens"] == 8
    assert run.weights[0] == WeightVersion(1, "weights 1", 7, 100)
    assert list(metrics["seconds"]) == ["checkpoint", "wait", "forward_backward", "optimizer", "sync", "total"]


def test_a_rank_that_is_the_teacher_scores_what_it_has_of_a_step_and_says_so_before_it_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, "raft", 0, "teacher.place=learner", "learner.lora.rank=4")
    assert run.said[2:9] == [
        ("lost", 0, [0]),
        ("score", [0, 1]),
        ("scored", 0, [0.5]),
        ("push", 1),
        ("publish", 1),
        ("score", [2, 3]),
        ("scored", 1, [0.5]),
    ]
    phases = ["checkpoint", "wait", "teacher", "forward_backward", "optimizer", "sync", "total"]
    assert list(run.published[0]["seconds"]) == phases


def test_engines_that_swap_adapters_are_probed_with_the_first_that_is_not_zero_and_the_export_gets_whole_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, "raft", 1, "learner.lora.rank=4", "sync.adapter=hot")
    assert run.said == [
        ("offer", 1),
        ("begin", WeightVersion(1, "weights 1", 7, 100, "probe")),
        ("lost", 1, [2]),
        ("push", 2),
        ("publish", 2),
        ("push", 3),
        ("publish", 3),
        ("save", 3),
        ("pack", 3),
        ("export", "weights 3"),
    ]
    assert [weights.probe for weights in run.weights] == ["probe", None]
    run = Run(monkeypatch, "sft", 2, "learner.lora.rank=4", "sync.adapter=hot")
    assert [what for what, *_ in run.said if what in ("offer", "push")] == []
    in_flight = ("sync.in_flight=true", "sync.max_staleness=1")
    run = Run(monkeypatch, "raft", 1, "learner.lora.rank=4", "sync.adapter=hot", *in_flight)
    assert [weights.probe for weights in run.weights] == [None, None]
    run = Run(monkeypatch, "raft", 3, "learner.lora.rank=4", "sync.adapter=hot")
    assert run.said[-2:] == [("pack", 3), ("export", "weights 3")]
    assert [what for what, *_ in run.said].count("pack") == 1


def test_a_rank_goes_on_from_its_checkpoint_and_a_method_without_rollouts_packs_the_last_weights_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, "sft", 2)
    assert run.said == [
        ("begin", WeightVersion(2)),
        ("pack", 3),
        ("publish", 3),
        ("save", 3),
        ("export", "weights 3"),
    ]
    assert run.published[0]["temperature"] is None


def test_where_trajectories_are_given_only_the_last_weights_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, "opd", 1, "distill.off_policy=true")
    assert run.said == [
        ("begin", WeightVersion(1)),
        ("publish", 2),
        ("pack", 3),
        ("publish", 3),
        ("save", 3),
        ("export", "weights 3"),
    ]


@pytest.mark.parametrize("method", ["raft", "sft"])
def test_a_run_that_was_killed_before_its_export_only_exports(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, method, 3)
    assert run.said[-2:] == [("pack", 3), ("export", "weights 3")]
    assert not run.published
