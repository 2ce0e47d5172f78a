"""Which spans of a trajectory count when weights come in the middle of it."""

from __future__ import annotations

import pytest

from raft_ray.distill.trajectory import with_tokens


@pytest.mark.parametrize(
    ("spans", "length", "kept"),
    [
        ([(0, 0)], 5, [(0, 0)]),
        ([(0, 0), (1, 3)], 5, [(0, 0), (1, 3)]),
        ([(0, 0), (1, 5)], 5, [(0, 0)]),  # the row ended before the update
        ([(0, 0), (1, 0)], 5, [(1, 0)]),  # it had not begun
        ([(0, 0), (1, 2), (2, 2), (3, 4)], 4, [(0, 0), (2, 2)]),
    ],
)
def test_a_span_counts_if_it_has_a_token(
    spans: list[tuple[int, int]], length: int, kept: list[tuple[int, int]]
) -> None:
    assert with_tokens(spans, length) == kept
