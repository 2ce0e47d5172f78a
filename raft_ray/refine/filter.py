"""The semantic filter: does a rewrite still mean what the gold answer means?

Arrays in, arrays out. Knows nothing about text, embedders or rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Cosines of parallel vectors come out a few ulp below 1; rounding keeps τ=1 meaning "the same direction".
_DECIMALS = 12


def semantic_filter(
    gold_embeddings: npt.ArrayLike, rewrite_embeddings: npt.ArrayLike, tau: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Eqs. 2-3: `s = cos(φ(y), φ(ỹ))`, and which rows have `s ≥ τ`.

    Args:
        gold_embeddings: `[N, d]`, φ(y).
        rewrite_embeddings: `[N, d]`, φ(ỹ).
        tau: threshold τ.

    Returns:
        similarity `[N]` float64 in [-1, 1], 0 where either vector is zero; accepted `[N]` bool.

    Raises `ValueError` for shapes that differ or are not `[N, d]`, and for values that are not finite.
    """
    gold_ND = np.asarray(gold_embeddings, dtype=np.float64)
    rewrite_ND = np.asarray(rewrite_embeddings, dtype=np.float64)
    if gold_ND.ndim != 2 or gold_ND.shape != rewrite_ND.shape:
        raise ValueError(f"embeddings must both be [N, d], got {list(gold_ND.shape)} and {list(rewrite_ND.shape)}")
    if not (np.isfinite(gold_ND).all() and np.isfinite(rewrite_ND).all()):
        raise ValueError("embeddings must be finite, got NaN or infinity")
    if not np.isfinite(tau):
        raise ValueError(f"tau must be finite, got {tau}")
    cosine_N = np.einsum("nd,nd->n", _unit(gold_ND), _unit(rewrite_ND))
    similarity_N = np.clip(np.round(cosine_N, _DECIMALS), -1.0, 1.0)
    return similarity_N, similarity_N >= tau


def _unit(vectors_ND: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows scaled to length 1; zero rows stay zero. Scaled by the largest entry first, so squares cannot overflow."""
    if vectors_ND.size == 0:
        return vectors_ND
    largest_N1 = np.abs(vectors_ND).max(axis=1, keepdims=True)
    scaled_ND = np.divide(vectors_ND, largest_N1, out=np.zeros_like(vectors_ND), where=largest_N1 > 0)
    norm_N1 = np.linalg.norm(scaled_ND, axis=1, keepdims=True)
    return np.divide(scaled_ND, norm_N1, out=np.zeros_like(vectors_ND), where=norm_N1 > 0)
