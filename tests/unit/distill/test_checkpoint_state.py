"""What a checkpoint may be gone on from; no Ray started."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.distill.checkpoint import State
from raft_ray.config import settings
from raft_ray.config.resume import deciding
from raft_ray.distill.order import RowOrder
from raft_ray.errors import RaftError
from raft_ray.models.prompts import EncodedRow, rows_digest

LIKE_BEFORE = ["data.train=train.jsonl", "learner.lr=1e-3", "refine.guards.leaks=[a]"]
ORDER = RowOrder(rows=10, batch=4, epochs=2, seed=3)


def state(step: int) -> State:
    return State(step, {}, ranks=2, zero_stage=1, order=ORDER.done(step), digest="same", settings={})


def test_another_number_of_ranks_and_more_epochs_go_on() -> None:
    state(2).check(1, 1, replace(ORDER, epochs=5, max_steps=9), "same")


@pytest.mark.parametrize(
    ("order", "digest", "message"),
    [
        (ORDER, "other", r"data\.train: its 10 rows are not the 10 that .* step 2 was trained on"),
        (replace(ORDER, rows=11), "same", r"data\.train: its 11 rows are not the 10"),
        (replace(ORDER, seed=4), "same", r"data\.train: .* in their order"),
    ],
)
def test_other_rows_are_refused(order: RowOrder, digest: str, message: str) -> None:
    with pytest.raises(RaftError, match=message):
        state(2).check(2, 1, order, digest)


def test_a_run_that_would_end_before_the_checkpoint_is_refused() -> None:
    with pytest.raises(RaftError, match=r"learner\.max_steps: the run's newest checkpoint is of step 4, .* after 3;"):
        state(4).check(2, 1, replace(ORDER, max_steps=3), "same")


def test_what_decides_the_model_cannot_change_unless_that_is_asked_for() -> None:
    config = settings.load("raft", LIKE_BEFORE)
    kept = replace(state(2), settings=deciding(config))
    assert json.loads(json.dumps(kept.settings)) == kept.settings
    same = [
        "learner.num_workers=9",
        "rollout.actors=3",
        "learner.max_steps=50",
        "eval.samples=1",
        "run.storage=elsewhere",
    ]
    assert kept.check_settings(settings.load("raft", [*LIKE_BEFORE, *same])) is None
    other = ["learner.lr=0.5", "distill.top_k=9"]
    said = r"distill\.top_k=9 \(was 512\); learner\.lr=0\.5 \(was 0\.001\)"
    with pytest.raises(RaftError, match=rf"^{said}: not what the run's checkpoint of step 2 was made with; .*allow_ch"):
        kept.check_settings(settings.load("raft", [*LIKE_BEFORE, *other]))
    allowed = kept.check_settings(settings.load("raft", [*LIKE_BEFORE, *other, "run.allow_changes=true"]))
    assert re.fullmatch(rf"from step 2 on with {said}", allowed or "")


def test_more_epochs_after_a_short_batch_would_leave_out_rows() -> None:
    # The fifth batch has three of its four rows.
    short = RowOrder(rows=19, batch=4, epochs=1, seed=3)
    ended = State(5, {}, ranks=1, zero_stage=0, order=short.done(5), digest="same", settings={})
    ended.check(1, 0, short, "same")
    with pytest.raises(RaftError, match=r"learner\.epochs: .* short batch, after 19 rows; .* the 20th row"):
        ended.check(1, 0, replace(short, epochs=2), "same")


IDS = st.lists(st.integers(0, 9), max_size=3)
ROWS = st.lists(st.tuples(IDS, IDS, IDS), max_size=4)


@given(ROWS, ROWS)
def test_digests_differ_where_rows_do(
    one: list[tuple[list[int], list[int], list[int]]], other: list[tuple[list[int], list[int], list[int]]]
) -> None:
    def digest(rows: list[tuple[list[int], list[int], list[int]]]) -> str:
        return rows_digest({i: EncodedRow(i, *ids) for i, ids in enumerate(rows)})

    assert (digest(one) == digest(other)) == (one == other)


def test_rehearsal_decides_the_model_where_there_is_any_and_its_prompts_cannot_change() -> None:
    off = deciding(settings.load("raft", LIKE_BEFORE))
    assert not [key for key in off if key.startswith("distill.rehearsal")]
    on = [*LIKE_BEFORE, "distill.rehearsal.rows=4"]
    kept = replace(state(2), settings=deciding(settings.load("raft", on)))
    with pytest.raises(
        RaftError, match=r"^distill\.rehearsal\.weight=3\.0 \(was 2\.0\): not what the run's checkpoint"
    ):
        kept.check_settings(settings.load("raft", [*on, "distill.rehearsal.weight=3"]))

    order = ORDER.with_rehearsal(20, 4)
    kept = replace(state(2), order=order.done(2))
    kept.check(2, 1, replace(ORDER, epochs=5, max_steps=9).with_rehearsal(20, 4), "same")
    for other, digest in (
        (ORDER.with_rehearsal(20, 3), "same"),
        (ORDER.with_rehearsal(21, 4), "same"),
        (order, "other"),
    ):
        with pytest.raises(
            RaftError, match=r"data\.train: its 10 rows .* or, in rehearsal\.jsonl, its prompts are other"
        ):
            kept.check(2, 1, other, digest)
