"""A judge's actor and the engine's second turns, without Ray and without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from actors.evaluate import eval_actor
from actors.evaluate import evaluation as module
from actors.evaluate.eval_actor import EvalActor, Questions
from actors.evaluate.evaluation import Evaluation
from actors.evaluate.judge_actor import CHUNK_SIZE, JudgeActor, judge_options, judge_timeout
from raft_ray import models
from raft_ray.config import Config, RefineModelConfig
from raft_ray.data import Row
from raft_ray.evaluate.ifeval import load_prompts, sample_seed
from raft_ray.evaluate.judged import Answered, JudgeResult
from raft_ray.evaluate.kept import KeptAnswers
from raft_ray.evaluate.open_questions import OpenQuestion
from raft_ray.refine.cache import CompletionStore
from raft_ray.refine.generation import Completion, Request
from raft_ray.refine.judges import Case


def _config() -> Config:
    config = Config()
    config.refine.models = {
        "far": RefineModelConfig(
            base_url="http://x", model="m", output_cost=1e6, concurrency=16, retries=1, timeout=10.0
        ),
        "near": RefineModelConfig(path="p", num_cpus=3),
    }
    config.rollout.timeout = 100.0
    config.rollout.num_cpus = 2
    return config


FILLED = {"domain": "D {prompt}{answer}{candidate}", "open": "O {prompt}{answer}{candidate}"}


def _answered(domain: list[Case], opened: list[Case]) -> Answered:
    return {"domain": domain, "open": opened}


class _Judge(JudgeActor):
    """One that was started, with a model that replies by a function of the prompt."""

    def __init__(self, config: Config, path: Path, reply: Callable[[str], Completion], identity: str = "m") -> None:
        super().__init__("far", config, FILLED, CompletionStore(path))
        self.identity = identity
        self.reply = reply
        self.asked: list[list[str]] = []
        self.limits: list[int] = []
        self.model = self._model

    def _model(self, requests: Sequence[Request], *, max_new_tokens: int, **_: Any) -> list[Completion]:
        texts = [request.chat[-1]["content"] for request in requests]
        self.asked.append(texts)
        self.limits.append(max_new_tokens)
        return [self.reply(text) for text in texts]

    def whole(self, whose: str, answers: Answered) -> dict[str, JudgeResult]:
        for batch in range(len(self.take(whose, answers))):
            self.judge(batch)
        return self.opinions()


def _verdict(text: str) -> Completion:
    return Completion("no" if "bad" in text else json.dumps({"reason": "so it is", "score": 0.7}), output_tokens=1)


def test_a_judge_reads_domain_and_open_answers_with_their_own_prompts_and_starts_anew_with_every_model(
    tmp_path: Path,
) -> None:
    actor = _Judge(_config(), tmp_path / "cache.sqlite", _verdict)
    domain = [Case("q", "a", "bad" if number == 0 else f"good {number}") for number in range(CHUNK_SIZE + 2)]
    sizes = actor.take("sft", _answered(domain, [Case("q", "a", "c")]))
    # No batch of two: an endpoint that fails at both would seem to fail altogether.
    assert sizes == [33, 33, 1]
    for batch in range(len(sizes)):
        actor.judge(batch)
    assert [len(texts) for texts in actor.asked] == sizes
    assert (actor.asked[0][0], actor.asked[2]) == ("D qabad", ["O qac"])
    found = actor.opinions()
    assert found["domain"].scores == [None, *[0.7] * 65]
    assert found["domain"].reasons == ["", *["so it is"] * 65]
    assert (found["domain"].failures, found["domain"].usage["cost"]) == ({"not_json": 1}, 66.0)
    assert (found["open"].scores, found["open"].failures, found["open"].usage["cost"]) == ([0.7], {}, 1.0)

    again = actor.whole("raft", _answered([Case("q", "a", "good")], []))
    assert (again["domain"].scores, again["domain"].failures, again["domain"].usage["cost"]) == ([0.7], {}, 1.0)
    assert again["open"].scores == []


def test_a_verdict_has_the_tokens_that_the_config_gives_it_and_one_that_is_cut_off_is_a_failure(tmp_path: Path) -> None:
    config = _config()
    config.eval.judge_max_new_tokens = 12
    whole = json.dumps({"reason": "fine", "score": 0.7})
    actor = _Judge(
        config, tmp_path / "cache.sqlite", lambda text: Completion(whole[: 12 if "long" in text else None], True)
    )
    found = actor.whole("sft", _answered([Case("q", "a", "long"), Case("q", "a", "short")], []))["domain"]
    assert actor.limits == [12]
    # The short one came to its end with its last token.
    assert (found.scores, found.failures) == ([None, 0.7], {"truncated": 1})


def test_what_a_judge_said_of_an_answer_is_not_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    answers = _answered([Case("q", "a", "good"), Case("q", "a", "bad")], [Case("q", "a", "good")])

    def read(
        config: Config | None = None, whose: str = "sft", identity: str = "m"
    ) -> tuple[int, dict[str, JudgeResult]]:
        actor = _Judge(config or _config(), path, _verdict, identity)
        found = actor.whole(whose, answers)
        actor.store.close()  # type: ignore[attr-defined]
        return sum(map(len, actor.asked)), found

    asked, first = read()
    assert (asked, first["domain"].usage["asks"], first["domain"].usage["output_tokens"]) == (3, 2, 2)
    asked, again = read()
    assert asked == 0
    for kind in ("domain", "open"):
        before, now = ((one[kind].scores, one[kind].reasons, one[kind].failures) for one in (first, again))
        assert now == before
        assert again[kind].usage == {"asks": 0, "input_tokens": 0, "output_tokens": 0, "cost": 0.0}

    longer, seeded = _config(), _config()
    longer.eval.judge_max_new_tokens += 1
    seeded.run.seed += 1
    for other in ({"config": longer}, {"config": seeded}, {"whose": "raft"}, {"identity": "n"}):
        assert read(**other)[0] == 3, other  # type: ignore[arg-type]
    answers = _answered([Case("q", "a", "good"), Case("q", "a", "better")], [])
    assert read()[0] == 1


def test_an_answer_of_which_a_judge_said_nothing_is_asked_about_again(tmp_path: Path) -> None:
    replies = {"D qab": Completion("", failed="HTTP 500"), "D qac": _verdict("")}
    actor = _Judge(_config(), tmp_path / "cache.sqlite", lambda text: replies[text])
    answers = _answered([Case("q", "a", "b"), Case("q", "a", "c")], [])
    assert actor.whole("sft", answers)["domain"].failures == {"failed": 1}
    replies["D qab"] = _verdict("")
    found = actor.whole("sft", answers)["domain"]
    assert (found.scores, found.failures, found.usage["asks"]) == ([0.7, 0.7], {}, 1)
    assert actor.asked == [["D qab", "D qac"], ["D qab"]]


def test_a_local_judge_has_its_engines_resources_and_an_endpoint_time_for_its_retries() -> None:
    config = _config()
    assert judge_options(config, "self")["num_cpus"] == 2
    assert judge_options(config, "near")["num_cpus"] == 3
    assert judge_options(config, "far")["num_gpus"] == 0
    assert judge_timeout(config, "near") == 100.0
    # Four rounds of sixteen requests, two tries each, a pause of at most 120 s with every try.
    assert judge_timeout(config, "far") == 100.0 + 4 * 2 * (10.0 + 120.0)


class _Engine:
    """Answers every prompt with the first ids of a text, as many as it may."""

    def __init__(self, *_: Any, **options: Any) -> None:
        self.context = options["context"]
        self.seen: list[list[int]] = []

    def generate(self, prompts: list[list[int]], *, max_new_tokens: list[int], **_: Any) -> list[Any]:
        from actors.engine.vllm_engine import Completion

        self.seen += prompts
        assert all(
            limit > 0 and len(ids) + limit <= self.context for ids, limit in zip(prompts, max_new_tokens, strict=True)
        )
        return [Completion(self.words[:limit], len(self.words) > limit) for limit in max_new_tokens]


@pytest.mark.parametrize("written", ["Hello.", "<think>\n</think>Hello."])
def test_second_turns_follow_the_own_first_answer_without_its_thinking_and_one_without_room_stays_unanswered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    config = Config()
    config.model.path = models.TINY
    config.model.context = 100
    config.eval.open_max_new_tokens = 20
    config.run.dir = str(tmp_path)
    folder = models.resolve(models.TINY)
    tokenizer = models.load_tokenizer(folder, config.model)
    monkeypatch.setattr("actors.engine.vllm_engine.Engine", _Engine)
    monkeypatch.setattr(_Engine, "words", tokenizer.encode(written, add_special_tokens=False), raising=False)
    monkeypatch.setattr(eval_actor, "log_to_file", lambda *_: None)
    questions = [
        OpenQuestion(("One turn?",), (None,)),
        OpenQuestion(("Say hi.", "Again."), (None, None)),
        OpenQuestion(("Say hi.", "word " * 90), (None, None)),
    ]
    actor = EvalActor(folder, config, Questions([], [], [], open=questions), KeptAnswers(str(tmp_path)))
    assert actor.start() == [3, 2]
    actor.load("base", folder)
    actor.answer(0)
    actor.answer(1)
    assert [(case.question, case.candidate) for case in actor.answered()["open"]] == [
        ("One turn?", "Hello."),
        ("Say hi.", "Hello."),
        ("User: Say hi.\n\nAssistant: Hello.\n\nUser: Again.", "Hello."),
        ("Say hi.", "Hello."),
        (f"User: Say hi.\n\nAssistant: Hello.\n\nUser: {'word ' * 90}", ""),
    ]
    assert actor.measure()["too_long"] == {"domain": 0, "ifeval": 0, "general": 0, "open": 1}
    read = tokenizer.decode(actor.engine.seen[-1])  # type: ignore[attr-defined]
    assert read.index("Say hi.") < read.index("Hello.") < read.index("Again.")
    turns = [[(turn["prompt"], turn["answer"]) for turn in one["turns"]] for one in actor.measure()["open_answers"]]
    assert turns == [
        [("One turn?", "Hello.")],
        [("Say hi.", "Hello."), ("Again.", "Hello.")],
        [("Say hi.", "Hello."), ("word " * 90, "")],
    ]


def test_samples_have_seeds_and_batches_of_their_own_and_leave_all_else_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recording(_Engine):
        words = (5,)

        def __init__(self, *_: Any, **options: Any) -> None:
            super().__init__(**options)
            self.options, self.calls = options, []

        def generate(self, prompts: list[list[int]], **options: Any) -> list[Any]:
            self.calls.append((len(prompts), options["temperature"], options["seed"], options["seeds"]))
            return super().generate(prompts, **options)

    def asked(samples: int, temperature: float = 0.0) -> Any:
        config = Config()
        config.model.path, config.run.dir = models.TINY, str(tmp_path)
        config.eval.ifeval_samples, config.eval.temperature = samples, temperature
        prompts = load_prompts(50, seed=0)
        actor = EvalActor(
            folder,
            config,
            Questions([], prompts, ["Hello?"] * 70),
            KeptAnswers(str(tmp_path / f"{samples} {temperature}")),
        )
        sizes = actor.start()
        actor.load("base", folder)
        for batch in range(len(sizes)):
            actor.answer(batch)
        assert sum(sizes) == 50 * samples + 70
        found = actor.measure()
        assert (found["ifeval"]["n"], found["ifeval"]["samples"]) == (50, samples)
        assert found["too_long"]["ifeval"] == 0
        return actor.engine

    folder = models.resolve(models.TINY)
    monkeypatch.setattr("actors.engine.vllm_engine.Engine", Recording)
    monkeypatch.setattr(eval_actor, "log_to_file", lambda *_: None)
    greedy, sampled = asked(1), asked(4)
    assert not greedy.options["own_seeds"]
    assert greedy.calls == [(60, 0.0, 0, None), (60, 0.0, 0, None)]
    assert sampled.options["own_seeds"]
    assert [call[:2] for call in sampled.calls] == [(70, 0.0), (67, 0.7), (67, 0.7), (66, 0.7)]
    expected = {sample_seed(prompt, sample, 0) for prompt in load_prompts(50, seed=0) for sample in range(4)}
    assert {seed for *_, seeds in sampled.calls for seed in seeds or []} == expected
    assert [call[1] for call in asked(4, temperature=1.0).calls] == [1.0] * 4


def test_the_answers_that_are_shown_get_the_verdicts_on_their_own_questions() -> None:
    config = Config()
    config.eval.samples = 3
    questions = [OpenQuestion((f"{i}?", "more?")[: 1 + i % 2], (None, None)[: 1 + i % 2]) for i in range(20)]
    asked = Questions([], [], [], open=questions)
    turns = [(i, turn) for i, question in enumerate(questions) for turn in range(len(question.turns))]
    opinions = {
        name: JudgeResult([i / 20 for i, _ in turns], [f"{name} on {i}, turn {turn}" for i, turn in turns], {}, {})
        for name in ("big", "small")
    }
    shown = eval_actor.subset(list(range(20)), 3, config.run.seed)
    block = {
        "open": {"scores": [i / 20 for i in range(20)]},
        "open_answers": [{"turns": [{"prompt": prompt} for prompt in questions[i].turns]} for i in shown],
    }
    assert module._judged_samples(block, asked, opinions, config) == [
        {
            "score": i / 20,
            "turns": [
                {
                    "prompt": prompt,
                    "judges": {
                        name: {"score": i / 20, "reason": f"{name} on {i}, turn {turn}"} for name in ("big", "small")
                    },
                }
                for turn, prompt in enumerate(questions[i].turns)
            ],
        }
        for i in shown
    ]
    assert any(len(questions[i].turns) == 2 for i in shown)


def test_every_model_gets_what_every_judge_says_of_its_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    config.eval.judges = ["big", "small"]
    row = Row(0, 1, [{"role": "user", "content": "q"}], "a", ["a"])
    asked = Questions([row], [], [], open=[OpenQuestion(("Sing.",), (None,))])
    scores = {("big", "base"): (0.0, 0.4), ("small", "base"): (0.2, 0.6), ("big", "raft"): (0.8, 0.8)}

    def opinions(_: Any, judge: str, arguments: Any, answered: dict[str, Any]) -> dict[str, dict[str, JudgeResult]]:
        return {
            name: {
                kind: JudgeResult([score], [f"{judge} on {name}"], {}, {})
                for kind, score in zip(("domain", "open"), scores.get((judge, name), (1.0, 1.0)), strict=True)
            }
            for name in answered
        }

    monkeypatch.setattr(module, "cache_actor", lambda *_: nullcontext())
    monkeypatch.setattr(Evaluation, "opinions", opinions)
    measured: dict[str, dict[str, Any]] = {
        name: {"domain": {}, "open_answers": [{"turns": [{"prompt": "Sing."}]}]} for name in ("base", "raft")
    }
    evaluation = Evaluation(dict.fromkeys(measured, "folder"), config, asked, measured, lambda *_: None)
    evaluation.judge(dict.fromkeys(measured))  # type: ignore[arg-type]
    assert [measured[name]["domain"]["judged"] for name in measured] == [[False], [True]]
    assert [measured[name]["open"]["score"] for name in measured] == [0.5, 0.9]
    assert measured["raft"]["judged"]["judges"]["big"]["right"] == 1.0
    (sample,) = measured["base"]["open_answers"]
    assert sample["score"] == 0.5
    assert sample["turns"][0]["judges"] == {
        "big": {"score": 0.4, "reason": "big on base"},
        "small": {"score": 0.6, "reason": "small on base"},
    }
