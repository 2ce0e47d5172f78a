"""Key facts, guards and judges: what a text must keep, must not show, and how it is scored."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray.config import RefineConfig, SimilarityOn
from raft_ray.data.normalise import Passage
from raft_ray.errors import ConfigError
from raft_ray.refine.embed import make_embedder
from raft_ray.refine.guards import Draft, refusal
from raft_ray.refine.judges import Case, make_judges
from raft_ray.refine.key_facts import invented_facts, key_facts, missing_facts


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        ("Au", ["Au"]),
        ("Known to the ancients.", ["Known to the ancients"]),
        ("William Ramsay and Morris Travers", ["William Ramsay", "Morris Travers"]),
        ("[Ar] 3d6 4s2", ["[Ar] 3d6 4s2"]),
        ("Gold melts at 1,064 °C, at -38.80 °C mercury does.", ["1,064", "°C", "-38.80"]),
        (
            "It was found by Carl Wilhelm von Scheele in 1774 and named at the University of Vienna.",
            ["Carl Wilhelm von Scheele", "1774", "University of Vienna"],
        ),
        (
            'Call `foo(1)` where the manual says "press any key" and NaCl or H2O is shown.',
            ["foo(1)", "press any key", "NaCl", "H2O"],
        ),
        ("a soft silvery metal that is quickly oxidised by air and water", []),
        ("B", ["B"]),
        ("(B) Paris", ["B", "Paris"]),
        ("B. Paris", ["B", "Paris"]),
        ("The correct answer is C.", ["C"]),
        ("Option D: the Bahamas", ["D", "the Bahamas"]),
        (
            "The answer is (A), as the light is bent by the drops of water that are in it.",
            ["A"],
        ),
        ("The answer is A metal that is found in nature and used for coins.", []),
        ("", []),
        ("...", []),
    ],
)
def test_key_facts_are_numbers_names_code_quotations_and_all_of_a_terse_answer(answer: str, facts: list[str]) -> None:
    assert key_facts(answer) == facts


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Au", "The symbol for gold is Au."),
        ("1,538", "It melts at 1538.0 K."),
        ("3", "It has three of them."),
        ("Padmé Amidala", "She plays Padme Amidala’s part."),
        ("the Bahamas", "It lies in Bahamas."),
        ("Alkali metals", "Sodium is an alkali metal."),
        ("He", "The symbol of helium is He."),
        ("A", "The right choice is A."),
        ("A", "A is right."),
        ("A", "It is (A) that is right."),
        ("(A) Paris", "It is Paris, choice A."),
        ("H₂O", "Water is H2O."),
        ("C++", "It is written in C++."),
        ("北京", "首都是北京。"),
        ("Pierre and Marie Curie", "Marie Curie and Pierre found it."),
    ],
)
def test_a_fact_is_kept_whatever_its_spelling(answer: str, text: str) -> None:
    assert missing_facts(answer, text) == []


@pytest.mark.parametrize(
    ("answer", "text", "missing"),
    [
        ("1868", "It happened in 1886.", ["1868"]),
        ("-38.8", "It is 38.8 degrees.", ["-38.8"]),
        ("He", "It was he who found it.", ["He"]),
        ("C++", "It is written in C.", ["C++"]),
        ("Krypton", "It is Kryptonite.", ["Krypton"]),
        ("Lead", "It is misleading.", ["Lead"]),
        ("Pierre and Marie Curie", "Pierre did.", ["Marie Curie"]),
        ("Au", "", ["Au"]),
        ("A", "A metal is what it is.", ["A"]),
        ("(B) Paris", "It is Paris, choice C.", ["B"]),
        ("The answer is C.", "It is option D.", ["C"]),
    ],
)
def test_a_lost_fact_is_named(answer: str, text: str, missing: list[str]) -> None:
    assert missing_facts(answer, text) == missing


PIECES = """A B (A) B. answer Option `x=1` "So" Paris of the He it 3 a . , and : 1,538 It metal is"""
pieces = st.lists(st.sampled_from([*PIECES.split(), "\n", "answer is", '"So it is"']), max_size=20)


@given(st.one_of(st.text(max_size=200), pieces.map(" ".join)))
@settings(deadline=None, max_examples=500)
def test_a_text_never_misses_its_own_facts(text: str) -> None:
    assert missing_facts(text, text) == []


def test_a_text_is_joined_once_however_many_facts_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Passage):
        def __init__(self, words: Sequence[str]) -> None:
            made.append(len(words))
            super().__init__(words)

    # By its path the package has a function of that name.
    monkeypatch.setattr(importlib.import_module("raft_ray.refine.key_facts"), "Passage", Counted)
    answer = "The symbols are He and `No`. " + " ".join(f"It was in {1000 + number} 404 500." for number in range(300))
    assert missing_facts(answer, answer.replace("1299", "1298")) == ["1299"]
    # As it is written, for symbols, and as it is compared.
    assert len(made) == 2


def test_numbers_and_names_that_were_not_given_are_inventions() -> None:
    known = "Who discovered neodymium? Carl Auer von Welsbach"
    assert invented_facts(known, "Neodymium was discovered by Carl Auer von Welsbach in 1942, a German.") == [
        "1942",
        "German",
    ]
    assert invented_facts(known, "It was Carl Auer von Welsbach who discovered neodymium.") == []


def draft(**changes: object) -> Draft:
    values: dict[str, object] = {
        "prompt": "What is the symbol of gold?",
        "answer": "Au",
        "text": "The symbol of gold is Au.",
        "template": "{prompt} The answer is {answer}.\nRepeat this answer as one complete sentence.",
    }
    return Draft(**(values | changes))  # type: ignore[arg-type]


def test_a_sound_rewrite_passes_every_guard() -> None:
    assert refusal(draft()) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": "", "too_long": True}, "too_long"),
        ({"truncated": True}, "truncated"),
        ({"text": " \n"}, "empty"),
        ({"text": "..."}, "empty"),
        ({"text": "Reference answer: Au"}, "leak"),
        ({"text": "Au.\nQuestion: What is silver?"}, "leak"),
        ({"text": "Repeat this answer as one complete sentence. Au."}, "leak"),
        ({"text": "The answer is a metal."}, "leak"),
        ({"text": "The answer to this question is Au."}, "leak"),
        ({"text": "What is the symbol of gold?\n\nIt is Au."}, "echo"),
        ({"text": "Au."}, "unchanged"),
        ({"text": "Au is Au is Au is Au is a metal."}, "repetition"),
        ({"text": "The symbol of gold is Ag."}, "key_facts"),
        ({"text": "The symbol of gold is Au since 1803."}, "invented"),
    ],
)
def test_each_guard_gives_its_reason(changes: dict[str, object], reason: str) -> None:
    assert refusal(draft(**changes)) == reason


def test_a_guard_can_be_off() -> None:
    assert refusal(draft(text="The symbol of gold is Ag."), off={"key_facts", "invented"}) is None


def test_a_template_that_says_the_answer_in_a_sentence_offers_that_sentence() -> None:
    assert refusal(draft(text='The answer is "Au".')) is None
    assert refusal(draft(text="The answer is Au. Repeat this answer as one complete sentence.")) == "leak"


def test_what_stands_in_the_row_itself_is_no_leak() -> None:
    own = draft(prompt="What does a form ask for?", answer="Question: why", text="Question: why is what it asks for.")
    assert refusal(own) is None


def test_what_the_chat_said_before_is_no_invention() -> None:
    text = "The symbol of gold is Au, as Berzelius wrote."
    assert refusal(draft(text=text)) == "invented"
    assert refusal(draft(text=text, context="Tell me of Berzelius.")) is None


class Letters:
    """An embedding of letter counts."""

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)


def test_judges_score_by_meaning_facts_and_identity() -> None:
    judges = make_judges(RefineConfig(judges=["embedding", "key_facts", "exact"]), Letters())
    assert [judge.name for judge in judges] == ["embedding", "key_facts", "exact"]
    cases = [Case("Who?", "Pierre and Marie Curie", text) for text in ("Pierre and Marie Curie.", "Pierre", "zzz")]
    embedding, facts, exact = (judge.score(cases) for judge in judges)
    assert embedding[0] == pytest.approx(1.0)
    assert embedding[0] > embedding[1] > embedding[2] == 0.0
    assert facts == [1.0, 0.5, 0.0]
    assert exact == [1.0, 0.0, 0.0]


def test_a_gold_answer_without_key_facts_loses_none() -> None:
    (judge,) = make_judges(RefineConfig(judges=["key_facts"]), Letters())
    assert judge.score([Case("Why?", "because the light is bent by the drops of water in it", "x")]) == [1.0]


def test_where_a_row_names_short_answers_one_of_them_is_the_fact() -> None:
    gold, right = "Radium was discovered by Pierre and Marie Curie.", ("Pierre and Marie Curie", "Curie")
    (judge,) = make_judges(RefineConfig(judges=["key_facts"]), Letters())
    texts = ("Marie Curie found radium.", "Radium was discovered in France.")
    assert judge.score([Case("Who?", gold, text, right) for text in texts]) == [1.0, 0.0]
    assert refusal(draft(answer=gold, text=texts[0], prompt="Who?", right=right)) is None
    assert refusal(draft(answer=gold, text=texts[1], prompt="Who?", right=right)) == "key_facts"
    assert refusal(draft(answer=gold, text=gold, prompt="Who?", right=right)) is None


def test_the_embedding_judge_reads_the_question_too_where_configured() -> None:
    (alone,) = make_judges(RefineConfig(judges=["embedding"], similarity_on=SimilarityOn.answer), Letters())
    (both,) = make_judges(RefineConfig(judges=["embedding"], similarity_on=SimilarityOn.question_answer), Letters())
    assert alone.score([Case("bcd", "a", "x")]) == [0.0]
    assert both.score([Case("bcd", "a", "x")]) == [pytest.approx(0.75)]


def test_the_shipped_embedder_knows_like_from_unlike() -> None:
    vectors = make_embedder("wordllama").embed(["a cat sat on the mat", "a kitten was sitting on a rug", "tax law", ""])
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, 256)
    cosine = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    assert cosine[0] @ cosine[1] > cosine[0] @ cosine[2] + 0.2
    assert not vectors[3].any()


def test_an_embedder_whose_package_is_missing_names_key_and_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"refine\.embedder=all-MiniLM.*sentence-transformers"):
        make_embedder("all-MiniLM-L6-v2")


def test_an_embedder_that_cannot_be_loaded_is_named_whatever_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise RuntimeError("no connection\nto the hub")

    package = types.ModuleType("sentence_transformers")
    package.__dict__["SentenceTransformer"] = load
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    with pytest.raises(ConfigError, match=r"\Arefine\.embedder=mine: no such model .*\(no connection\)\Z"):
        make_embedder("mine")
