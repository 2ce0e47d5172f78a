"""The semantic filter and the prompt files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raft_ray.errors import ConfigError
from raft_ray.models.templates import fill, load_prompt
from raft_ray.refine.embed import semantic_filter

finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)
pairs = st.tuples(st.integers(0, 6), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(arrays(np.float32, shape, elements=finite), arrays(np.float32, shape, elements=finite))
)


@given(pairs, st.floats(-1, 1))
@settings(deadline=None)
def test_similarity_is_the_cosine_and_accepted_is_similarity_at_least_tau(
    pair: tuple[np.ndarray, np.ndarray], tau: float
) -> None:
    gold, rewrite = pair
    similarity, accepted = semantic_filter(gold, rewrite, tau)
    assert similarity.shape == accepted.shape == (len(gold),)
    assert accepted.dtype == np.bool_
    assert (accepted == (similarity >= tau)).all()
    for g, r, s in zip(gold.astype(np.float64), rewrite.astype(np.float64), similarity, strict=True):
        norms = math.sqrt(math.fsum(g * g)) * math.sqrt(math.fsum(r * r))
        expected = math.fsum(g * r) / norms if norms > 1e-200 else None
        if expected is not None:
            assert s == pytest.approx(expected, abs=1e-9)
        assert -1 <= s <= 1


@given(pairs, st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_the_length_of_a_vector_and_the_order_of_the_two_do_not_matter(
    pair: tuple[np.ndarray, np.ndarray], scale: float
) -> None:
    gold, rewrite = (side.astype(np.float64) for side in pair)
    similarity, _ = semantic_filter(gold, rewrite, 0.0)
    assert semantic_filter(gold * scale, rewrite, 0.0)[0] == pytest.approx(similarity, abs=1e-9)
    assert semantic_filter(rewrite, gold, 0.0)[0] == pytest.approx(similarity, abs=1e-9)


@given(pairs)
@settings(deadline=None)
def test_a_larger_tau_accepts_no_row_that_a_smaller_one_refuses(pair: tuple[np.ndarray, np.ndarray]) -> None:
    strict, loose = (semantic_filter(*pair, tau)[1] for tau in (0.9, 0.2))
    assert not (strict & ~loose).any()


def test_the_same_direction_passes_tau_one() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 256)).astype(np.float32)
    similarity, accepted = semantic_filter(vectors, vectors, 1.0)
    assert accepted.all()
    assert (similarity == 1.0).all()


def test_a_zero_vector_has_similarity_zero() -> None:
    similarity, accepted = semantic_filter(
        [[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], 0.1
    )
    assert similarity.tolist() == [0.0, 0.0, 0.0]
    assert not accepted.any()


def test_values_whose_squares_overflow_or_vanish_still_have_a_cosine() -> None:
    similarity, _ = semantic_filter([[1e200, 1e200], [1e-200, 0.0]], [[1e200, 0.0], [1e-200, 1e-200]], 0.0)
    assert similarity == pytest.approx([math.sqrt(0.5)] * 2)


@pytest.mark.parametrize(
    ("gold", "rewrite", "tau"),
    [
        (np.ones((2, 3)), np.ones((3, 3)), 0.8),
        (np.ones((2, 3)), np.ones((2, 4)), 0.8),
        (np.ones(3), np.ones(3), 0.8),
        (np.array([[1.0, np.nan]]), np.ones((1, 2)), 0.8),
        (np.ones((1, 2)), np.array([[np.inf, 1.0]]), 0.8),
        (np.ones((1, 2)), np.ones((1, 2)), math.nan),
    ],
)
def test_what_has_no_cosine_is_an_error(gold: np.ndarray, rewrite: np.ndarray, tau: float) -> None:
    with pytest.raises(ValueError, match=r"embeddings must|tau must"):
        semantic_filter(gold, rewrite, tau)


def test_fields_are_replaced_literally_and_once() -> None:
    template = "{prompt} {other} {{x}} {answer} {prompt}"
    assert (
        fill(template, prompt="a {answer} b", answer="{prompt}") == "a {answer} b {other} {{x}} {prompt} a {answer} b"
    )


def test_shipped_prompts_have_their_fields() -> None:
    assert "{answer}" in load_prompt("rewrite", ("prompt", "answer"), "refine.rewrite_prompt")
    assert "{rewrite}" in load_prompt("fuse", ("prompt", "answer", "rewrite"), "refine.fuse_prompt")


def test_a_prompt_file_can_be_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Q {prompt}\nA {answer}\n", encoding="utf-8")
    assert load_prompt(str(file), ("prompt", "answer"), "refine.rewrite_prompt") == "Q {prompt}\nA {answer}"


def test_a_prompt_file_without_a_field_names_key_and_field(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Q {prompt}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"refine\.fuse_prompt=.*lacks \{answer\} and \{rewrite\}"):
        load_prompt(str(file), ("prompt", "answer", "rewrite"), "refine.fuse_prompt")


def test_an_unknown_prompt_name_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"refine\.rewrite_prompt=rewriet: no such prompt file.*rewrite"):
        load_prompt("rewriet", ("prompt",), "refine.rewrite_prompt")
    with pytest.raises(ConfigError, match="no such prompt file"):
        load_prompt("/nowhere/x.txt", ("prompt",), "teacher.template")
