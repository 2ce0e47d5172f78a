"""Language models judge the answers of a real engine: one behind an HTTP server, and the original model on its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_server import FaultyServer, Reply, fails, faulty_server, says

from actors.evaluate.evaluation import evaluate_models
from actors.evaluate.judge_actor import JudgeActor, judge_options
from actors.evaluate.process import process
from actors.refine.cache import RemoteStore, cache_actor
from raft_ray import models
from raft_ray.config import Config, DomainMetric, Dtype, RefineModelConfig
from raft_ray.data import Row
from raft_ray.errors import ConfigError, RaftError
from raft_ray.refine.judges import Case

pytestmark = pytest.mark.usefixtures("ray_cluster")
TEMPLATE = "Q: {prompt}\nR: {answer}\nC: {candidate}"
OPEN = [
    {"prompt": "Name a fruit.", "reference": "Apple.", "category": "things"},
    {"question_id": 81, "category": "talk", "turns": ["Say hi.", "Say it again."], "reference": ["Hi.", ""]},
]
SCORES = {"Name a fruit.": 1.0, "Say hi.": 0.5, "Say it again.": 0.0}
"""Of open questions, by their last turn."""


def _config(tmp_path: Path, url: str) -> Config:
    config = Config()
    config.run.dir = str(tmp_path / "run")
    config.model.path = models.TINY
    config.model.dtype = Dtype.float32
    config.data.test = "test.jsonl"
    config.refine.models["remote"] = RefineModelConfig(
        base_url=url, model="m", retries=0, input_cost=1e5, output_cost=2e5
    )
    config.eval.judges = ["remote", "self"]
    config.eval.domain_metric = DomainMetric.judged
    config.eval.ifeval_rows = config.eval.general_rows = 0
    config.eval.domain_max_new_tokens = 8
    config.eval.open_max_new_tokens = 12
    config.rollout.timeout = 400.0
    for key in ("judge_prompt", "open_prompt"):
        # Short: what the tiny model reads and its verdict share 512 tokens.
        path = tmp_path / f"{key}.txt"
        path.write_text(("D " if key == "judge_prompt" else "O ") + TEMPLATE)
        setattr(config.eval, key, str(path))
    config.eval.open = str(tmp_path / "open.jsonl")
    Path(config.eval.open).write_text("".join(json.dumps(record) + "\n" for record in OPEN))
    return config


def _rows() -> list[Row]:
    texts = ["one", "two", "three", "four"]
    return [
        Row(index=i, line=i + 1, messages=[{"role": "user", "content": f"What is {i}?"}], answer=text, answers=[text])
        for i, text in enumerate(texts)
    ]


def _verdict(number: int, asked: dict[str, Any]) -> Reply:
    """Right are questions 0 and 1; of question 2 the server says nonsense."""
    text = asked["messages"][-1]["content"]
    question = re.search(r"^[DO] Q: (.*)\nR: ", text, re.DOTALL)
    assert question
    last = question[1].rsplit("User: ", 1)[-1]
    if last == "What is 2?":
        return says("I cannot tell.")
    score = SCORES[last] if text.startswith("O") else float(last in ("What is 0?", "What is 1?"))
    return says(json.dumps({"reason": "so it is", "score": score}))


def _greedy(folder: str, config: Config, chat: list[dict[str, str]], tokens: int) -> str:
    """What transformers answers."""
    model, tokenizer = models.load_model(folder, config.model), models.load_tokenizer(folder, config.model)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    answer = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server(_verdict) as running:
        yield running


def test_every_models_answers_are_judged_by_an_endpoint_and_by_the_original_model(
    server: FaultyServer, tmp_path: Path
) -> None:
    config = _config(tmp_path, server.url)
    base = models.resolve(models.TINY)
    seen: list[tuple[str, int, int]] = []
    result = evaluate_models({"base": base, "again": base + "/"}, config, _rows(), lambda *step: seen.append(step))

    for block in result.values():
        domain, opened = block["domain"], block["open"]
        assert (domain["metric"], domain["n"]) == ("judged", 4)
        assert set(domain["metrics"]) == {"contains", "exact", "judged"}
        assert domain["correct"] == domain["metrics"]["judged"]["correct"]
        remote = domain["judged"]["judges"]["remote"]
        # Two of the three that it could judge; the server counts 7 tokens in and 3 out for every request.
        assert (remote["right"], remote["answered"], remote["failures"]) == (2 / 3, 3, {"not_json": 1})
        assert remote["usage"] == {"asks": 4, "input_tokens": 28, "output_tokens": 12, "cost": 5.2}
        assert domain["judged"]["prompt"]["file"] == config.eval.judge_prompt

        remote = opened["judges"]["remote"]
        assert (remote["score"], remote["answered"], remote["failures"]) == (0.5, 3, {})
        assert (opened["n"], opened["unjudged"], len(opened["scores"])) == (2, 0, 2)
        assert set(opened["by_category"]) == {"things", "talk"}
        assert opened["score"] == pytest.approx(sum(opened["scores"]) / 2)

        first, second = block["open_answers"]
        assert [(turn["prompt"], turn["reference"]) for turn in first["turns"] + second["turns"]] == [
            ("Name a fruit.", "Apple."),
            ("Say hi.", "Hi."),
            ("Say it again.", None),
        ]
        assert [first["score"], second["score"]] == opened["scores"]
        for turn in first["turns"] + second["turns"]:
            assert turn["judges"]["remote"] == {"score": SCORES[turn["prompt"]], "reason": "so it is"}
            assert set(turn["judges"]) == {"remote", "self"}

        # Held to the schema, a random model gives a score or goes on with its reason until it is cut off.
        for part, asked in ((domain["judged"], 4), (opened, 3)):
            own = part["judges"]["self"]
            assert own["answered"] + sum(own["failures"].values()) == asked
            assert set(own["failures"]) <= {"truncated"}
            assert own["usage"]["output_tokens"] > 0 == own["usage"]["cost"]
        assert all(f"judge {name}" in block["seconds"] for name in config.eval.judges)
        assert block["too_long"]["open"] == 0
    for part in ("domain", "open", "open_answers"):
        assert result["again"][part] == result["base"][part]

    _check_what_was_asked(server, config, base)
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    judged = ["judge remote", "remote on answers of base", "remote on answers of again"]
    assert stages[-6:] == [*judged, "judge self", "self on answers of base", "self on answers of again"]
    assert ("remote on answers of base", 7, 7) in seen
    # The endpoint is asked from an actor's process.
    assert (tmp_path / "run/logs/judge-remote.log").exists()

    again = evaluate_models({"base": base}, config, _rows())["base"]
    assert len(server.requests) == 14, "an evaluation that was made again asked for verdicts that it had"
    for part, keys in (("domain", ("right", "answered", "failures")), ("open", ("score", "answered", "failures"))):
        before, now = ((b[part].get("judged") or b[part])["judges"] for b in (result["base"], again))
        for name in config.eval.judges:
            assert [now[name][key] for key in keys] == [before[name][key] for key in keys]
            assert now[name]["usage"]["asks"] == 0


def _check_what_was_asked(server: FaultyServer, config: Config, base: str) -> None:
    """The judge reads what transformers answers, and in the second turn the chat before it."""
    texts = [request["messages"][-1]["content"] for request in server.requests]
    assert len(texts) == 14
    question = [{"role": "user", "content": "What is 3?"}]
    assert f"D Q: What is 3?\nR: four\nC: {_greedy(base, config, question, 8)}" in texts
    chat = [{"role": "user", "content": "Say hi."}]
    first = _greedy(base, config, chat, 12)
    assert f"O Q: Say hi.\nR: Hi.\nC: {first}" in texts
    chat += [{"role": "assistant", "content": first}, {"role": "user", "content": "Say it again."}]
    before = f"User: Say hi.\n\nAssistant: {first}\n\nUser: Say it again."
    assert f"O Q: {before}\nR: (none)\nC: {_greedy(base, config, chat, 12)}" in texts


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (500, RaftError, r"refine\.models\.remote: .* answered none of 2"),
        (404, ConfigError, r"remote\.model: .* refuses"),
    ],
)
def test_a_judge_that_answers_nothing_ends_the_evaluation_with_its_name(
    tmp_path: Path, status: int, kind: type[RaftError], words: str
) -> None:
    with faulty_server(fails(status)) as down:
        config = _config(tmp_path, down.url)
        options = judge_options(config, "remote")
        cases = [Case("q", "a", candidate) for candidate in ("c", "d")]
        with cache_actor(tmp_path / "run", "judge") as cache:
            prompts = {"domain": TEMPLATE, "open": TEMPLATE}
            arguments = ("remote", config, prompts, RemoteStore(cache))
            with process("JudgeActor remote", JudgeActor, arguments, options, 120.0) as judge:
                judge.call("start")
                assert judge.call("take", "base", {"domain": cases, "open": []}) == [2]
                with pytest.raises(kind, match=words):
                    judge.call("judge", 0)
