"""FAPM: undo most of a fine-tuning, keeping the changes that matter most for what they cost in forgetting.

Forgetting-aware pruning (arXiv 2509.08255) of the task vector `ΔW = W - W_base`, without training and without data.
Each parameter tensor is scored by itself, entry by entry:

    S = |ΔW| - mean(|W_base|) · |ΔW| / |W_base|

The first term is how much was learned there, the second how large the change is beside the weight it changes. The
share `1 - sparsity` of the entries with the highest S keeps its tuned value, the rest takes its base value back.

Knows nothing about architectures, training or Ray: states and safetensors folders only. Torch is imported inside the
functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raft_ray.compare.derived import check_alike, derive_folder
from raft_ray.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

SPARSITY = 0.9
"""The paper's default: a tenth of the entries keeps its change."""


def fapm(
    base_state: Mapping[str, Tensor], tuned_state: Mapping[str, Tensor], sparsity: float = SPARSITY
) -> dict[str, Tensor]:
    """The tuned state with the share `sparsity` of every tensor's entries put back to the base.

    Of n entries exactly `round((1 - sparsity) · n)` keep the tuned value, bit for bit; among equal scores those that
    come first. Scores are taken in float32, or in float64 where the weights are. What the definition leaves open:

    - Biases and norms (one dimension) are scored as matrices of one row, so that `sparsity=1` undoes all change.
    - Embeddings and an untied head are matrices like any other; a tied head gets the same entries as the embeddings.
    - Where `W_base` is 0, any change is infinitely large beside the weight: S is -inf, and it is put back first. An
      entry that did not change scores 0, also there.
    - Tensors of integers are buffers, not weights: the tuned model's are kept.
    - Where the two have different precisions, the base is taken in the tuned model's.

    Raises `ModelError` where names or shapes differ or a weight is not finite, `ConfigError` for a sparsity outside 0
    to 1.
    """
    _check_sparsity(sparsity)
    if base_state.keys() != tuned_state.keys():
        odd = sorted(base_state.keys() ^ tuned_state.keys())
        raise ModelError(f"FAPM: base and tuned model have different parameters, such as {odd[0]}")
    return {name: prune_tensor(base_state[name], tuned, name, sparsity=sparsity) for name, tuned in tuned_state.items()}


def prune_folder(base: str | Path, tuned: str | Path, out: str | Path, sparsity: float = SPARSITY) -> None:
    """Write the pruned model of two safetensors folders to `out`, as `derive_folder` does. Raises as `fapm` does."""
    _check_sparsity(sparsity)
    derive_folder(base, tuned, out, partial(prune_tensor, sparsity=sparsity))


def prune_tensor(base: Tensor, tuned: Tensor, name: str = "tensor", *, sparsity: float = SPARSITY) -> Tensor:
    """One tensor of `fapm`, in the shape, dtype and device of `tuned`; `name` is for messages."""
    import torch

    check_alike("FAPM", base, tuned, name)
    if not tuned.is_floating_point():
        return tuned.detach().clone()
    base = base.detach().to(tuned)
    precise = torch.float64 if tuned.dtype is torch.float64 else torch.float32
    old = base.flatten().to(precise)
    change = (tuned.detach().flatten().to(precise) - old).abs_()
    # Not in place: without a change of dtype it is the caller's own tensor.
    old = old.abs()
    if not (old.isfinite().all() and change.isfinite().all()):
        raise ModelError(f"FAPM: {name} has weights that are not finite")
    scores = change - old.mean(dtype=torch.float64).to(precise) * change / old
    scores.masked_fill_(change == 0, 0.0).masked_fill_((old == 0) & (change != 0), -torch.inf)
    kept = round((1 - sparsity) * scores.numel())
    if kept == 0:
        return base.clone()
    # The kept-th highest score: what is above it is kept, and of its equals as many as there is room for.
    # (kthvalue takes twenty times as long.)
    threshold = scores.topk(kept, sorted=False).values.min()
    keep = scores > threshold
    equal = (scores == threshold).nonzero().squeeze(1)
    keep[equal[: kept - int(keep.sum())]] = True
    return torch.where(keep.view(tuned.shape), tuned.detach(), base)


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity <= 1:
        raise ConfigError(f"FAPM: sparsity={sparsity}: must be between 0 and 1")
