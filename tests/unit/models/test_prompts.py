"""What student and teacher read, and that the response joins both to the token."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from raft_ray.cli.prompts import print_row
from raft_ray.config import ModelConfig, OnLongReference
from raft_ray.errors import DataError
from raft_ray.models import TINY, load_chat, resolve
from raft_ray.models.prompts import PromptEncoder

TEMPLATE = "Background reference knowledge: {answer}\nAnswer the question based on the reference knowledge: {prompt}"
TEXT = st.lists(
    st.text(max_size=20) | st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im_"]), min_size=1, max_size=5
).map("".join)
QUESTION = [{"role": "user", "content": "Who found radium?"}]


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(load_chat(resolve(TINY), ModelConfig()), 400, 16, TEMPLATE)


def test_the_student_reads_the_chat_up_to_the_assistants_turn(encoder: PromptEncoder) -> None:
    text = encoder.tokenizer.decode(encoder.prompt(QUESTION))
    assert text == "<|im_start|>user\nWho found radium?<|im_end|>\n<|im_start|>assistant\n"


def test_the_answer_ends_with_the_end_of_turn_and_nothing_after_it(encoder: PromptEncoder) -> None:
    ids = encoder.answer(QUESTION, "Marie Curie.")
    assert encoder.tokenizer.decode(ids) == "Marie Curie.<|im_end|>"
    assert ids[-1] == encoder.tokenizer.eos_token_id


def test_the_teacher_reads_reference_and_question_in_one_user_turn(encoder: PromptEncoder) -> None:
    text = encoder.tokenizer.decode(encoder.teacher_prompt(QUESTION, "Marie Curie."))
    assert text == (
        "<|im_start|>user\nBackground reference knowledge: Marie Curie.\n"
        "Answer the question based on the reference knowledge: Who found radium?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_earlier_turns_stay_before_the_teachers_question(encoder: PromptEncoder) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        *QUESTION,
    ]
    text = encoder.tokenizer.decode(encoder.teacher_prompt(chat, "Marie Curie."))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
    assert "reference" not in text[: text.index("Hello.")]


def test_without_a_template_the_teacher_reads_what_the_student_reads() -> None:
    plain = PromptEncoder(load_chat(resolve(TINY), ModelConfig()), 400, 16, None)
    assert plain.teacher_prompt(QUESTION, "Marie Curie.") == plain.prompt(QUESTION)


@settings(max_examples=50, deadline=None)
@given(TEXT, TEXT)
def test_the_join_is_exact_for_any_text(encoder: PromptEncoder, question: str, answer: str) -> None:
    messages = [{"role": "user", "content": question}]
    row = encoder.row(0, messages, answer, answer)
    joined = encoder.tokenizer.decode(row.prompt + row.answer)
    rendered = encoder.tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": answer}], tokenize=False
    )
    end = rendered.rindex("<|im_end|>") + len("<|im_end|>")
    assert joined == rendered[:end]
    assert row.answer.index(encoder.chat.end_id) == len(row.answer) - 1


def test_braces_and_field_names_in_a_users_text_are_no_template(encoder: PromptEncoder) -> None:
    messages = [{"role": "user", "content": "What is {answer} in {this}?"}]
    text = encoder.tokenizer.decode(encoder.teacher_prompt(messages, "{prompt}"))
    assert "Background reference knowledge: {prompt}\n" in text
    assert "What is {answer} in {this}?" in text


def test_a_teacher_prompt_that_does_not_fit_is_refused_with_its_length(encoder: PromptEncoder) -> None:
    with pytest.raises(DataError, match=r"row 7: the teacher's prompt has \d+ tokens .* context of 400"):
        encoder.teacher_prompt(QUESTION, "very long " * 300, "row 7")


def test_a_long_reference_is_shortened_from_its_own_end_and_the_question_stays() -> None:
    chat = load_chat(resolve(TINY), ModelConfig())
    encoder = PromptEncoder(chat, 400, 16, TEMPLATE, OnLongReference.shorten)
    ids = encoder.teacher_prompt(QUESTION, "The beginning. " + "very long " * 300)
    text = chat.tokenizer.decode(ids)
    assert len(ids) <= 400 - 16
    assert "knowledge: The beginning. very long" in text
    assert text.endswith("Who found radium?<|im_end|>\n<|im_start|>assistant\n")


def test_a_question_too_long_for_any_reference_is_refused_even_when_shortening() -> None:
    chat = load_chat(resolve(TINY), ModelConfig())
    encoder = PromptEncoder(chat, 100, 16, TEMPLATE, OnLongReference.shorten)
    with pytest.raises(DataError, match="without any reference"):
        encoder.teacher_prompt([{"role": "user", "content": "why " * 100}], "because")


def test_a_row_whose_answer_does_not_fit_the_context_is_refused(encoder: PromptEncoder) -> None:
    with pytest.raises(DataError, match="do not fit a context of 400"):
        encoder.row(0, QUESTION, "long " * 400, None)


def test_show_row_prints_both_readers_and_marks_the_join(encoder: PromptEncoder) -> None:
    console = Console(file=io.StringIO(), width=200)
    row = encoder.row(0, QUESTION, "Marie Curie.", "Marie Curie.")
    print_row(encoder, row, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "student reads" in text
    assert "teacher reads" in text
    assert "Background reference knowledge: Marie Curie." in text
    assert text.count("prompt ends") == text.count("response begins") == 2
    assert f"{row.prompt[-1]}:{encoder.tokenizer.decode(row.prompt[-1:])!r}" in text
    assert f"{row.answer[0]}:{encoder.tokenizer.decode(row.answer[:1])!r}" in text
