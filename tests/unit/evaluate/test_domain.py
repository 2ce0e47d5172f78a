"""Domain accuracy: what counts as containing an answer. Every case is worked by hand."""

from __future__ import annotations

import pytest

from raft_ray.config import DomainMetric
from raft_ray.errors import DataError
from raft_ray.evaluate.domain import contains, exact, summary


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("It was discovered by Marie Curie in 1898.", "marie curie"),
        ("**Marie**\nCurie!", "Marie Curie"),
        ("The capital is Hague", "The Hague"),
        ("It is an alkali metal", "Alkali metal"),
        ("The capital is THE HAGUE.", "the Hague"),
        ("Bohr's model", "Bohr"),
        ("The intent is `card_arrival`.", "card arrival"),
        ("ﬁre, or ｗａｔｅｒ", "fire"),
        ("Its formula is H₂O.", "H2O"),
        ("A café near the sea", "cafe\u0301"),
        ("The answer is 北京。", "北京"),
        ("Deficiency of vitamin A causes it", "vitamin A"),
        ("it is C++ -> fast", "->"),
    ],
)
def test_an_answer_is_found_whatever_its_case_punctuation_and_articles(response: str, answer: str) -> None:
    assert contains(response, [answer])


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("It is a goldfish.", "gold"),
        ("Curie and Marie", "Marie Curie"),
        ("Marie Skłodowska Curie", "Marie Curie"),
        ("", "gold"),
        ("Deficiency of vitamin C causes it", "vitamin A"),
    ],
)
def test_parts_of_words_and_scattered_words_do_not_count(response: str, answer: str) -> None:
    assert not contains(response, [answer])


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("The pH is 7.", "7", True),
        ("The pH is 7, roughly", "7", True),
        ("It is 1.7 kg", "7", False),
        ("It is 7.5 kg", "7", False),
        ("It is 17 kg", "7", False),
        ("It is 1.7kg.", "1.7", True),
        ("about 1,000 people", "1000", True),
        ("about 1000 people", "1,000", True),
        ("It melts at -38.8 °C", "-38.8", True),
        ("It melts at −38.8 °C", "-38.8", True),
        ("It melts at -38.8 °C", "38.8", False),
        ("It melts at 38.8 °C", "-38.8", False),
        ("in the years 1914-1918", "1918", True),
        ("in the 19th century", "19th", True),
        ("in the 19th century", "9th", False),
        ("H2O", "2", False),
    ],
)
def test_numbers_are_compared_whole(response: str, answer: str, right: bool) -> None:
    assert contains(response, [answer]) is right


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("The symbol is Au.", "Au", True),
        ("**Au**", "Au", True),
        ("The chemical symbol of gold is au.", "Au", False),
        ("AuCl3", "Au", False),
        ("When it cooled, he wrote it down.", "He", False),
        ("He discovered it in 1895.", "He", False),
        ("The symbol is He.", "He", True),
        ("He", "He", True),
        ('"In" is its symbol', "In", True),
        ("In the periodic table it is next to tin.", "In", False),
        ("It is far down. As the name says, it is rare.", "As", False),
        ("I think it is iodine", "I", False),
        ("I'm sure it is iodine", "I", False),
        ("Its symbol is I.", "I", True),
        ("The answer is B)", "B", True),
        ("The answer is b", "B", False),
        ("A", "A", True),
        ("A dog is an animal.", "B", False),
    ],
)
def test_one_and_two_letter_answers_are_symbols(response: str, answer: str, right: bool) -> None:
    assert contains(response, [answer]) is right


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("Yes, it does.", "yes", True),
        ("Yes, there is no doubt.", "no", False),
        ("The answer is no.", "No", True),
        ("No, although some say yes.", "yes", False),
        ("Perhaps.", "no", False),
        ("It is not known", "no", False),
        ("True.", "true", True),
        ("False, and not true.", "true", False),
    ],
)
def test_yes_and_no_exclude_each_other(response: str, answer: str, right: bool) -> None:
    assert contains(response, [answer]) is right


def test_any_of_several_answers_counts() -> None:
    assert contains("Discovered by Priestley", ["Carl Scheele", "Priestley"])
    assert not contains("Discovered by Lavoisier", ["Carl Scheele", "Priestley"])


def test_a_blank_answer_is_an_error_and_not_always_right() -> None:
    with pytest.raises(DataError, match="blank"):
        contains("anything", [" "])


@pytest.mark.parametrize(
    ("response", "answers", "right"),
    [
        ("Paris", ["Paris"], True),
        ("  the paris. ", ["Paris"], True),
        ("It is Paris.", ["Paris"], False),
        ("Paris", ["Rome", "Paris"], True),
        ("1,000", ["1000"], True),
        ("1000 m", ["1000"], False),
        ("Au", ["Au"], True),
        ("au", ["Au"], False),
        ("Au!", ["Au"], True),
        ("Yes.", ["yes"], True),
        ("No, yes", ["yes"], False),
        ("", ["Paris"], False),
        ("A", ["the"], False),
    ],
)
def test_exact_is_the_answer_and_nothing_else(response: str, answers: list[str], right: bool) -> None:
    assert exact(response, answers) is right


def test_a_blank_answer_matches_nothing_exactly() -> None:
    with pytest.raises(DataError, match="blank"):
        exact("", [" "])


@pytest.mark.parametrize(
    ("metric", "taken", "chosen"),
    [
        ("auto", ("contains", "exact"), "contains"),
        ("auto", ("contains", "exact", "choice", "letter"), "choice"),
        ("contains", ("contains", "choice"), "contains"),
        ("exact", ("contains", "exact"), "exact"),
        ("letter", ("contains", "choice", "letter"), "letter"),
    ],
)
def test_every_measure_is_kept_and_one_counts(metric: str, taken: tuple[str, ...], chosen: str) -> None:
    verdicts = {name: [True] * place + [False] * (4 - place) for place, name in enumerate(taken)}
    result = summary(verdicts, DomainMetric(metric))
    assert (result["metric"], result["n"]) == (chosen, 4)
    assert result["accuracy"] == taken.index(chosen) / 4
    assert result["correct"] == verdicts[chosen]
    assert {name: one["correct"] for name, one in result["metrics"].items()} == verdicts


def test_measures_over_other_questions_are_not_joined() -> None:
    with pytest.raises(ValueError, match="1, 2"):
        summary({"contains": [True], "choice": [True, False]}, DomainMetric.auto)
    with pytest.raises(ValueError, match="0"):
        summary({"contains": []}, DomainMetric.auto)
