"""The shipped domains are sound data: every fact is asked in training and, in other words, in testing."""

from __future__ import annotations

import importlib.util
import re
import sqlite3
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from raft_ray.data.domains import DOMAINS, load
from raft_ray.data.domains.facts import Fact, Wording, ask, variants
from raft_ray.errors import DataError

every_domain = pytest.mark.parametrize("name", sorted(DOMAINS))


def both(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return load(name, "train"), load(name, "test")


def contains(text: str, words: str) -> bool:
    """Whether the words stand in the text, as an evaluation by containment would look for them."""
    return re.search(rf"(?<!\w){re.escape(words.lower())}(?!\w)", text.lower()) is not None


@every_domain
def test_every_test_fact_is_in_training_with_the_same_gold_answer(name: str) -> None:
    train, test = both(name)
    twice = [row for row in train for _ in range(2)]
    assert [{**row, "prompt": None} for row in twice] == [{**row, "prompt": None} for row in test]


@every_domain
def test_no_question_is_asked_twice_neither_within_nor_across_splits(name: str) -> None:
    train, test = both(name)
    prompts = [row["prompt"].lower() for row in train + test]
    assert len(set(prompts)) == len(prompts)


@every_domain
def test_the_order_is_always_the_same(name: str) -> None:
    assert load(name, "train") == load(name, "train")


@every_domain
def test_each_kind_has_enough_facts_to_be_learned_and_measured(name: str) -> None:
    kinds = Counter(row["kind"] for row in load(name, "train"))
    assert min(kinds.values()) >= 20
    assert 350 <= sum(kinds.values()) <= 600


@every_domain
def test_an_answer_is_a_sentence_that_holds_the_fact_and_facts_are_short_and_clean(name: str) -> None:
    for row in load(name, "train"):
        assert re.fullmatch(r"[A-Z].*\w[\"')]?\.", row["answer"]), row["answer"]
        assert row["answers"][0] in row["answer"] or row["answers"][0] in row["answer"].lower()
        assert len(set(row["answers"])) == len(row["answers"])
        for answer in row["answers"]:
            assert answer == answer.strip(" .,;:\"'()")
            assert re.search(r"\s{2,}|[<>\[\]{}&]|\n", answer) is None
            assert len(answer.split()) <= 12


@every_domain
def test_no_question_gives_its_answer_away(name: str) -> None:
    for row in chain(*both(name)):
        assert not any(contains(row["prompt"], answer) for answer in row["answers"]), row


@every_domain
def test_questions_are_one_plain_sentence(name: str) -> None:
    for row in chain(*both(name)):
        assert row["prompt"][0].isupper()
        assert row["prompt"][-1] in "?."
        assert "{" not in row["prompt"]
        assert "  " not in row["prompt"]
        assert "None" not in row["prompt"]


@every_domain
def test_labels_of_the_same_kind_are_told_apart(name: str) -> None:
    """A right answer for one label must not be found in another label's gold answer."""
    labels = {"family", "continent", "language"}
    answers = {row["answers"][0]: row["answers"] for row in load(name, "train") if row["kind"] in labels}
    for gold, right in answers.items():
        others = [other for other in answers if other != gold]
        assert not any(contains(other, answer) for other in others for answer in right), gold


@pytest.mark.parametrize(
    ("name", "subject", "kind", "answer"),
    [
        ("chemistry", "gold", "symbol", "Au"),
        ("chemistry", "helium", "meaning", "sun"),
        ("chemistry", "einsteinium", "eponym", "Albert Einstein"),
        ("chemistry", "uranium", "eponym", "Uranus"),
        ("chemistry", "palladium", "eponym", "Pallas"),
        ("chemistry", "radium", "discoverer", "Pierre and Marie Curie"),
        ("chemistry", "oxygen", "discoverer", "Joseph Priestley and Carl Wilhelm Scheele"),
        ("chemistry", "tungsten", "country", "Spain"),
        ("chemistry", "neon", "family", "noble gases"),
        ("chemistry", "americium", "use", "americium"),
        ("geography", "Bhutan", "capital", "Thimphu"),
        ("geography", "the Netherlands", "language", "Dutch"),
        ("geography", "Iran", "currency", "rial"),
        ("geography", "Chad", "continent", "Africa"),
    ],
)
def test_well_known_facts_are_right(name: str, subject: str, kind: str, answer: str) -> None:
    found = [row["answers"][0] for row in load(name, "test") if row["kind"] == kind and subject in row.values()]
    assert found == [answer, answer]


def test_any_of_several_discoverers_counts_by_surname_with_or_without_accents() -> None:
    (row, _) = [r for r in load("chemistry", "test") if (r["kind"], r["element"]) == ("discoverer", "technetium")]
    assert {"Perrier", "Segrè", "Segre"} <= set(row["answers"])


def test_chemistry_takes_symbols_and_families_from_the_packaged_data_base() -> None:
    spec = importlib.util.find_spec("mendeleev")
    assert spec is not None
    assert spec.origin is not None
    connection = sqlite3.connect(f"file:{Path(spec.origin).parent / 'elements.db'}?mode=ro", uri=True)
    query = "SELECT lower(e.name), e.symbol, s.name FROM elements e JOIN series s ON s.id = e.series_id"
    known = {name: (symbol, series) for name, symbol, series in connection.execute(query)}
    connection.close()
    rows = load("chemistry", "train")
    assert {row["element"] for row in rows} <= set(known)
    assert all(row["answers"][0] == known[row["element"]][0] for row in rows if row["kind"] == "symbol")
    assert all(row["answers"][0] == known[row["element"]][1].lower() for row in rows if row["kind"] == "family")


@pytest.mark.parametrize(("name", "package"), [("chemistry", "mendeleev"), ("geography", "countryinfo")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(DataError, match=rf"domain:{name}: the package {package} is missing; pip install .*{package}"):
        load(name, "train")


@pytest.mark.parametrize(("wrong", "near"), [("chemisty", "chemistry"), ("geo", "geography")])
def test_an_unknown_domain_is_answered_with_the_nearest_name(wrong: str, near: str) -> None:
    with pytest.raises(DataError, match=rf"data\.test=domain:{wrong}: .*did you mean domain:{near}\?"):
        load(wrong, "test")


def test_training_wordings_take_turns_within_a_kind_and_testing_asks_in_both() -> None:
    facts = [Fact("k", "one", "1"), Fact("k", "two", "2"), Fact("k", "three", "3", ("iii",))]
    wordings = {"k": Wording(("a {n}", "b {n}"), ("s {n}", "t {n}"), "{n} is {answer}.")}
    assert [row["prompt"] for row in ask(facts, wordings, "train", about="n")] == ["a one", "b two", "a three"]
    tests = ask(facts, wordings, "test", about="n")
    assert [row["prompt"] for row in tests] == ["s one", "t one", "s two", "t two", "s three", "t three"]
    assert tests[5] == {
        "prompt": "t three",
        "answer": "Three is 3.",
        "answers": ["3", "iii"],
        "kind": "k",
        "n": "three",
    }


def test_accented_answers_also_count_in_plain_spelling() -> None:
    assert variants("Jöns Berzelius", "Ørsted", "Złoty", "plain") == [
        "Jöns Berzelius",
        "Jons Berzelius",
        "Ørsted",
        "Orsted",
        "Złoty",
        "Zloty",
        "plain",
    ]


def test_a_count_takes_the_same_facts_in_both_splits_spread_over_the_domain() -> None:
    train, test = (load("chemistry:50", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (50, 100)
    assert [row["answer"] for row in train for _ in range(2)] == [row["answer"] for row in test]
    assert len({row["kind"] for row in train}) == len({row["kind"] for row in load("chemistry", "train")})


@pytest.mark.parametrize("count", ["0", "100000", "ten", "-1"])
def test_a_count_that_the_domain_does_not_have_is_refused(count: str) -> None:
    with pytest.raises(DataError, match=rf"domain:chemistry:{count}: name a number of facts from 1 to \d+"):
        load(f"chemistry:{count}", "train")
