"""Sentence embeddings φ: the static vectors that a package ships, or any sentence-transformers model.

Knows nothing about rows or the filter. The libraries are imported when an embedder is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raft_ray.errors import ConfigError

WORDLLAMA = "wordllama"


class Embedder(Protocol):
    """Turns texts into vectors."""

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """`[N, d]` float32, a row a text; an empty text may be the zero vector."""
        ...


def make_embedder(name: str) -> Embedder:
    """The embedder that `refine.embedder` names: `wordllama`, or a sentence-transformers name or folder.

    Raises `ConfigError` where the package is missing or the model cannot be loaded.
    """
    return WordLlamaEmbedder() if name == WORDLLAMA else SentenceTransformerEmbedder(name)


class WordLlamaEmbedder:
    """Static 256-dimensional word vectors, averaged; 16 MB that ship with the package `wordllama`. No network."""

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


class SentenceTransformerEmbedder:
    """A sentence-transformers model, by hub name or folder."""

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
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(f"refine.embedder={name}: no such model could be loaded ({reason})") from error

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        def encode(pieces: list[str]) -> npt.NDArray[np.float32]:
            vectors = self._model.encode(pieces, convert_to_numpy=True, show_progress_bar=False)
            return np.asarray(vectors, dtype=np.float32).reshape(len(pieces), -1)

        # The model reads so many tokens and drops the rest; a word has one or two.
        limit = getattr(self._model, "max_seq_length", None)
        return embed_windows(texts, encode, max(8, limit // 2)) if limit else encode(texts)


def embed_windows(
    texts: list[str], embed: Callable[[list[str]], npt.NDArray[np.float32]], words: int
) -> npt.NDArray[np.float32]:
    """`[N, d]`: each text as the mean of its windows of at most `words` words, weighted by their words.

    Windows overlap by a quarter, so that a sentence on a border is read whole by one of them.
    """
    step = max(1, words - words // 4)
    pieces: list[str] = []
    owners: list[int] = []
    weights: list[int] = []
    for number, text in enumerate(texts):
        split = text.split()
        starts = range(0, max(1, len(split) - words + step), step)
        for start in starts:
            window = split[start : start + words]
            pieces.append(" ".join(window) if len(starts) > 1 else text)
            owners.append(number)
            weights.append(max(1, len(window)))
    vectors_MD = embed(pieces)
    sums_ND = np.zeros((len(texts), vectors_MD.shape[1]), dtype=np.float64)
    weights_M = np.asarray(weights, dtype=np.float64)
    np.add.at(sums_ND, owners, vectors_MD * weights_M[:, None])
    totals_N = np.bincount(owners, weights=weights_M, minlength=len(texts))
    return (sums_ND / totals_N[:, None]).astype(np.float32)
