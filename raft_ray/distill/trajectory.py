"""What travels from rollout actors through the teacher to the learners: numpy, so that Ray shares its memory.

Shapes: L response tokens, K tokens kept by the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from raft_ray.distill.order import SampleId


@dataclass(frozen=True)
class RolloutBatch:
    """The unit of work of a rollout actor: some rows of one step."""

    step: int
    index: int
    """Number of the rollout batch within its step."""
    sample_ids: tuple[SampleId, ...]
    failures: int = 0
    """Engines that died on these rows."""

    def __str__(self) -> str:
        return f"rollout batch {self.index} of step {self.step}"

    def seed(self, run_seed: int) -> int:
        """Seed of the rollout batch's sampling: the same wherever and whenever it is generated."""
        return int(np.random.SeedSequence([run_seed, self.step, self.index]).generate_state(1)[0])


@dataclass(frozen=True)
class Probe:
    """What the learner makes of a row with a run's first weights, for the rollout engines to be compared with."""

    prompt: list[int]
    answer: list[int]
    logprobs: list[float]
    """Of the answer's tokens, nats."""
    allowed: float
    """Mean absolute difference that rounding may make, nats."""

    def error(self, logprobs: list[float]) -> float:
        """The mean absolute difference of an engine's log-probabilities of the answer's tokens."""
        return float(np.abs(np.subtract(logprobs, self.logprobs)).mean())


@dataclass(frozen=True)
class SampleInfo:
    """What the pipeline knows of a sample; the sample itself stays in the object store."""

    sample_id: SampleId
    version: int
    length: int
    truncated: bool
    rollout: str
    target_bytes: int = 0
    """0 before it is scored, as the next."""
    teacher_mass: float = 0.0
    """Mean over tokens of the probability that the teacher gives its own top K."""
    versions: tuple[tuple[int, int], ...] = ()
    """As in `Trajectory`."""


@dataclass(frozen=True)
class Trajectory:
    """What the student wrote for one row (Eq. 6)."""

    sample_id: SampleId
    version: int
    """Weights that it was sampled with; the oldest of them, where it crossed an update."""
    token_ids: np.ndarray
    """[L] int32, verbatim; the end-of-turn token included if it was sampled."""
    truncated: bool
    """`rollout.max_new_tokens` ended it."""
    rollout: str
    """The actor that made it."""
    versions: tuple[tuple[int, int], ...] = ()
    """`(version, first token)` of each span between updates, where it crossed one (`sync.in_flight`)."""

    @property
    def info(self) -> SampleInfo:
        """What the pipeline knows of it before it is scored."""
        length = len(self.token_ids)
        return SampleInfo(self.sample_id, self.version, length, self.truncated, self.rollout, versions=self.versions)


@dataclass(frozen=True)
class Sample:
    """A trajectory with the teacher's targets: all that the learner needs beside the row itself."""

    trajectory: Trajectory
    teacher_ids: np.ndarray
    """[L, K] int32."""
    teacher_logprobs: np.ndarray
    """[L, K] float16 log-probabilities at temperature 1. K = min(distill.top_k, V)."""

    @property
    def nbytes(self) -> int:
        """Bytes of the targets: 6·K a token."""
        return self.teacher_ids.nbytes + self.teacher_logprobs.nbytes

    def info(self, mass: float) -> SampleInfo:
        """What the pipeline knows of it, with the mean `mass` of its teacher's top K."""
        return replace(self.trajectory.info, target_bytes=self.nbytes, teacher_mass=mass)


def with_tokens(spans: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Those of the `(version, first token)` spans that have a token, of a response of `length` > 0 tokens. A row may
    have ended before an update, or not have begun; a version is then not part of it."""
    ends = [start for _, start in spans[1:]] + [length]
    return [span for span, end in zip(spans, ends, strict=True) if span[1] < min(end, length)]
