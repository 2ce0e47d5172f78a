"""When a text states an answer: evaluation and stage 1 read texts by the same rules. Every case is worked by hand."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spellings import OTHER, SAME

from raft_ray.data.normalise import fold, has_symbol, keys, numbers, tokens, visible, words
from raft_ray.evaluate.domain import contains, exact
from raft_ray.refine.key_facts import invented_facts, key_facts, missing_facts, states


def table(text: str) -> list[tuple[str, str]]:
    cases = [tuple(line.split(" | ")) for line in text.strip().splitlines() if " | " in line]
    assert all(len(case) == 2 for case in cases)
    return cases  # type: ignore[return-value]


@pytest.mark.parametrize(("answer", "response"), table(SAME))
def test_an_answer_is_found_in_every_spelling_by_evaluation_and_stage_1(answer: str, response: str) -> None:
    assert contains(response, [answer]), (keys(response), keys(answer, answer=True))
    assert states(response, answer)


@pytest.mark.parametrize(("answer", "response"), table(OTHER))
def test_another_answer_is_not_found_by_evaluation_or_stage_1(answer: str, response: str) -> None:
    assert not contains(response, [answer]), (keys(response), keys(answer, answer=True))
    assert not exact(response, [answer])
    assert not states(response, answer)


@pytest.mark.parametrize("answer", sorted({answer for case in table(SAME + OTHER) for answer in case}))
def test_every_answer_is_right_as_it_stands_alone_in_a_sentence_and_in_quotes(answer: str) -> None:
    assert exact(answer, [answer])
    for response in (answer, f"The answer is {answer}", f'It is "{answer}", as was said.', f"- {answer}\n- more"):
        assert contains(response, [answer]), response
        assert states(response, answer), response


@pytest.mark.parametrize(
    ("response", "symbol", "right"),
    [
        ("He is helium.", "He", True),
        ("In stands for indium.", "In", True),
        ("As is the chemical symbol of arsenic", "As", True),
        ("I is the element iodine", "I", True),
        ("No is nobelium.", "No", True),
        ("He is a chemist.", "He", False),
        ("He is here.", "He", False),
        ("He discovered helium.", "He", False),
        ("It was known. As is usual, it reacts.", "As", False),
        ("I think it is iodine.", "I", False),
        ("A dog is an animal.", "A", False),
        ("A is right.", "A", True),
        ("Of these, vitamin A deficiency", "A", True),
        ("I use R for this.", "R", True),
        ("r is small.", "R", False),
        ("The language is C", "C", True),
        ("The symbol: He", "He", True),
    ],
)
def test_a_symbol_is_not_the_english_word_that_it_spells(response: str, symbol: str, right: bool) -> None:
    assert has_symbol(response, symbol) is right


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t", "\u200b", "\ufeff", "\u200e\u200f", "\u00ad", "\u2060 \u00a0", "\u3164", "\u2800", "\x00"]
)
def test_spaces_controls_and_zero_width_characters_are_nothing(text: str) -> None:
    assert not visible(text)
    assert tokens(text) == ()
    assert not contains(text, ["x"])
    assert not exact(text, ["."])


@pytest.mark.parametrize("text", ["a", "5", ".", "?", "😀", "+", "的", "\u200ba", "-"])
def test_whatever_can_be_seen_is_something(text: str) -> None:
    assert visible(text)


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("?", "?", True),
        ("It is `?`.", "?", True),
        ("What is it?", "?", False),
        ("Paris.", ".", False),
        ("...", ".", False),
        ('The mark is "...".', "...", True),
    ],
)
def test_punctuation_is_an_answer_only_where_it_stands_by_itself(response: str, answer: str, right: bool) -> None:
    assert contains(response, [answer]) is right


def test_numbers_are_listed_as_they_are_written_with_sign_and_currency() -> None:
    text = "From -38.80 to 1,064 °C, $5.00, 50% and 5€; minus 3, 6×10³ of 1 000"
    assert numbers(text) == ["-38.80", "1,064", "$5.00", "50%", "5€", "minus 3", "6×10^3", "1 000"]


def test_numbers_keep_their_brackets_and_may_be_joined_or_not_in_facts() -> None:
    assert missing_facts("It lies at the point (3,4) in the plane.", "It lies at (3, 4) in the plane.") == []
    assert missing_facts("It lies at the point (3,4) in the plane.", "It lies at 3.4 in the plane.") == ["3", "4"]
    assert exact("1 538", ["1538"])
    assert invented_facts("The codes are 404 and 500.", "It says HTTP 404 500.") == ["HTTP"]
    assert invented_facts("It says 404 500.", "The codes are 404 and 500.") == []
    assert invented_facts("It says 404 500.", "The codes are 404 and 501.") == ["501"]


def test_a_spelled_number_with_its_sign_or_scale_is_one_fact() -> None:
    assert key_facts("It was the club of Three million people who had all lived there.") == ["Three million"]
    assert key_facts("What it gives is what I call minus Five, whatever you think of it.") == ["minus Five"]


def test_a_text_without_anything_has_no_numbers() -> None:
    assert numbers("") == numbers(" ?!") == []


def test_lengths_count_words_and_numbers_but_no_signs() -> None:
    assert words("It's 50% of $1,000 & x > 5.") == ["It's", "50", "of", "1000", "x", "5"]


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=300)
def test_a_folded_text_reads_the_same_when_it_is_folded_again(text: str) -> None:
    assert fold(fold(text)) == fold(text)


# Each takes minutes where a pattern, or a function around it, is quadratic in the length of a run.
RUNS = ("A. ", "11,", "1,", "100 ", "1 ", "1.", "He wrote. ", "A dog ", "(", "$", "- ", "#", "北", " ")


@pytest.mark.parametrize("run", RUNS)
def test_long_runs_of_anything_are_read_in_linear_time(run: str) -> None:
    text = run * (20_000 // len(run))
    assert has_symbol(f"{text}\nHe", "He")
    assert not states(text, "Paris")


@pytest.mark.parametrize("run", [" ", "\t", "“", "« "])
def test_facts_of_long_runs_are_found_in_linear_time(run: str) -> None:
    assert missing_facts(f"Paris {run * 30_000} Rome", "Paris, Rome") == []


PIECES = re.findall(
    r"\S+",
    """
$5 50 % 1 000 5 million – - .5 .NET C++ U.S. J. R. Tolkien 1/2 ½ 5–10 to €7 3,14 A He x > Fe2+ a@b.de minus 10:30
minus Five million Three one of Gold's l'eau °C 20 degrees Celsius 10² × * ( ) " 北京 the and & ; . ,
""",
)


@given(st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join))
@settings(deadline=None, max_examples=500, derandomize=True)
def test_a_text_never_misses_its_own_facts_whatever_they_are(text: str) -> None:
    assert missing_facts(text, text) == []


@given(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join))
@settings(deadline=None, max_examples=300)
def test_no_text_breaks_the_normaliser(text: str, pieces: str) -> None:
    for each in (text, pieces, pieces + text):
        assert keys(each) == keys(each)
        assert all(token.key for token in tokens(each))
        if visible(each):
            assert exact(each, [each]) in (True, False)
