"""The compatibility gap equals its definition in float64; intervals cover as they say; the words follow the numbers."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from raft_ray.config import ModelConfig, OnLongReference
from raft_ray.errors import DataError
from raft_ray.models import load_chat
from raft_ray.models.head import Head
from raft_ray.models.likelihood import mean_log_likelihoods
from raft_ray.models.prompts import PromptEncoder
from raft_ray.refine.gap import (
    CONDITIONED,
    GAP,
    KINDS,
    VALUES_SCHEMA,
    Gap,
    Means,
    describe,
    describe_reference,
    measure_rows,
    read_gap,
)


def row(number: int, question: str, gold: str, rewrite: str | None, fused: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    accepted = fused != gold
    return {
        "row": number,
        "messages": messages,
        "answer": gold,
        "rewrite": rewrite,
        "accepted": accepted,
        "fused": fused,
    }


ROWS = [
    row(0, "What is the capital of France?", "Paris", "It is Paris.", "The capital of France is Paris."),
    row(1, "How many legs has a spider?", "Eight", "A spider has six legs.", "Eight"),
    row(2, "What do bees make?\nSay it in one word.", "Honey", None, "Honey"),
    row(3, "Which gas do plants take in?", "Carbon dioxide", "", "Carbon dioxide"),
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> PromptEncoder:
    return PromptEncoder(load_chat(str(tiny_model), ModelConfig()), context=512)


def measure(model: Any, encoder: PromptEncoder, rows: list[dict[str, Any]], **options: int) -> list[dict[str, Any]]:
    return measure_rows(rows, encoder, partial(mean_log_likelihoods, model, **options))


TEMPLATE = "Know this: {answer}\nNow say: {prompt}"


def expected(tiny_model: Path, encoder: PromptEncoder, messages: list[dict[str, str]], answer: str) -> float:
    """By the definition: one sequence, the whole model and its softmax in float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"
    prompt = encoder.tokenizer.encode(text, add_special_tokens=False)
    ids = encoder.tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
    with torch.no_grad():
        logp_LV = model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    return float(np.mean([float(logp_LV[len(prompt) - 1 + i, token]) for i, token in enumerate(ids)]))


@pytest.mark.parametrize(("tokens", "chunk_size"), [(4096, 256), (1, 3), (70, 1)])
def test_it_is_the_mean_log_probability_of_the_answers_tokens_and_the_end_of_turn(
    tiny_model: Path, model: Any, encoder: PromptEncoder, tokens: int, chunk_size: int
) -> None:
    measured = measure(model, encoder, ROWS, tokens=tokens, chunk_size=chunk_size)
    assert [value["row"] for value in measured] == [0, 1, 2, 3]
    assert [value["accepted"] for value in measured] == [True, False, False, False]
    for given, value in zip(ROWS, measured, strict=True):
        for kind, text in zip(KINDS, (given["answer"], given["rewrite"], given["fused"]), strict=True):
            if not text:
                assert value[kind] is None
            else:
                assert value[kind] == pytest.approx(expected(tiny_model, encoder, given["messages"], text), abs=1e-4)
    assert len({value["gold"] for value in measured}) == len(ROWS)


def test_the_fused_answer_is_read_again_by_a_teacher_that_was_shown_it(tiny_model: Path, model: Any) -> None:
    encoder = PromptEncoder(load_chat(str(tiny_model), ModelConfig()), context=512, teacher_template=TEMPLATE)
    for given, value in zip(ROWS, measure(model, encoder, ROWS), strict=True):
        asked = f"Know this: {given['fused']}\nNow say: {given['messages'][0]['content']}"
        shown = expected(tiny_model, encoder, [{"role": "user", "content": asked}], given["fused"])
        assert value["conditioned"] == pytest.approx(shown, abs=1e-4)
        assert value["fused"] != pytest.approx(shown, abs=1e-4)


def test_without_a_template_there_is_no_teacher_to_read_it(model: Any, encoder: PromptEncoder) -> None:
    assert [value["conditioned"] for value in measure(model, encoder, ROWS)] == [None] * len(ROWS)


@pytest.mark.parametrize("on_long_reference", list(OnLongReference))
def test_a_reference_that_does_not_fit_is_left_out_or_shortened_as_the_teacher_does(
    model: Any, encoder: PromptEncoder, on_long_reference: OnLongReference
) -> None:
    long = row(0, "Why?", "Because.", None, " ".join(["Because"] * 60) + ".")
    plain = len(encoder.prompt(long["messages"])) + len(encoder.answer(long["messages"], long["fused"]))
    narrow = PromptEncoder(
        encoder.chat,
        context=plain + 30,
        teacher_template=TEMPLATE,
        on_long_reference=on_long_reference,
    )
    (value,) = measure(model, narrow, [long])
    assert value["fused"] is not None
    assert (value["conditioned"] is None) == (on_long_reference is OnLongReference.error)


