"""Stage 1 on rows, with an invented model: filter, fallback, attempts, rounds, trail, determinism."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raft_ray.config import Config, RefineConfig
from raft_ray.data import Row
from raft_ray.errors import ConfigError, DataError
from raft_ray.refine import Generation, Refiner, check_refine, read_refined, read_summary, unrefined
from raft_ray.refine.generation import Ask
from raft_ray.refine.judges import Case
from raft_ray.refine.refiner import derive_seed
from raft_ray.refine.roles import model_roles, role_models
from raft_ray.refine.schema import REFINED_SCHEMA, RefinedRow, refined_table, summarise, write_summary

REWRITE = "{prompt} The answer is {answer}.\nRepeat this answer as one complete sentence."
FUSE = "FUSE {prompt}|{answer}|{rewrite}"
Reply = Callable[[str, int], "str | Generation"]


class Model:
    """A model that replies by a function of the last message and of how many chats it has read; keeps its calls."""

    identity = "a model of the tests"

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.calls: list[dict[str, Any]] = []
        self.read = 0

    def __call__(self, asks: Sequence[Ask], **options: Any) -> list[Generation]:
        self.calls.append({"chats": [a.chat for a in asks], "draws": [a.draw for a in asks], **options})
        replies = []
        for ask in asks:
            reply = self.reply(ask.chat[-1]["content"], self.read)
            self.read += 1
            replies.append(reply if isinstance(reply, Generation) else Generation(reply, False))
        return replies


class Letters:
    """An embedding of letter counts."""

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)


class Table:
    """A judge that looks its scores up, and keeps what it was asked."""

    def __init__(self, name: str, scores: Mapping[str, float | None]) -> None:
        self.name = name
        self.scores = scores
        self.asked: list[list[str]] = []

    def score(self, cases: Sequence[Case]) -> Sequence[float | None]:
        self.asked.append([case.candidate for case in cases])
        return [self.scores[case.candidate] for case in cases]


def row(index: int = 0, prompt: str = "What is the symbol of gold?", answer: str = "Au", before: Any = ()) -> Row:
    messages = [*before, {"role": "user", "content": prompt}]
    return Row(index=index, line=index + 1, messages=messages, answer=answer, answers=[answer])


def refiner(model: Model, judges: Any = (), seed: int = 0, **changes: Any) -> Refiner:
    config = RefineConfig(**({"tau": -1.0, "fuser": "none"} | changes))
    return Refiner(
        config,
        seed=seed,
        rewriter=model,
        fuser=None if config.fuser == "none" else model,
        embedder=Letters(),
        judges=judges,
        rewrite_template=REWRITE,
        fuse_template=FUSE,
    )


def fusing(scores: Mapping[str, float | None], replies: list[str], **changes: Any) -> tuple[RefinedRow, Model, Table]:
    """One row whose rewrite is `The symbol is Au.` and whose fused candidates are `replies`."""
    queue = iter(replies)
    model = Model(lambda text, _: next(queue) if text.startswith("FUSE") else "The symbol is Au.")
    judge = Table("table", scores)
    refined = refiner(model, [judge], **({"fuser": "self"} | changes)).refine([row()])
    return refined[0], model, judge


def test_the_rewriting_prompt_takes_the_place_of_the_last_message_only() -> None:
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {answer}"}]
    before.append({"role": "assistant", "content": "Hello."})
    model = Model(lambda *_: "The symbol is Au.")
    refined = refiner(model, temperature=0.4, max_new_tokens=17).refine([row(prompt="{answer}?", before=before)])
    (call,) = model.calls
    assert call["chats"][0][:-1] == before
    assert call["chats"][0][-1] == {
        "role": "user",
        "content": "{answer}? The answer is Au.\nRepeat this answer as one complete sentence.",
    }
    assert (call["temperature"], call["max_new_tokens"]) == (0.4, 17)
    assert refined[0]["messages"][-1] == {"role": "user", "content": "{answer}?"}


def test_a_rewrite_below_tau_is_dropped_and_the_row_keeps_gold() -> None:
    near, far = "Au, ua", "Au, zzzzzzzzzz"
    model = Model(lambda text, _: near if "gold" in text else far)
    rows = [row(0), row(1, prompt="What is the symbol of aurum?")]
    accepted, refused = refiner(model, tau=0.8).refine(rows)
    assert (accepted["accepted"], accepted["refused"], accepted["fused"]) == (True, None, near)
    assert (refused["accepted"], refused["refused"], refused["fused"]) == (False, "similarity", "Au")
    assert accepted["similarity"] == pytest.approx(1.0)
    assert refused["similarity"] is not None
    assert refused["similarity"] < 0.8
    assert refused["rewrite"] == far


@pytest.mark.parametrize(
    ("generation", "reason"),
    [
        (Generation("The symbol is Au and", truncated=True), "truncated"),
        (Generation("", truncated=False, too_long=True), "too_long"),
        (Generation("  ", truncated=False), "empty"),
        (Generation("Answer: Au", truncated=False), "leak"),
        (Generation("The symbol is Ag.", truncated=False), "key_facts"),
        (Generation("The symbol is Au, said Berzelius.", truncated=False), "invented"),
    ],
)
def test_a_rewrite_that_a_guard_refuses_is_never_trained_on(generation: Generation, reason: str) -> None:
    refined = refiner(Model(lambda *_: generation), [Table("table", {})], fuser="self").refine([row()])[0]
    assert (refined["refused"], refined["accepted"], refined["fused"]) == (reason, False, "Au")
    assert (refined["candidates"], refined["rounds"]) == ([], 0)


def test_guards_on_facts_can_be_switched_off() -> None:
    model = Model(lambda *_: "The symbol is Ag, said Berzelius.")
    refined = refiner(model, require_key_facts=False, refuse_invented=False).refine([row()])[0]
    assert refined["fused"] == "The symbol is Ag, said Berzelius."


def test_refused_rows_alone_are_rewritten_again() -> None:
    model = Model(lambda text, read: "lost" if "gold" in text and read < 3 else "It is Au.")
    rows = [row(0, prompt="aurum?"), row(1), row(2, prompt="aurum?")]
    refined = refiner(model, attempts=3).refine(rows)
    assert [len(call["chats"]) for call in model.calls] == [3, 1]
    assert len({call["seed"] for call in model.calls}) == 2
    assert [one["fused"] for one in refined] == ["It is Au."] * 3


def test_without_a_fuser_the_accepted_rewrite_is_the_fused_answer() -> None:
    model = Model(lambda *_: "The symbol is Au.")
    refined = refiner(model).refine([row()])[0]
    assert (refined["fused"], refined["candidates"], refined["rounds"]) == ("The symbol is Au.", [], 0)
    assert len(model.calls) == 1


def test_the_best_candidate_over_all_rounds_wins() -> None:
    scores = {"The symbol is Au.": 0.3, "Au ka.": 0.4, "Au kb.": 0.7, "Au kc.": 0.5, "Au kd.": 0.6}
    refined, model, _ = fusing(scores, ["Au ka.", "Au kb.", "Au kc.", "Au kd."], candidates=2, rounds=2)
    assert refined["fused"] == "Au kb."
    assert refined["rounds"] == 2
    assert [(c["source"], c["round"], c["text"], c["score"]) for c in refined["candidates"]] == [
        ("rewrite", 0, "The symbol is Au.", 0.3),
        ("fuse", 1, "Au ka.", 0.4),
        ("fuse", 1, "Au kb.", 0.7),
        ("fuse", 2, "Au kc.", 0.5),
        ("fuse", 2, "Au kd.", 0.6),
    ]
    assert model.calls[1]["chats"][0][-1]["content"] == "FUSE What is the symbol of gold?|Au|The symbol is Au."


def test_rounds_stop_once_a_candidate_is_good_enough() -> None:
    scores = {"The symbol is Au.": 0.3, "Au ka.": 0.8, "Au kb.": 0.1}
    refined, model, _ = fusing(scores, ["Au ka.", "Au kb."], candidates=2, rounds=5, stop_score=0.8)
    assert (refined["fused"], refined["rounds"], len(model.calls)) == ("Au ka.", 1, 2)


def test_rows_leave_the_rounds_one_by_one() -> None:
    model = Model(
        lambda text, read: (
            ("It's Au!" if "gold" in text else f"Au k{'abcdefgh'[read]}.") if "FUSE" in text else "It is Au."
        )
    )
    scores = {"It is Au.": 0.0, "It's Au!": 1.0} | {f"Au k{letter}.": 0.5 for letter in "abcdefgh"}
    refined = refiner(model, [Table("table", scores)], fuser="self", candidates=1, rounds=3).refine(
        [row(0), row(1, prompt="aurum?")]
    )
    assert [one["rounds"] for one in refined] == [1, 3]
    assert [len(call["chats"]) for call in model.calls] == [2, 2, 1, 1]


def test_the_rewrite_and_gold_take_part_where_configured() -> None:
    scores = {"The symbol is Au.": 0.6, "Au": 0.9, "Au ka.": 0.1}
    options = {"candidates": 1, "rounds": 1, "stop_score": 1.0}
    assert fusing(scores, ["Au ka."], **options)[0]["fused"] == "The symbol is Au."
    assert fusing(scores, ["Au ka."], candidate_gold=True, **options)[0]["fused"] == "Au"
    alone = fusing(scores, ["Au ka."], candidate_rewrite=False, **options)[0]
    assert (alone["fused"], [c["source"] for c in alone["candidates"]]) == ("Au ka.", ["fuse"])


def test_a_score_is_the_mean_over_judges_and_the_trail_has_each() -> None:
    model = Model(lambda text, _: "Au ka." if text.startswith("FUSE") else "The symbol is Au.")
    judges = [
        Table("x", {"The symbol is Au.": 0.2, "Au ka.": 1.0}),
        Table("y", {"The symbol is Au.": 0.9, "Au ka.": 0.5}),
    ]
    refined = refiner(model, judges, fuser="self", candidates=1, rounds=1).refine([row()])[0]
    assert refined["candidates"][1]["scores"] == [{"judge": "x", "score": 1.0}, {"judge": "y", "score": 0.5}]
    assert [candidate["score"] for candidate in refined["candidates"]] == [pytest.approx(0.55), 0.75]
    assert refined["fused"] == "Au ka."


def test_a_fused_candidate_that_a_guard_refuses_is_kept_in_the_trail_but_not_judged() -> None:
    refined, _, judge = fusing({"The symbol is Au.": 0.1}, ["The symbol is Ag."], candidates=1, rounds=1)
    assert judge.asked == [["The symbol is Au."]]
    assert refined["candidates"][1] == {
        "text": "The symbol is Ag.", "source": "fuse", "round": 1, "scores": [], "score": 0.0,
    }  # fmt: skip
    assert refined["fused"] == "The symbol is Au."


def test_if_every_candidate_is_refused_the_accepted_rewrite_is_used() -> None:
    refined, _, _ = fusing({}, ["Ag", "Au"], candidates=1, rounds=2, candidate_rewrite=False)
    assert (refined["fused"], refined["rounds"]) == ("The symbol is Au.", 2)


def test_seeds_come_from_run_seed_rows_and_round_alone() -> None:
    def seeds(seed: int, first: int) -> list[int]:
        model = Model(lambda *_: "The symbol is Au.")
        judge = Table("table", {"The symbol is Au.": 0.0})
        options = {"fuser": "self", "rounds": 2, "candidates": 1}
        refiner(model, [judge], seed=seed, **options).refine([row(first), row(first + 1)])
        return [call["seed"] for call in model.calls]

    assert seeds(0, 0) == seeds(0, 0)
    assert len({*seeds(0, 0), *seeds(1, 0), *seeds(0, 64)}) == 9
    assert all(0 <= derive_seed(seed, 1, 10**9, 3) < 2**31 for seed in (-1, 0, 2**40))


def test_no_rows_are_no_work() -> None:
    model = Model(lambda *_: "x")
    assert refiner(model).refine([]) == []
    assert model.calls == []


def test_refined_rows_survive_parquet_and_come_back_in_order(tmp_path: Path) -> None:
    scores = {"The symbol is Au.": 0.3, "Au ka.": 0.4}
    rich = fusing(scores, ["Au ka."], candidates=1, rounds=1)[0]
    plain = unrefined(row(1))
    pq.write_table(refined_table([plain]), tmp_path / "part-00000001.parquet")
    pq.write_table(refined_table([rich]), tmp_path / "part-00000000.parquet")
    write_summary(tmp_path, summarise([rich, plain], 1.5))
    assert read_refined(tmp_path) == [rich, plain]
    assert pq.read_table(tmp_path).schema.equals(
        REFINED_SCHEMA
    )  # the summary does not disturb whoever reads the folder
    summary = read_summary(tmp_path)
    assert (summary["rows"], summary["accepted"], summary["acceptance"]) == (2, 1, 0.5)
    assert (summary["refused"], summary["sources"]) == ({"off": 1}, {"fuse": 1, "gold": 1})
    assert summary["score_mean"] == 0.4


def test_a_folder_without_refined_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no refined rows"):
        read_refined(tmp_path)
    with pytest.raises(DataError, match="did not finish"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rewriter": "other"}, r"refine\.rewriter=other: nobody"),
        ({"rewriter": "embedding"}, r"refine\.rewriter=embedding: nobody"),
        ({"fuser": "nome"}, r"refine\.fuser=nome: nobody is called so; did you mean 'none'"),
        ({"judges": ["exat"]}, r"refine\.judges.*'exact'"),
        ({"judges": []}, r"refine\.judges: none named"),
        ({"judges": ["exact", "exact"]}, r"refine\.judges=.*twice"),
        ({"rewrite_prompt": "nope"}, r"refine\.rewrite_prompt=nope"),
        ({"judge_prompt": "rewrite"}, r"refine\.judge_prompt=rewrite: .*lacks \{candidate\}"),
        ({"models": {"q": {"pth": "x"}}}, r"unknown key refine\.models\.q\.pth; did you mean path"),
        ({"models": {"q": {}}, "fuser": "q"}, r"refine\.models\.q has neither path nor base_url"),
        ({"models": {"q": {"path": "x", "base_url": "y"}}}, r"refine\.models\.q has both path and base_url"),
        ({"models": {"q": {"base_url": "http://h"}}}, r"refine\.models\.q\.model is missing"),
        ({"models": {"q": {"path": "x", "actors": 0}}}, r"refine\.models\.q\.actors=0: must be greater than 0"),
        ({"models": {"q": {"path": "x", "actors": "many"}}}, r"refine\.models\.q\.actors"),
        ({"models": {"self": {"path": "x"}}}, r"refine\.models\.self: this name has a meaning of its own"),
        ({"models": {"q": "x"}}, r"refine\.models\.q: takes a mapping"),
    ],
)
def test_settings_that_cannot_work_are_named_before_anything_starts(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        check_refine(Config(refine=RefineConfig(**changes)))


def test_without_a_fuser_no_judge_is_needed() -> None:
    check_refine(Config(refine=RefineConfig(fuser="none", judges=[])))


def test_roles_name_the_original_model_described_models_and_rules() -> None:
    models = {
        "big": {"path": "some/model", "num_gpus": 2},
        "far": {"base_url": "http://h/v1", "model": "m"},
        "idle": {"path": "x"},
    }
    refine = RefineConfig(models=models, fuser="big", judges=["embedding", "far", "self"])
    assert {name: model.path for name, model in role_models(refine).items()} == {"big": "some/model", "far": None}
    assert role_models(refine)["big"].num_gpus == 2
    assert model_roles(refine) == ["self", "big", "far"]


def test_a_judge_that_fails_is_left_out_of_the_mean_and_counted() -> None:
    model = Model(lambda text, _: "Au ka." if text.startswith("FUSE") else "The symbol is Au.")
    judges = [
        Table("x", {"The symbol is Au.": None, "Au ka.": 0.5}),
        Table("y", {"The symbol is Au.": 0.9, "Au ka.": 0.6}),
    ]
    refined = refiner(model, judges, fuser="self", candidates=1, rounds=1, stop_score=1.0).refine([row()])[0]
    assert [candidate["score"] for candidate in refined["candidates"]] == [0.9, pytest.approx(0.55)]
    assert refined["candidates"][0]["scores"] == [{"judge": "x", "score": None}, {"judge": "y", "score": 0.9}]
    assert refined["fused"] == "The symbol is Au."
    assert summarise([refined], 1.0)["judge_failures"] == {"x": 1}


def test_a_candidate_that_no_judge_scored_is_never_chosen() -> None:
    refined, _, _ = fusing({"The symbol is Au.": 0.1, "Au ka.": None}, ["Au ka."], candidates=1, rounds=1)
    assert refined["fused"] == "The symbol is Au."
    refined, _, _ = fusing({"The symbol is Au.": None, "Au ka.": None}, ["Au ka."], candidates=1, rounds=1)
    assert refined["fused"] == "The symbol is Au."


def test_what_a_reasoning_model_thinks_is_no_part_of_its_answer() -> None:
    refined = refiner(Model(lambda *_: "<think>Is it Ag? No.</think>\n\nThe symbol is Au.")).refine([row()])[0]
    assert (refined["rewrite"], refined["accepted"]) == ("The symbol is Au.", True)
    refined = refiner(Model(lambda *_: "<think>The symbol is Au")).refine([row()])[0]
    assert (refined["rewrite"], refined["refused"]) == ("", "empty")


def test_a_text_that_never_came_is_refused_as_failed() -> None:
    refined = refiner(Model(lambda *_: Generation("", failed="no answer"))).refine([row()])[0]
    assert (refined["refused"], refined["fused"]) == ("failed", "Au")


def test_every_sample_of_a_row_has_a_number_of_its_own() -> None:
    fused, model, _ = fusing({"The symbol is Au.": 0.0, "Au k.": 0.0}, ["Au k."] * 4, candidates=2, rounds=2)
    assert [call["draws"] for call in model.calls] == [[0], [0, 1], [2, 3]]
    assert fused["rounds"] == 2
