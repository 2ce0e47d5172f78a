"""What one learner rank holds beside its passes: weights, gradients and optimizer states, by DeepSpeed's ZeRO stage."""

from __future__ import annotations

from dataclasses import dataclass

BUCKET = 500_000_000
"""Elements of the buffer in which DeepSpeed adds gradients up over ranks, if there are as many."""
LIVE = 1_000_000_000
"""Parameters that ZeRO 3 keeps gathered at most (`stage3_max_live_parameters`)."""


@dataclass(frozen=True)
class LearnerBytes:
    """What one rank holds from its second step on."""

    weights: int
    gradients: int
    optimizer: int
    reduction: int
    left: int = 0
    """Of `gradients`, those that the passes themselves leave behind, in the weights' dtype."""
    beside: int = 0
    """What lies beside activations while passes go on: DeepSpeed's bucket, and weights that ZeRO 3 has gathered."""


def learner_bytes(total: int, trained: int, *, largest: int, half: bool, stage: int, ranks: int) -> LearnerBytes:
    """Bytes of a rank of DeepSpeed 0.19.

    Args:
        total: parameters, those that are frozen beside an adapter included.
        trained: parameters that have a gradient.
        largest: elements of the largest of those.
        half: weights of two bytes, for which the optimizer keeps masters in float32.
        stage: of ZeRO; 1 shards masters and moments, 2 gradients as well, 3 weights as well.
    """
    width, share, bucket = 2 if half else 4, trained // (ranks if stage else 1), min(trained, BUCKET)
    weights = total * width // (ranks if stage == 3 else 1)
    # ZeRO keeps masters of float32 weights, too.
    optimizer = share * (8 + 4 * (half or stage > 0))
    if stage == 0:
        return LearnerBytes(weights, 4 * trained, optimizer, 4 * bucket, left=4 * trained)
    if stage == 1 and half:
        # Added up in float32 over micro-batches, from gradients in bfloat16; ranks exchange a copy in bfloat16.
        return LearnerBytes(weights, 6 * trained, optimizer, 2 * trained, left=2 * trained)
    if stage == 3:
        gathered = width * min(total, LIVE) if ranks > 1 else 0
        return LearnerBytes(weights, 4 * share + width * bucket, optimizer, 4 * share, beside=gathered)
    gradients = 4 * (share if stage == 2 else trained)
    # The norm is taken in float64, a tensor at a time.
    return LearnerBytes(weights, gradients, optimizer, max(8 * largest, width * bucket), beside=width * bucket)
