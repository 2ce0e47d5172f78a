"""Sentence embeddings φ (the static vectors that a package ships, or any sentence-transformers model), and the filter
on their cosine: does a rewrite still mean what the gold answer means?

A text that is longer than a model reads is embedded in windows, and none of it is left out. Knows nothing about rows.
The libraries are imported when an embedder is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raft_ray.errors import ConfigError

WORDLLAMA = "wordllama"

Spans = list[tuple[int, int]]
"""The tokens of a text, as places of their first character and after their last one."""

_WORDLLAMA_WINDOW = 512  # it has no limit, but pads a batch to the longest text, 2 KiB a token
# Cosines of parallel vectors come out a few ulp below 1; rounding keeps τ=1 meaning "the same direction".
_DECIMALS = 12
_SPARE = 2  # tokens that a window may have more than its part of the text had: it begins where no text began


class Embedder(Protocol):
    """Turns texts into vectors."""

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """`[N, d]` float32, a row a text; an empty text may be the zero vector."""
        ...


def make_embedder(name: str) -> Embedder:
    """The embedder that `refine.embedder` names: `wordllama`, or a sentence-transformers name or folder. Raises
    `ConfigError` where the package is missing or the model cannot be loaded."""
    embedder = WordLlamaEmbedder() if name == WORDLLAMA else SentenceTransformerEmbedder(name)
    if embedder.limit is None:
        return embedder
    # Static vectors know no context, and are their text's mean exactly without an overlap.
    overlap = 0 if name == WORDLLAMA else embedder.limit // 4
    return WindowEmbedder(embedder, embedder.spans, limit=embedder.limit, overlap=overlap)


@dataclass(frozen=True)
class WindowEmbedder:
    """Embeds a long text as the mean of its windows' vectors, weighted by their lengths; a short one as it is."""

    embedder: Embedder
    """Embeds the windows."""
    spans: Callable[[str], Spans]
    """The tokens of a text."""
    limit: int
    """Tokens that a window has at most, at least 1."""
    overlap: int = 0
    """Tokens that a window shares with the one before it; half of `limit` at most count."""

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        if not texts:
            return self.embedder.embed([])
        windows = [self._windows(text) for text in texts]
        vectors = self.embedder.embed([piece for pieces in windows for piece, _ in pieces])
        rows, first = [], 0
        for pieces in windows:
            mine = vectors[first : first + len(pieces)]
            lengths = [tokens for _, tokens in pieces]
            rows.append(mine[0] if len(pieces) == 1 else np.average(mine, axis=0, weights=lengths))
            first += len(pieces)
        return np.asarray(rows, dtype=np.float32)

    def _windows(self, text: str) -> list[tuple[str, int]]:
        """Parts of `text`, all of it together, with their numbers of tokens; cut between words where possible. None but
        the first begins with white space, which some tokenizers would read as one more token."""
        spans = self.spans(text)
        if len(spans) <= self.limit:
            return [(text, len(spans))]
        overlap = min(self.overlap, self.limit // 2)
        # The first begins with the text, so that nothing before its first token is lost.
        starts = [0, *(start for start, _ in spans[1:])]
        opens = [i for i in range(1, len(spans)) if any(map(str.isspace, text[spans[i - 1][1] : starts[i] + 1]))]
        pieces, begin = [], 0
        while begin + self.limit < len(spans):
            last = begin + self.limit
            end = max((i for i in opens if last - self.limit // 2 < i <= last), default=last)
            pieces.append((text[starts[begin] : starts[end]], end - begin))
            begin = min((i for i in opens if end - overlap <= i <= end), default=end - overlap)
        (head, tokens), *rest = [*pieces, (text[starts[begin] :], len(spans) - begin)]
        return [(head, tokens), *((piece.lstrip(), tokens) for piece, tokens in rest)]


class WordLlamaEmbedder:
    """Static 256-dimensional word vectors, averaged; 16 MB that ship with the package `wordllama`. No network."""

    limit: int | None = _WORDLLAMA_WINDOW

    def __init__(self) -> None:
        try:
            import wordllama
            from wordllama import WordLlama
        except ImportError as error:
            raise ConfigError(
                f"refine.embedder={WORDLLAMA}: cannot be imported ({error}); pip install wordllama toml"
            ) from error
        # By itself the package looks for its tokenizer under a wrong folder name, then downloads it.
        folder = os.path.dirname(wordllama.__file__)
        self._model = WordLlama.load(cache_dir=folder, disable_download=True)

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return np.asarray(self._model.embed(texts), dtype=np.float32)

    def spans(self, text: str) -> Spans:
        return list(self._model.tokenizer.encode(text, add_special_tokens=False).offsets)


class SentenceTransformerEmbedder:
    """A sentence-transformers model, by hub name or folder.

    Attributes:
        limit: tokens of a text that the model reads; none where it reads all. It leaves out what comes after them.
    """

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                f"refine.embedder={name}: needs the package sentence-transformers; "
                f"pip install sentence-transformers, or set refine.embedder={WORDLLAMA}"
            ) from error
        try:
            self._model = SentenceTransformer(name)
        except Exception as error:  # The hub's client, and a damaged or foreign folder, raise anything.
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(f"refine.embedder={name}: no such model could be loaded ({reason})") from error
        self.limit = self._limit(name)

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        vectors = self._model.encode(texts, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1 if texts else 0)

    def spans(self, text: str) -> Spans:
        encoded = self._model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [(start, end) for start, end in encoded["offset_mapping"]]

    def _limit(self, name: str) -> int | None:
        longest = self._model.max_seq_length
        if longest is None:
            return None
        if not self._model.tokenizer.is_fast:
            raise ConfigError(
                f"refine.embedder={name}: reads {longest} tokens, and its tokenizer does not say where they are in a "
                f"text, so that long answers cannot be cut in windows; set another embedder, such as {WORDLLAMA}"
            )
        instruction = self._model.prompts.get(self._model.default_prompt_name or "", "")
        own = self._model.tokenizer.num_special_tokens_to_add() + len(self.spans(instruction))
        return max(1, int(longest) - own - _SPARE)


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