def test_only_a_chunk_of_positions_has_logits_and_a_repeated_text_is_read_once(
    model: Any, encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, widths = Head.logits, []

    def watch(head: Head, hidden: torch.Tensor) -> torch.Tensor:
        widths.append(len(hidden))
        return own(head, hidden)

    monkeypatch.setattr(Head, "logits", watch)
    measure(model, encoder, ROWS, chunk_size=4)
    assert max(widths) <= 4
    texts = [{r["answer"], r["rewrite"], r["fused"]} - {None, ""} for r in ROWS]
    once = sum(len(encoder.answer(r["messages"], text)) for r, some in zip(ROWS, texts, strict=True) for text in some)
    assert sum(widths) == once


def test_what_does_not_fit_the_context_has_no_value(model: Any, encoder: PromptEncoder) -> None:
    room = len(encoder.prompt(ROWS[0]["messages"])) + len(encoder.answer(ROWS[0]["messages"], "Paris"))
    narrow = PromptEncoder(encoder.chat, context=room)
    (value,) = measure(model, narrow, ROWS[:1])
    assert value["gold"] is not None
    assert value["fused"] is None


def table(values: list[tuple[bool | float | None, ...]]) -> pa.Table:
    """Rows of whether it was accepted, the kinds, and where given the fused answer for a teacher that has seen it."""
    keys = ("accepted", *KINDS, CONDITIONED)
    return pa.Table.from_pylist(
        [{"row": i, **dict(zip(keys, v, strict=False))} for i, v in enumerate(values)], schema=VALUES_SCHEMA
    )


def measured(values: list[tuple[bool | float | None, ...]], seed: int = 0) -> dict[str, Any]:
    gap = Gap(seed)
    gap.add(table(values))
    return gap.result()


def test_differences_are_paired_and_accepted_rows_are_counted_apart() -> None:
    result = measured([(True, -5.0, -2.0, -1.0), (False, -4.0, -6.0, -4.0), (False, -3.0, None, None)])
    assert result["rows"] == 3
    whole, accepted = result["all"], result["accepted"]
    assert (whole["gold"]["mean"], whole["gold"]["n"]) == (-4.0, 3)
    assert (whole["rewrite_minus_gold"]["mean"], whole["rewrite_minus_gold"]["n"]) == (0.5, 2)
    assert (whole["fused_minus_gold"]["mean"], whole["fused_minus_gold"]["n"]) == (2.0, 2)
    assert accepted["fused_minus_gold"] == {"mean": 4.0, "low": None, "high": None, "n": 1}


def test_the_same_rows_cut_in_another_way_give_the_same_intervals() -> None:
    values = [(i % 3 == 0, -5.0 + i / 7, -2.0, -4.0 + i / 9, -1.0 - i / 11) for i in range(40)]
    whole, parts = Gap(7), Gap(7)
    whole.add(table(values))
    for start in (0, 1, 13):
        parts.add(table(values[start : {0: 1, 1: 13, 13: 40}[start]]))
    first, second = whole.result(), parts.result()
    for part in ("all", "accepted"):
        for name, interval in first[part].items():
            assert interval == pytest.approx(second[part][name], rel=1e-12)


def test_intervals_hold_the_true_mean_about_95_times_in_100() -> None:
    random = np.random.default_rng(5)
    held = 0
    for trial in range(200):
        means = Means(["x"], seed=trial)
        means.add(random.gamma(2.0, 1.0, 100))
        interval = means.intervals()["x"]
        assert interval["low"] is not None
        assert interval["high"] is not None
        held += interval["low"] <= 2.0 <= interval["high"]
    assert 180 <= held <= 199


def test_no_rows_have_no_mean() -> None:
    means = Means(["x"], seed=0)
    means.add([math.nan])
    assert means.intervals() == {"x": {"mean": None, "low": None, "high": None, "n": 0}}


@pytest.mark.parametrize(
    ("fused", "words"),
    [
        (
            -1.0,
            "The compatibility gap shrank; fused answers against gold ones over the same 30 rows: +2.988 nats",
        ),
        (-9.0, "The compatibility gap grew; "),
        (None, "It is not shown that the compatibility gap shrank; "),
    ],
)
def test_the_words_follow_the_paired_interval(fused: float | None, words: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 30)
    values = [(True, -4.0, -2.0, -4.0 + n if fused is None else fused + n) for n in noise]
    assert describe(measured(values)).startswith(words)


def test_the_words_say_when_there_is_nothing_to_compare() -> None:
    assert "no rewrite was accepted" in describe(measured([(False, -4.0, -2.0, -4.0)] * 3))
    assert "could not be measured" in describe(measured([(True, None, None, None)]))
    assert "single row" in describe(measured([(True, -4.0, -2.0, -1.0)]))


def test_the_words_say_whether_the_teacher_uses_what_it_is_shown() -> None:
    noise = [0.1, -0.1] * 15
    likelier = describe_reference(measured([(True, -4.0, -2.0, -3.0, -0.5 + n) for n in noise]))
    assert likelier is not None
    assert likelier.startswith(
        "Shown the fused answer, the teacher finds it likelier: a token's probability goes from 0.05 to 0.61 (+2.500 "
    )
    unused = describe_reference(measured([(True, -4.0, -2.0, -3.0, -3.0 + n) for n in noise]))
    assert unused is not None
    assert unused.startswith("The teacher does not use the reference as far as these rows show: ")
    assert "30 rows" in unused
    assert describe_reference(measured([(True, -4.0, -2.0, -3.0)])) is None
    single = describe_reference(measured([(True, -4.0, -2.0, -3.0, -1.0)]))
    assert single is not None
    assert "single row" in single


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    assert read_gap(tmp_path) is None
    (tmp_path / GAP).write_text(json.dumps({"all": {}}))
    with pytest.raises(DataError, match=r"_gap\.json: not a measured gap"):
        read_gap(tmp_path)
