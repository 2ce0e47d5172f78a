"""Stage 1 on rows, with an invented model: filter, fallback, attempts, rounds, trail, determinism."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from refine_fixture import read_refined

from raft_ray.config import Config, Dtype, ModelConfig, RefineConfig, RefineModelConfig
from raft_ray.data import Row
from raft_ray.errors import ConfigError, DataError
from raft_ray.refine.generation import Completion, Request
from raft_ray.refine.judges import Case
from raft_ray.refine.refiner import Refiner, unrefined
from raft_ray.refine.roles import RefinePrompts, check_refine, load_prompts, local_models, model_config, models_used
from raft_ray.refine.schema import REFINED_SCHEMA, RefinedRow, read_summary, refined_table, write_summary
from raft_ray.refine.summary import Summary

REWRITE = "{prompt} The answer is {answer}.\nRepeat this answer as one complete sentence."
FUSE = "FUSE {prompt}|{answer}|{rewrite}"
REMOTE = RefineModelConfig(base_url="http://127.0.0.1:1/v1", model="m")
Reply = Callable[[str, int], "str | Completion"]


class Model:
    """A model that replies by a function of the last message and of how many chats it has read; keeps its calls."""

    identity = "invented"

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.calls: list[dict[str, Any]] = []
        self.read = 0

    def __call__(self, requests: Sequence[Request], **options: Any) -> list[Completion]:
        self.calls.append(
            {
                "chats": [request.chat for request in requests],
                "sample_indices": [request.sample_index for request in requests],
                **options,
            }
        )
        replies = []
        for request in requests:
            reply = self.reply(request.chat[-1]["content"], self.read)
            self.read += 1
            replies.append(reply if isinstance(reply, Completion) else Completion(reply, False))
        return replies


class Letters:
    """An embedding of letter counts."""

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)


class Table:
    """A judge that looks its scores up, and keeps what it was asked."""

    def __init__(self, name: str, scores: dict[str, float | None]) -> None:
        self.name = name
        self.scores = scores
        self.asked: list[list[str]] = []

    def score(self, cases: Sequence[Case]) -> list[float | None]:
        self.asked.append([case.candidate for case in cases])
        return [self.scores[case.candidate] for case in cases]


def row(index: int = 0, prompt: str = "What is the symbol of gold?", answer: str = "Au", before: Any = ()) -> Row:
    messages = [*before, {"role": "user", "content": prompt}]
    return Row(index=index, line=index + 1, messages=messages, answer=answer, answers=[answer])


def refiner(model: Model, judges: Any = (), seed: int = 0, fuser: Model | None = None, **changes: Any) -> Refiner:
    config = RefineConfig(**({"tau": -1.0, "fuser": "none"} | changes))
    return Refiner(
        config,
        seed=seed,
        rewriter=model,
        fuser=fuser or (None if config.fuser == "none" else model),
        embedder=Letters(),
        judges=judges,
        prompts=RefinePrompts(REWRITE, FUSE),
    )


def fusing(scores: dict[str, float | None], replies: list[str], **changes: Any) -> tuple[RefinedRow, Model, Table]:
    """One row whose rewrite is `The symbol is Au.` and whose fused candidates are `replies`."""
    queue = iter(replies)
    model = Model(lambda text, _: next(queue) if text.startswith("FUSE") else "The symbol is Au.")
    judge = Table("table", scores)
    refined = refiner(model, [judge], fuser=model, **changes).refine([row()])
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
        (Completion("The symbol is Au and", truncated=True), "truncated"),
        (Completion("", truncated=False, too_long=True), "too_long"),
        (Completion("  ", truncated=False), "empty"),
        (Completion("Answer: Au", truncated=False), "leak"),
        (Completion("The symbol is Ag.", truncated=False), "key_facts"),
        (Completion("The symbol is Au, said Berzelius.", truncated=False), "invented"),
    ],
)
def test_a_rewrite_that_a_guard_refuses_is_never_trained_on(generation: Completion, reason: str) -> None:
    model = Model(lambda *_: generation)
    refined = refiner(model, [Table("table", {})], fuser=model).refine([row()])[0]
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
    assert [call["sample_indices"] for call in model.calls] == [[0, 0, 0], [1]]
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
    refined = refiner(model, [Table("table", scores)], fuser=model, candidates=1, rounds=3).refine(
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
    refined = refiner(model, judges, fuser=model, candidates=1, rounds=1).refine([row()])[0]
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


def test_a_judge_that_fails_is_left_out_of_the_mean_and_kept_in_the_trail() -> None:
    model = Model(lambda text, _: "Au ka." if text.startswith("FUSE") else "The symbol is Au.")
    judges = [
        Table("x", {"The symbol is Au.": 0.2, "Au ka.": None}),
        Table("y", {"The symbol is Au.": 0.6, "Au ka.": 0.5}),
    ]
    refined = refiner(model, judges, fuser=model, candidates=1, rounds=1).refine([row()])[0]
    assert refined["candidates"][1]["scores"] == [{"judge": "x", "score": None}, {"judge": "y", "score": 0.5}]
    assert [candidate["score"] for candidate in refined["candidates"]] == [pytest.approx(0.4), 0.5]
    assert refined["fused"] == "Au ka."
    summary = Summary()
    summary.add([refined])
    assert summary.result()["judge_failures"] == {"x": 1}


def test_a_candidate_that_no_judge_could_score_cannot_win_nor_end_the_rounds() -> None:
    scores: dict[str, float | None] = {"The symbol is Au.": 0.0, "Au ka.": None, "Au kb.": None}
    refined, _, _ = fusing(scores, ["Au ka.", "Au kb."], candidates=1, rounds=2, stop_score=0.0, candidate_gold=False)
    assert (refined["fused"], refined["rounds"]) == ("The symbol is Au.", 1)
    refined, _, _ = fusing(scores, ["Au ka.", "Au kb."], candidates=1, rounds=2, candidate_rewrite=False, stop_score=0)
    # Nobody judged anything: the rewrite, which passed the filter, stays.
    assert (refined["fused"], refined["rounds"]) == ("The symbol is Au.", 2)


def test_rewriter_and_fuser_can_be_different_models() -> None:
    rewriter, fuser = Model(lambda *_: "The symbol is Au."), Model(lambda *_: "Au ka.")
    judge = Table("table", {"The symbol is Au.": 0.1, "Au ka.": 0.3})
    refined = refiner(rewriter, [judge], fuser=fuser, candidates=2, rounds=2).refine([row()])[0]
    assert (refined["rewrite"], refined["fused"]) == ("The symbol is Au.", "Au ka.")
    assert (len(rewriter.calls), [call["sample_indices"] for call in fuser.calls]) == (1, [[2, 3], [4, 5]])


def test_a_rewriter_that_failed_costs_its_row_the_rewrite_and_says_so() -> None:
    refined = refiner(Model(lambda *_: Completion("", failed="429"))).refine([row()])[0]
    assert (refined["refused"], refined["fused"]) == ("failed", "Au")


def test_a_fuser_that_failed_is_a_candidate_that_was_never_judged() -> None:
    broken = Model(lambda *_: Completion("", failed="500"))
    judge = Table("table", {"The symbol is Au.": 0.1})
    refined = refiner(Model(lambda *_: "The symbol is Au."), [judge], fuser=broken, rounds=1).refine([row()])[0]
    assert judge.asked == [["The symbol is Au."]]
    assert refined["fused"] == "The symbol is Au."


def test_every_call_has_the_seed_of_the_run() -> None:
    model = Model(lambda *_: "The symbol is Au.")
    judge = Table("table", {"The symbol is Au.": 0.0})
    refiner(model, [judge], seed=5, fuser=model, rounds=2, candidates=1).refine([row(7), row(8)])
    assert [call["seed"] for call in model.calls] == [5, 5, 5]


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
    summary = Summary()
    summary.add([rich, plain])
    write_summary(tmp_path, summary.result())
    assert read_refined(tmp_path) == [rich, plain]
    assert pq.read_table(tmp_path).schema.equals(
        REFINED_SCHEMA
    )  # the summary does not disturb whoever reads the folder
    found = read_summary(tmp_path)
    assert (found["rows"], found["accepted"], found["acceptance"]) == (2, 1, 0.5)
    assert (found["refused"], found["sources"]) == ({"off": 1}, {"fuse": 1, "gold": 1})
    assert found["score_mean"] == pytest.approx(0.4)


def test_a_folder_in_which_stage_1_did_not_finish_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did not finish"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rewriter": "none"}, r"refine\.rewriter=none: nobody of that name"),
        ({"fuser": "slf"}, r"refine\.fuser=slf: .*did you mean self\?"),
        ({"judges": ["exat"]}, r"refine\.judges=exat: .*did you mean exact\?"),
        ({"judges": []}, r"refine\.judges: none named"),
        ({"judges": ["exact", "exact"]}, r"refine\.judges=.*twice"),
        ({"rewrite_prompt": "nope"}, r"refine\.rewrite_prompt=nope"),
        ({"judges": ["self"], "judge_prompt": "rewrite"}, r"refine\.judge_prompt=rewrite: .*lacks \{candidate\}"),
        ({"rewriter": "bgi", "models": {"big": REMOTE}}, r"refine\.rewriter=bgi: .*did you mean big\?"),
        ({"models": {"big": RefineModelConfig()}}, r"refine\.models\.big: .*neither is set"),
        (
            {"models": {"big": RefineModelConfig(path="p", base_url="http://x", model="m")}},
            r"refine\.models\.big: .*both are set",
        ),
        ({"models": {"big": RefineModelConfig(base_url="http://x")}}, r"refine\.models\.big\.model: not set"),
        (
            {"models": {"big": RefineModelConfig(base_url="x:1", model="m")}},
            r"big\.base_url=x:1: must be an address such as http",
        ),
        ({"models": {"big": RefineModelConfig(path="p", api_key_env="K")}}, r"big\.api_key_env: is for endpoints"),
        (
            {"models": {"big": RefineModelConfig(base_url="http://localhost/v1", model="m", thinking=True)}},
            r"big\.thinking: is for models that run here",
        ),
        (
            {
                "rewriter": "big",
                "models": {"big": RefineModelConfig(base_url="http://x", model="m", api_key_env="NO_KEY")},
            },
            r"refine\.models\.big\.api_key_env: the environment variable NO_KEY is not set",
        ),
        ({"models": {"exact": REMOTE}}, r"refine\.models\.exact: the name exact is taken"),
        ({"models": {"big": RefineModelConfig(path="p", tensor_parallel=2)}}, r"set refine\.models\.big\.num_gpus=2"),
    ],
)
def test_settings_that_cannot_work_are_named_before_anything_starts(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        check_refine(Config(refine=RefineConfig(**changes)))


def test_an_endpoint_without_a_role_needs_no_key() -> None:
    idle = RefineModelConfig(base_url="http://x", model="m", api_key_env="NO_KEY")
    check_refine(Config(refine=RefineConfig(models={"idle": idle})))


def test_models_in_use_are_those_with_a_role() -> None:
    models = {"big": REMOTE, "small": RefineModelConfig(path="p"), "idle": REMOTE}
    refine = RefineConfig(rewriter="small", fuser="big", judges=["exact", "self", "big"], models=models)
    check_refine(Config(refine=RefineConfig(rewriter="small", fuser="big", models=models)))
    assert models_used(refine) == ["small", "big", "self"]
    assert local_models(refine) == ["small", "self"]
    refine.fuser = "none"  # nobody fuses, so nobody judges
    assert models_used(refine) == ["small"]


def test_only_the_prompts_of_roles_in_play_are_recorded() -> None:
    all_three = {"rewrite": 64, "fuse": 64}
    assert {name: len(text) for name, text in load_prompts(RefineConfig()).hashes().items()} == all_three
    assert list(load_prompts(RefineConfig(fuser="none")).hashes()) == ["rewrite"]


def test_a_local_model_is_trusted_only_where_it_is_named() -> None:
    config = Config(model=ModelConfig(trust_remote_code=True, allow_pickle=True, dtype=Dtype.float32))
    config.refine.models = {"big": RefineModelConfig(path="p", context=99)}
    assert model_config(config, "self") is config.model
    big = model_config(config, "big")
    assert (big.path, big.context, big.dtype) == ("p", 99, Dtype.float32)
    assert not big.trust_remote_code
    assert not big.allow_pickle
