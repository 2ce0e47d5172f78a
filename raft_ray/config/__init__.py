"""The configuration of a run: one dataclass a section, with every key's meaning beside it.

Each key has its type and range (`kinds`), its default and its meaning in one place. `settings` reads presets and
overrides into these classes, `checks` refuses what contradicts itself. The sections lie in a file for each part of a
run, and everybody imports them from here; that loads neither pydantic nor OmegaConf.

Lengths are tokens, times are seconds, memory is GiB, unless a key says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from raft_ray.config.evaluation import CompareConfig, DomainMetric, EvalConfig, Keep
from raft_ray.config.refine import RefineConfig, RefineGuardsConfig, RefineModelConfig, SimilarityOn
from raft_ray.config.run import ColumnsConfig, DataConfig, Dtype, ModelConfig, OnBadRow, RunConfig, Tracker
from raft_ray.config.training import (
    Balance,
    DistillConfig,
    Graphs,
    LearnerConfig,
    LoraConfig,
    Loss,
    Method,
    OnLongReference,
    RehearsalConfig,
    RehearsalKind,
    RolloutConfig,
    Schedule,
    SyncAdapter,
    SyncBackend,
    SyncConfig,
    Target,
    TeacherConfig,
    TeacherPlace,
)

__all__ = [
    "Balance",
    "ColumnsConfig",
    "CompareConfig",
    "Config",
    "DataConfig",
    "DistillConfig",
    "DomainMetric",
    "Dtype",
    "EvalConfig",
    "Graphs",
    "Keep",
    "LearnerConfig",
    "LoraConfig",
    "Loss",
    "Method",
    "ModelConfig",
    "OnBadRow",
    "OnLongReference",
    "RefineConfig",
    "RefineGuardsConfig",
    "RefineModelConfig",
    "RehearsalConfig",
    "RehearsalKind",
    "RolloutConfig",
    "RunConfig",
    "Schedule",
    "SimilarityOn",
    "SyncAdapter",
    "SyncBackend",
    "SyncConfig",
    "Target",
    "TeacherConfig",
    "TeacherPlace",
    "Tracker",
]


@dataclass
class Config:
    """All of a run. `raft-ray show-config PRESET` prints it with a preset's values."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "coerce_numbers_to_str": True, "allow_inf_nan": False}
    """How pydantic makes one of plain values, its sections included."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)

    @property
    def uses_distillation(self) -> bool:
        """The method has rollouts and a teacher for the rows of the training set."""
        switched_off = self.distill.balance is Balance.fixed and self.distill.fixed_lambda == 0
        return self.distill.method in (Method.opd, Method.raft) and not switched_off

    @property
    def uses_rollouts(self) -> bool:
        """There are rollouts and a teacher: for the rows of the training set, for rehearsal, or for both."""
        return self.uses_distillation or (self.distill.rehearsal.rows > 0 and not self.uses_replay)

    @property
    def uses_teachers(self) -> bool:
        """There are teacher actors."""
        return self.uses_rollouts and self.teacher.place is TeacherPlace.own

    @property
    def learners_score(self) -> bool:
        """The learners are the teacher, too, with their adapter off."""
        return self.uses_rollouts and self.teacher.place is TeacherPlace.learner

    @property
    def uses_given_trajectories(self) -> bool:
        """The teacher scores answers that are there already: nobody samples."""
        if self.uses_distillation:
            return self.distill.off_policy
        return self.uses_rollouts and self.distill.rehearsal.kind is RehearsalKind.replay_kl

    @property
    def loads_weights(self) -> bool:
        """There are engines, which take up the learners' weights."""
        return self.uses_engines and not self.uses_given_trajectories

    @property
    def swaps_adapters(self) -> bool:
        """These engines hold the original weights and take up adapters alone."""
        return self.loads_weights and self.sync.adapter is SyncAdapter.hot

    @property
    def keeps_answers(self) -> bool:
        """The original model answers the rehearsal's prompts, once."""
        return self.distill.rehearsal.rows > 0 and self.distill.rehearsal.kind is not RehearsalKind.rollout

    @property
    def uses_replay(self) -> bool:
        """Rehearsal is cross-entropy on the original model's answers."""
        rehearsal = self.distill.rehearsal
        return rehearsal.rows > 0 and rehearsal.kind is RehearsalKind.replay

    @property
    def uses_engines(self) -> bool:
        """There are rollout actors: for rollouts, or for evaluations while the method trains."""
        return self.uses_rollouts or self.eval.every > 0

    def evaluates(self, step: int, steps: int) -> bool:
        """The weights after `step` of `steps` steps are evaluated before training goes on."""
        return self.eval.every > 0 and (step % self.eval.every == 0 or step == steps)

    @property
    def longest_rollout(self) -> int:
        """Tokens that the student may write after a prompt of either kind."""
        rehearsal = self.distill.rehearsal
        return max(self.rollout.max_new_tokens, rehearsal.max_new_tokens if rehearsal.rows else 0)
