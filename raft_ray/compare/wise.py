"""WiSE-FT: a model between the base and a fine-tuned one (arXiv 2109.01903), without training and without data.

Every weight is interpolated by itself: `θ = (1 - α) θ_base + α θ_tuned`. Knows nothing about architectures, training or
Ray.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raft_ray.compare.derived import check_alike, derive_folder
from raft_ray.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor


def interpolate_folder(base: str | Path, tuned: str | Path, out: str | Path, alpha: float) -> None:
    """Write the model at `alpha` between two safetensors folders to `out`, as `derive_folder` does.

    Raises `ModelError` where names or shapes differ or a weight is not finite, `ConfigError` for an α outside 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"WiSE-FT: alpha={alpha}: must be between 0 and 1")
    derive_folder(base, tuned, out, partial(interpolate_tensor, alpha=alpha))


def interpolate_tensor(base: Tensor, tuned: Tensor, name: str = "tensor", *, alpha: float) -> Tensor:
    """One tensor, in the shape and dtype of `tuned`: computed in float32 (float64 where the weights are), then rounded.

    α of 0 and 1 give base and tuned model bit for bit. Tensors of integers are buffers, not weights: the tuned model's
    are kept.
    """
    import torch

    check_alike("WiSE-FT", base, tuned, name)
    if alpha == 1 or not tuned.is_floating_point():
        return tuned.detach().clone()
    if alpha == 0:
        return base.detach().to(tuned, copy=True)
    precise = torch.promote_types(tuned.dtype, torch.float32)
    old, new = base.detach().to(precise), tuned.detach().to(precise)
    if not (old.isfinite().all() and new.isfinite().all()):
        raise ModelError(f"WiSE-FT: {name} has weights that are not finite")
    return ((1 - alpha) * old + alpha * new).to(tuned.dtype)
