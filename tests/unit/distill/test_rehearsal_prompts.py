"""The prompts of rehearsal: which self-written ones are kept, what forms they get, and their file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from raft_ray.config import Config, settings
from raft_ray.data.general import general_prompts
from raft_ray.distill.forms import all_forms, draw_forms
from raft_ray.distill.rehearsal import (
    FILE,
    encode_prompts,
    given_prompts,
    read_answers,
    read_prompts,
    room,
    with_forms,
    write_prompts,
)
from raft_ray.distill.sieve import Sieve
from raft_ray.errors import DataError, RaftError
from raft_ray.evaluate.ifeval import load_prompts
from raft_ray.models import TINY, load_chat, resolve
from raft_ray.models.chat import Chat
from raft_ray.models.prompts import rows_digest
from raft_ray.preflight import preflight
from raft_ray.refine.embed import make_embedder


def apart(texts: list[str]) -> npt.NDArray[np.float32]:
    """An embedder for which no two texts are alike."""
    return np.random.default_rng(len(texts)).normal(size=(len(texts), 64)).astype(np.float32)


def config(*keys: str) -> Config:
    base = ["data.train=domain:chemistry", "refine.enabled=false", "distill.target=gold", "run.baselines=[]"]
    return settings.load("smoke", [*base, "distill.rehearsal.rows=2", *keys])


@pytest.fixture(scope="module")
def chat() -> Chat:
    return load_chat(resolve(TINY), config().model)


# What is kept


@pytest.mark.parametrize(
    ("text", "truncated", "reason"),
    [
        ("  \n ", False, "empty"),
        ("Tell me all about the sea and", True, "cut off"),
        ("What is\0 a whale?", False, "unreadable"),
        ("Thanks!", False, "too short"),
        ("please tell me please tell me please tell me please tell me", False, "repetitive"),
        ("How  DEEP is the sea", False, "written before"),
        ("How far is it to a place that nobody has ever seen?", False, "without room"),
    ],
)
def test_what_a_model_writes_is_refused_for_a_reason_that_is_counted(text: str, truncated: bool, reason: str) -> None:
    sieve = Sieve(lambda text: len(text) < 50, apart)
    sieve.add([("How deep is the sea?\n", False), (text, truncated), ("Name a river in Asia.", False)])
    assert sieve.kept == ["How deep is the sea?", "Name a river in Asia."]
    assert sieve.refused == {reason: 1}
    assert sieve.summary() == f"1 refused (1 {reason})"


def test_a_prompt_that_is_nearly_another_is_left_out_whenever_it_comes() -> None:
    sieve = Sieve(lambda text: True, make_embedder("wordllama").embed)
    sieve.add([("What is the boiling point of water at sea level?", False)])
    sieve.add([("What's the boiling point of water at sea level??", False), ("Who painted the Mona Lisa?", False)])
    sieve.add([("Who was it who painted the Mona Lisa?", False), ("Write a poem about autumn leaves.", False)])
    assert sieve.kept[0] == "What is the boiling point of water at sea level?"
    assert "Who painted the Mona Lisa?" in sieve.kept
    assert "Write a poem about autumn leaves." in sieve.kept
    assert sieve.refused["like another"] >= 1


def test_ordinary_prompts_pass() -> None:
    sieve = Sieve(lambda text: True, make_embedder("wordllama").embed)
    sieve.add((prompt, False) for prompt in general_prompts())
    assert sieve.kept == general_prompts()


# Forms


def test_no_form_is_worded_as_an_instruction_of_ifeval() -> None:
    """None stands in a prompt of IFEval, nor do five of its words in a row."""
    asked = [_words(prompt.prompt) for prompt in load_prompts(None, 0)]
    assert len(asked) == 541
    runs = {tuple(words[i : i + 5]) for words in asked for i in range(len(words) - 4)}
    texts = [f" {' '.join(words)} " for words in asked]
    for sentence in (sentence for sentences in all_forms() for sentence in sentences):
        words = _words(sentence)
        assert not [text for text in texts if f" {' '.join(words)} " in text], sentence
        assert not {tuple(words[i : i + 5]) for i in range(len(words) - 4)} & runs, sentence


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def test_forms_are_filled_in_and_differ() -> None:
    sentences = [sentence for each in all_forms() for sentence in each]
    assert len(set(sentences)) == len(sentences) > 100
    assert not [sentence for sentence in sentences if re.search(r"\{(few|many|language)\}", sentence)]


def test_the_asked_for_share_of_the_prompts_ends_with_a_form_by_seed() -> None:
    prompts = [[{"role": "user", "content": f"Question {n}? "}] for n in range(40)]
    lines = with_forms(prompts, 0.25, seed=3)
    formed = [line for line in lines if line["form"] is not None]
    assert len(formed) == 10
    for n, line in enumerate(lines):
        content = line["messages"][-1]["content"]
        assert content == (f"Question {n}? " if line["form"] is None else f"Question {n}? {line['form']}")
    assert with_forms(prompts, 0.25, seed=3) == lines
    assert [line["form"] for line in with_forms(prompts, 0.25, seed=4)] != [line["form"] for line in lines]
    (line,) = with_forms([[{"role": "user", "content": "a word for rain "}]], 1.0, seed=0)
    assert line["messages"][-1]["content"] == f"a word for rain\n{line['form']}"
    assert draw_forms(7, 0.0, 0) == [None] * 7
    assert None not in draw_forms(7, 1.0, 0)


# The file and the rows


def test_the_file_is_read_back_as_it_was_written_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    prompts = [
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Wie geht’s, {n}?"}] for n in range(3)
    ]
    lines = with_forms(prompts, 0.5, seed=0)
    write_prompts(tmp_path, lines)
    assert read_prompts(tmp_path, 3) == [line["messages"] for line in lines]
    text = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(text.rpartition('{"messages"')[0])
    with pytest.raises(
        RaftError, match=r"rehearsal\.jsonl: 2 prompts, not distill\.rehearsal\.count=3; go on with what"
    ):
        read_prompts(tmp_path, 3)
    (tmp_path / FILE).write_text(text.replace('"role": "user"', '"role": "nobody"', 1))
    with pytest.raises(RaftError, match=r"rehearsal\.jsonl line 1: message 2 has role 'nobody'"):
        read_prompts(tmp_path, 3)


def test_the_teacher_reads_what_the_student_reads_and_nobody_an_answer(chat: Chat) -> None:
    prompts = [[{"role": "user", "content": text}] for text in ("What is rain?", "Name a bird.")]
    rows = encode_prompts(prompts, chat, context=512, max_new_tokens=128, first=7)
    assert list(rows) == [7, 8]
    for messages, row in zip(prompts, rows.values(), strict=True):
        assert row.prompt == row.teacher_prompt == chat.prompt(messages)
        assert row.rehearses
        assert row.answer == []
    with pytest.raises(DataError, match=r"prompt 1 has \d+ tokens and leaves no room for .*max_new_tokens=480"):
        encode_prompts(
            [prompts[1], [{"role": "user", "content": "Why? " * 10}]], chat, context=512, max_new_tokens=480, first=0
        )


def test_replayed_answers_are_targets_or_what_the_teacher_scores_and_a_cut_one_does_not_end_its_turn(
    chat: Chat, tmp_path: Path
) -> None:
    prompts = [[{"role": "user", "content": text}] for text in ("What is rain?", "Name a bird.", "Why?")]
    written = [("Water that falls.", False), ("A robin and a", True), ("", True)]
    write_prompts(
        tmp_path,
        [
            {"messages": messages, "form": None, "answer": text, "truncated": cut}
            for messages, (text, cut) in zip(prompts, written, strict=True)
        ],
    )
    answers = read_answers(tmp_path)
    assert answers == written
    whole, cut, empty = (chat.turn(messages, text) for messages, (text, _) in zip(prompts, written, strict=True))
    expected = [whole, cut[:-1], empty[:-1] or empty]

    room = {"context": 512, "max_new_tokens": 64}
    targets = encode_prompts(prompts, chat, **room, first=7, answers=answers)
    assert [(row.answer, row.teacher_prompt, row.response) for row in targets.values()] == [
        (e, [], ()) for e in expected
    ]
    scored = encode_prompts(prompts, chat, **room, first=7, answers=answers, scored=True)
    assert [(row.answer, list(row.response)) for row in scored.values()] == [([], each) for each in expected]
    assert all(row.teacher_prompt == row.prompt for row in scored.values())
    assert all(row.rehearses for row in (*targets.values(), *scored.values()))
    assert rows_digest(scored) != rows_digest(encode_prompts(prompts, chat, **room, first=7))
    assert encode_prompts(prompts, chat, context=512, max_new_tokens=2, first=7, answers=answers)[7].answer == whole[:2]

    write_prompts(tmp_path, with_forms(prompts, 0, 0))
    with pytest.raises(RaftError, match=r"rehearsal\.jsonl line 1: has no answer to replay"):
        read_answers(tmp_path)


def test_a_prompt_that_fits_does_so_with_every_form(chat: Chat) -> None:
    context, tokens = 512, 128
    fits = room(config(f"distill.rehearsal.max_new_tokens={tokens}"), chat, context)
    longest = next(n for n in range(1, 400) if not fits([{"role": "user", "content": "a " * (n + 1)}]))
    for sentence in (sentence for sentences in all_forms() for sentence in sentences):
        content = f"{('a ' * longest).rstrip()} {sentence}"
        assert len(chat.prompt([{"role": "user", "content": content}])) + tokens <= context
    assert room(config("distill.rehearsal.forms=0"), chat, context)([{"role": "user", "content": "a " * (longest + 1)}])


# Prompts of a source

SOURCE: list[dict[str, Any]] = [
    {"prompt": "What is rain?"},
    {"question": "Name a bird.", "answer": "A robin."},
    {"instruction": "Translate.", "input": "Guten Tag"},
    {"messages": [{"role": "user", "content": "Hi, who are you?"}, {"role": "assistant", "content": "A model."}]},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]},
]


def source(folder: Path, *more: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join([*map(json.dumps, SOURCE), *more]) + "\n")
    return path


def test_of_a_source_the_prompts_alone_are_taken_with_or_without_answers(tmp_path: Path, chat: Chat) -> None:
    made = config(f"distill.rehearsal.prompts={source(tmp_path)}", "distill.rehearsal.count=5")
    found = given_prompts(made, chat, 512)
    assert [messages[-1]["content"] for messages in found] == [
        "What is rain?",
        "Name a bird.",
        "Translate.\n\nGuten Tag",
        "Hi, who are you?",
        "Why is the sky blue?",
    ]
    assert all(messages[-1]["role"] == "user" for messages in found)
    assert found[4][0] == {"role": "system", "content": "Be brief."}
    fewer = config(f"distill.rehearsal.prompts={source(tmp_path, 'not JSON')}", "distill.rehearsal.count=2")
    assert given_prompts(fewer, chat, 512) == found[:2]


def test_a_row_of_a_source_that_cannot_be_used_is_named_or_left_out(tmp_path: Path, chat: Chat) -> None:
    path = source(tmp_path, '{"prompt": 4}', json.dumps({"prompt": "long " * 400}))
    keys = [f"distill.rehearsal.prompts={path}", "distill.rehearsal.count=6"]
    with pytest.raises(DataError, match=r"distill\.rehearsal\.prompts=.*: line 6: prompt is not text"):
        given_prompts(config(*keys), chat, 512)
    with pytest.raises(
        DataError, match=r"has 5 prompts that can be used and 2 that cannot, fewer than .*count=6; lower"
    ):
        given_prompts(config(*keys, "data.on_bad_row=skip"), chat, 512)


def test_preflight_refuses_what_the_rehearsal_of_any_method_cannot_have(tmp_path: Path) -> None:
    made = config("run.baselines=[sft]", f"distill.rehearsal.prompts={source(tmp_path)}")
    made.distill.rehearsal.rows = 0
    preflight(made)
    override = "run.overrides={sft: {distill: {rehearsal: {rows: 2}}}}"
    other = config("run.baselines=[sft]", f"distill.rehearsal.prompts={source(tmp_path)}", override)
    other.distill.rehearsal.rows = 0
    with pytest.raises(DataError, match=r"has 5 prompts that can be used, fewer than distill\.rehearsal\.count=1000"):
        preflight(other, others=[settings.for_method(other, "sft")])


def test_a_baseline_rehearses_only_where_it_is_said() -> None:
    own = config("distill.rehearsal.weight=3")
    assert settings.for_method(own, "raft").distill.rehearsal.rows == 2
    assert settings.for_method(own, "sft").distill.rehearsal.rows == 0
    said = config("distill.rehearsal.weight=3", "run.overrides={sft: {distill: {rehearsal: {rows: 1}}}}")
    rehearsal = settings.for_method(said, "sft").distill.rehearsal
    assert (rehearsal.rows, rehearsal.weight) == (1, 3)
    assert settings.for_method(said, "sft").uses_rollouts
    assert not settings.for_method(said, "sft").uses_distillation
