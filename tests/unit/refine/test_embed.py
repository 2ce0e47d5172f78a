"""Embedding of long texts: in windows, and nothing left out."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.config import ModelConfig
from raft_ray.models import EMBEDDED, load_tokenizer, resolve
from raft_ray.refine.embed import Spans, WindowEmbedder, WordLlamaEmbedder, make_embedder

SENTENCE = "Gold is a chemical element, and in its pure form it is a soft and malleable metal. "
LAST = "Penguins on skates sing in the opera."


def words(text: str) -> Spans:
    return [match.span() for match in re.finditer(r"\S+", text)]


def characters(text: str) -> Spans:
    return [(i, i + 1) for i in range(len(text))]


def squeezed(text: str) -> str:
    """`text` without white space, which windows lose where they are cut."""
    return "".join(text.split())


class FirstTokens:
    """Letter counts of the first `limit` tokens: as a model that leaves out the end. Keeps what it was given."""

    def __init__(self, limit: int, spans: object = words) -> None:
        self.limit = limit
        self.spans = spans
        self.read: list[str] = []

    def embed(self, texts: list[str]) -> np.ndarray:
        self.read += texts
        cut = [text[: ([(0, 0), *self.spans(text)][: self.limit + 1])[-1][1]] for text in texts]  # type: ignore[operator]
        counts = [[text.lower().count(chr(97 + i)) for i in range(26)] for text in cut]
        return np.array(counts, dtype=np.float32).reshape(len(texts), 26)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_a_model_that_reads_the_beginning_only_reads_all_in_windows() -> None:
    cut = FirstTokens(8)
    long = SENTENCE * 3
    same = cut.embed([long + LAST, long + "It is Au."])
    assert (same[0] == same[1]).all()
    windows = WindowEmbedder(FirstTokens(8), words, limit=8, overlap=2)
    other = windows.embed([long + LAST, long + "It is Au."])
    assert cosine(other[0], other[1]) < 0.999


def test_the_last_sentence_of_a_long_text_changes_its_vector() -> None:
    embedder = make_embedder("wordllama")
    long = SENTENCE * 100
    vectors = embedder.embed([long, long + LAST, long + LAST * 20])
    assert cosine(vectors[0], vectors[1]) < 1 - 1e-6
    assert cosine(vectors[0], vectors[2]) < cosine(vectors[0], vectors[1])


def test_static_vectors_are_the_same_in_windows_as_at_once() -> None:
    text = SENTENCE * 100 + LAST
    at_once = WordLlamaEmbedder()
    assert len(at_once.spans(text)) > 3 * 512
    np.testing.assert_allclose(make_embedder("wordllama").embed([text]), at_once.embed([text]), atol=1e-5)


def test_a_short_text_is_embedded_as_it_is_and_one_call_embeds_all() -> None:
    inner = FirstTokens(8)
    embedder = WindowEmbedder(inner, words, limit=8)
    texts = ["", "a b", SENTENCE, "c"]
    vectors = embedder.embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, 26)
    assert inner.read[:2] == ["", "a b"]
    assert inner.read[-1] == "c"
    assert squeezed("".join(inner.read[2:-1])) == squeezed(SENTENCE)
    np.testing.assert_array_equal(vectors[[0, 1, 3]], FirstTokens(8).embed(["", "a b", "c"]))
    assert embedder.embed([]).shape == (0, 26)


def test_windows_count_by_their_lengths() -> None:
    embedder = WindowEmbedder(FirstTokens(4), words, limit=4)
    np.testing.assert_allclose(embedder.embed(["a a a a a a b"])[0][:2], [(4 * 4 + 3 * 2) / 7, 3 / 7])


@given(
    st.text(st.sampled_from("ab \n金é"), max_size=80),
    st.integers(1, 9),
    st.integers(0, 9),
    st.sampled_from([words, characters]),
)
@settings(deadline=None)
def test_windows_are_within_the_limit_and_together_the_text(text: str, limit: int, overlap: int, spans: object) -> None:
    inner = FirstTokens(limit, spans)
    WindowEmbedder(inner, spans, limit=limit, overlap=overlap).embed([text])  # type: ignore[arg-type]
    assert all(len(spans(piece)) <= limit for piece in inner.read)  # type: ignore[operator]
    whole, place = squeezed(text), 0  # up to where the windows have told the text
    for piece in map(squeezed, inner.read):
        begin = whole.rfind(piece, 0, place + len(piece))
        assert 0 <= begin <= place
        place = max(place, begin + len(piece))
    assert place == len(whole)
    if overlap == 0:
        assert squeezed("".join(inner.read)) == whole


@pytest.mark.parametrize("text", [SENTENCE * 30, "金是一种化学元素，" * 60, "🥇👩‍🔬" * 100, "x" * 3000])
def test_windows_of_a_real_tokenizer_keep_to_the_limit(text: str) -> None:
    tokenizer = load_tokenizer(resolve(EMBEDDED), ModelConfig())

    def spans(part: str) -> Spans:
        return tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    inner = FirstTokens(64, spans)
    WindowEmbedder(inner, spans, limit=62).embed([text])
    assert len(inner.read) > 3
    assert squeezed("".join(inner.read)) == squeezed(text)
    assert all(len(spans(piece)) <= 64 for piece in inner.read)
