"""The guards that look at how a text is written: language, script, repetition, leaks, length, thinking."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.config import RefineGuardsConfig
from raft_ray.refine.guards import GUARDS, Draft, foreign_letters, in_another_language, refusal

GOLD = (
    "Gold is a chemical element with symbol Au. In its pure form it is a bright, slightly reddish yellow, dense, soft, "
    "malleable and ductile metal that reacts with few other substances and is found in nature in its own form."
)
QUESTION = "What is the chemical symbol of gold?"


def refused(text: str, answer: str = "Au", prompt: str = QUESTION, **changes: object) -> str | None:
    limits = RefineGuardsConfig(**changes)  # type: ignore[arg-type]
    return refusal(Draft(prompt=prompt, answer=answer, text=text), off={"invented"}, limits=limits)


@pytest.mark.parametrize(
    "text",
    [
        "Le symbole chimique de l'or est Au.",
        "El símbolo químico del oro es Au.",
        "Химический символ золота — Au.",
        "金的化学符号是Au。",
        "الرمز الكيميائي للذهب هو Au.",
        "Das ist ein Metall, dessen chemisches Symbol Au ist.",
        "O símbolo químico do ouro é Au, como todos sabem.",
    ],
)
def test_a_text_in_another_language_is_refused(text: str) -> None:
    assert refused(text) == "language"


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        (QUESTION, "Au", "The chemical symbol of gold is Au."),
        ("Was ist das chemische Zeichen von Gold?", "Au", "Das chemische Zeichen von Gold ist Au."),
        ("¿Cuál es el símbolo químico del oro?", "Au", "El símbolo químico del oro es Au."),
        ("金的化学符号是什么？", "Au", "金的化学符号是Au。"),
        ("Was ist Gold?", "It is a metal that is found in nature.", "In nature it is found as a metal."),
        (
            "Translate into French: you may ask for it at any time.",
            "Vous pouvez le demander à tout moment.",
            "Vous pouvez demander cela à tout moment.",
        ),
        ("who did natalie portman play?", "Padmé Amidala", "Padmé Amidala in Star Wars"),
        ("What is the mean?", "μ", "It is written μ = Σx / n."),
    ],
)
def test_a_text_in_the_language_of_question_or_answer_is_not(prompt: str, answer: str, text: str) -> None:
    assert refused(text, answer, prompt) != "language"


@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=40))
@settings(deadline=None)
def test_no_text_is_foreign_to_itself(text: str, other: str, context: str) -> None:
    assert not in_another_language(text, other, text, least=0.05)
    assert foreign_letters(text, other, text, context) == 0.0
    assert 0.0 <= foreign_letters(text, other) <= 1.0


def test_a_few_letters_of_another_script_are_none_too_many() -> None:
    text = "Gold is Au, in Japanese 金, and it is a metal."
    assert refused(text) is None
    assert refused(text, script=0.01) == "language"


@pytest.mark.parametrize(
    "text",
    [
        "Gold is Au. It is a metal. " * 4,
        GOLD + " It is found in nature as Au." * 4,
        "Au ha" + "ha" * 20,
        "It is Auuuuuuuuuuuuuuuuuuuuu",
        "金是金属。" * 8,
    ],
)
def test_a_text_that_goes_round_in_circles_is_refused(text: str) -> None:
    assert refused(text, answer="Au 金") == "repetition"


def test_a_text_may_repeat_what_the_gold_answer_repeats() -> None:
    gold = "If it is red, stop the car at once. If it is amber, stop the car at once. If it is green, go on slowly."
    text = f"{gold} That is what you should do when you see a light."
    assert refused(text, answer=gold, prompt="What do lights say?", repetition=0.01) is None
    assert refused(text, answer="Red, amber and green are its lights", repetition=0.01) == "repetition"


@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), unique=True, min_size=4, max_size=26))
def test_a_text_without_a_word_twice_never_repeats(letters: list[str]) -> None:
    draft = Draft(prompt="q", answer="x", text=" ".join(letter * 3 for letter in letters))
    assert not GUARDS["repetition"](draft, RefineGuardsConfig(repetition=0.0))


@given(st.lists(st.sampled_from(["gold", "is", "one", "metal", "found"]), min_size=5, max_size=12), st.integers(4, 9))
def test_a_passage_said_four_times_or_more_always_repeats(words: list[str], times: int) -> None:
    draft = Draft(prompt="q", answer="x", text=" ".join([*words] * times))
    assert GUARDS["repetition"](draft, RefineGuardsConfig())


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here is the rewritten answer: the symbol is Au.",
        "Here's a version of the answer in plain words:\nThe symbol is Au.",
        "Certainly. Below is my response:\n\nIt is Au.",
        "According to the reference answer, it is Au.",
        "As an AI language model I say that it is Au.",
    ],
)
def test_a_text_that_talks_of_the_task_is_a_leak(text: str) -> None:
    assert refused(text) == "leak"


def test_words_of_leaks_that_the_row_has_or_the_config_does_not_name_are_none() -> None:
    text = "The gold answer is Au."
    assert refused(text) == "leak"
    assert refused(text, prompt="What would a gold answer to the question be?") is None
    assert refused(text, leaks=[]) is None
    assert refused("The symbol, by the way, is Au.", leaks=["by the way"]) == "leak"
    assert refused("Here is Au.") is None


def test_a_text_asks_the_question_again_only_where_the_gold_answer_does_not() -> None:
    question, gold = "What is gold?", "What is gold? Gold is a metal."
    assert refused("What is gold? It is a metal.", "a metal", question) == "echo"
    assert refused("You ask: what is gold? Gold is a metal.", gold, question) is None


def test_a_text_much_shorter_or_longer_than_the_gold_answer_is_refused() -> None:
    prompt = "What is it?"
    assert refused("Gold is Au.", GOLD, prompt) == "length"
    assert refused("Gold is Au.", GOLD, prompt, shortest=0.0) is None
    assert refused("Au.", "Au!", prompt) == "unchanged"
    distinct = [chr(97 + i % 26) + chr(97 + i // 26) for i in range(120)]
    assert refused(f"{' '.join(distinct)} Au", prompt=" ".join(distinct)) == "length"
    assert refused(f"{' '.join(distinct)} Au", prompt=" ".join(distinct), longest=7.0) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>Reference answer: Ag. Ag Ag Ag Ag Ag.</think>The symbol of gold is Au.", None),
        ("The user wants Au.</think>The symbol of gold is Au.", None),
        ("<think>The symbol of gold is Au.</think>", "empty"),
        ("<think>The symbol of gold is Au.", "empty"),
        ("The symbol of gold is Au.</think>", "empty"),
        ("<think>It is Au.</think>The symbol of gold is Ag.", "key_facts"),
    ],
)
def test_thinking_is_not_part_of_the_answer(text: str, reason: str | None) -> None:
    assert refused(text) == reason


def test_the_guards_are_asked_in_an_order_that_names_the_root_of_it() -> None:
    order = list(GUARDS)
    assert order.index("truncated") < order.index("empty") < order.index("leak") < order.index("key_facts")
    assert order.index("language") < order.index("key_facts")


@given(st.text(max_size=200), st.text(max_size=80), st.text(max_size=80))
@settings(deadline=None)
def test_no_text_breaks_a_guard(text: str, prompt: str, answer: str) -> None:
    draft = Draft(prompt=prompt, answer=answer, text=text)
    assert refusal(draft) in (None, *GUARDS)
    assert refusal(dataclasses.replace(draft, too_long=True)) == "too_long"
