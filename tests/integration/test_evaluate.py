"""Evaluation on a real Ray with a real vLLM engine: a tiny model, a perturbed copy, and the tiny model again."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_fixture import save_adapter
from listener import Listener, once

from actors.evaluate.evaluation import evaluate_models
from actors.runtime import cluster
from raft_ray import models
from raft_ray.config import Config, Dtype
from raft_ray.data import Row
from raft_ray.errors import ConfigError, ModelError, RaftError
from raft_ray.evaluate.ifeval import load_prompts
from raft_ray.evaluate.kept import KeptAnswers

pytestmark = pytest.mark.usefixtures("ray_cluster")
QUESTIONS = 70


def _config(tmp_path: Path) -> Config:
    config = Config()
    config.run.dir = str(tmp_path / "run")
    config.model.path = models.TINY
    config.model.dtype = Dtype.float32
    config.eval.ifeval_rows = 3
    config.eval.ifeval_max_new_tokens = 24
    config.eval.general_rows = 5
    config.eval.general_max_new_tokens = 16
    config.eval.domain_max_new_tokens = 8
    config.eval.samples = 2
    config.rollout.timeout = 400.0
    config.teacher.timeout = 400.0
    return config


def _rows(answers: list[str]) -> list[Row]:
    return [
        Row(
            index=i,
            line=i + 1,
            messages=[{"role": "user", "content": f"What is {i}?"}],
            answer=answer,
            answers=[answer],
        )
        for i, answer in enumerate(answers)
    ]


def _perturbed(folder: str, path: Path, config: Config) -> str:
    model = models.load_model(folder, config.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std(correction=0) * torch.randn_like(parameter))
    model.save_pretrained(path)
    models.load_tokenizer(folder, config.model).save_pretrained(path)
    return str(path)


def _greedy(folder: str, config: Config, prompt: str, tokens: int) -> str:
    """What transformers answers."""
    model, tokenizer = models.load_model(folder, config.model), models.load_tokenizer(folder, config.model)
    chat = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    answer = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))


def test_every_model_is_measured_against_the_base(tmp_path: Path) -> None:
    config = _config(tmp_path)
    base = models.resolve(models.TINY)
    tuned = _perturbed(base, tmp_path / "tuned", config)
    seen: list[tuple[str, int, int]] = []
    # "again" comes last: it only equals the base if swapping weights leaves nothing of the model before it.
    folders = {"tuned": tuned, "again": base + "/", "base": base}
    rows, answers = _rows(["x"] * QUESTIONS), tmp_path / "base_answers.json"
    result = evaluate_models(folders, config, rows, lambda *step: seen.append(step), answers)

    assert list(result) == ["base", "tuned", "again"]
    for name, block in result.items():
        assert block["model"] == folders[name]
        assert block["domain"]["n"] == len(block["domain"]["correct"]) == QUESTIONS
        assert block["domain"]["accuracy"] == sum(block["domain"]["correct"]) / QUESTIONS
        kinds = {"prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"}
        assert set(block["ifeval"]) == {*kinds, "n", "samples", "correct", "kinds"}
        assert block["ifeval"]["n"] == 3
        assert set(block["length"]) == {"words_mean", "words_median", "tokens_mean", "truncated", "n"}
        assert 0 < block["length"]["tokens_mean"] <= 16
        assert set(block["drift"]) == {"kl", "kl_first", "top1_agreement", "tokens", "rows"}
        assert block["drift"]["rows"] == block["length"]["n"] == 5
        assert block["drift"]["tokens"] == result["base"]["length"]["tokens_mean"] * 5
        assert set(block["domain"]["metrics"]) == {"contains", "exact"}
        assert block["mmlu"] is None
        assert set(block["weight_distance"]["layers"]) == {"0", "1", "embed", "other"}
        assert [set(answer) for answer in block["answers"]] == [{"prompt", "gold", "answer", "correct"}] * 2
        assert [set(answer) for answer in block["general_answers"]] == [{"prompt", "answer"}] * 2
        assert block["too_long"]["domain"] == 0
        assert all(seconds >= 0 for seconds in block["seconds"].values())

    assert (result["base"]["drift"]["kl"], result["base"]["weight_distance"]["total"]) == (0.0, 0.0)
    assert result["base"]["drift"]["top1_agreement"] == 1.0
    assert result["tuned"]["drift"]["kl"] > 0.01
    assert result["tuned"]["drift"]["top1_agreement"] < 1.0
    assert result["tuned"]["weight_distance"]["total"] == pytest.approx(0.1, rel=0.1)
    assert result["again"]["drift"]["kl"] == 0.0

    for key in ("domain", "ifeval", "length", "answers", "general_answers"):
        assert result["again"][key] == result["base"][key]
    assert result["tuned"]["general_answers"] != result["base"]["general_answers"]
    # The engine answers as the swapped weights do, head included.
    for name in ("base", "tuned"):
        sample = result[name]["general_answers"][0]
        assert sample["answer"] == _greedy(folders[name], config, sample["prompt"], 16)

    stages = {stage for stage, _, _ in seen}
    assert stages == {"weight distance", "engine", "answers of base", "answers of tuned", "answers of again", "drift"}
    for stage in stages:
        steps = [(done, total) for name, done, total in seen if name == stage]
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert len({total for _, total in steps}) == 1

    seen.clear()
    later = evaluate_models({"base": base, "tuned": tuned}, config, rows, lambda *step: seen.append(step), answers)
    assert list(later) == ["tuned"]
    assert {stage for stage, _, _ in seen} == {"weight distance", "engine", "answers of tuned", "drift"}
    for key in result["tuned"].keys() - {"seconds"}:
        assert later["tuned"][key] == result["tuned"][key], key


def test_samples_differ_are_reproducible_and_depend_on_no_other_prompt(tmp_path: Path) -> None:
    from actors.evaluate.eval_actor import EvalActor, Questions
    from actors.evaluate.evaluation import answering_options
    from actors.evaluate.process import process

    class Telling(EvalActor):
        def told(self) -> dict[tuple[int, int], list[int]]:
            return {
                (self.asked.ifeval[turn.index].key, turn.sample): answer.token_ids
                for turn, answer in self.answers.items()
                if turn.kind == "ifeval"
            }

    def told(rows: int, seed: int = 0) -> dict[tuple[int, int], list[int]]:
        config.run.seed = seed
        asked = Questions([], load_prompts(rows, seed=0), ["Hello?"] * 3)
        arguments = (models.resolve(models.TINY), config, asked, KeptAnswers(str(tmp_path / f"{rows} {seed}")))
        with process("EvalActor", Telling, arguments, answering_options(config), 400.0) as actor:
            sizes = actor.call("start")
            actor.call("load", "base", arguments[0])
            actor.work("answer", sizes, lambda done, total: None)
            found: dict[tuple[int, int], list[int]] = actor.call("told")
            return found

    config = _config(tmp_path)
    config.eval.ifeval_samples = 3
    many = told(20)
    assert len(many) == 60
    for key in {key for key, _ in many}:
        assert len({tuple(many[key, sample]) for sample in range(3)}) == 3, "two samples of a prompt are the same"
    few = told(7)
    shared = few.keys() & many.keys()
    assert shared
    assert all(few[one] == many[one] for one in shared)
    other = told(7, seed=1)
    assert other.keys() == few.keys()
    assert other != few


def test_a_killed_evaluation_is_resumed_and_equals_the_whole_one(tmp_path: Path, socket_path: Path) -> None:
    config, rows = _config(tmp_path), _rows(["x"] * QUESTIONS)
    config.eval.ifeval_samples = 2
    base = models.resolve(models.TINY)
    folders = {"base": base, "tuned": _perturbed(base, tmp_path / "tuned", config)}

    def evaluated(run: str) -> dict[str, dict[str, object]]:
        config.run.dir = str(tmp_path / run)
        return {
            name: {key: value for key, value in block.items() if key != "seconds"}
            for name, block in evaluate_models(folders, config, rows).items()
        }

    # Each model is asked in two calls, the samples apart; killed in the last one.
    with (
        Listener(socket_path, once("evaluate", "answering", count=4)),
        pytest.raises(RaftError, match=r"EvalActor on .*: the process died"),
    ):
        evaluated("killed")
    kept = {path: path.read_bytes() for path in (tmp_path / "killed/answers").rglob("*.jsonl")}
    assert {path.relative_to(tmp_path / "killed/answers").as_posix() for path in kept} == {
        *("base/domain.jsonl", "base/general.jsonl", "base/ifeval.jsonl"),
        *("tuned/domain.jsonl", "tuned/general.jsonl"),
    }
    resumed = evaluated("killed")
    assert {path: path.read_bytes() for path in kept} == kept, "what was finished was generated again"
    assert (tmp_path / "killed/answers/tuned/ifeval.jsonl").exists()
    assert resumed == evaluated("whole")
    for block in resumed.values():
        assert block["ifeval"]["samples"] == 2  # type: ignore[index]


def test_choices_and_mmlu_are_measured_by_likelihood(tmp_path: Path) -> None:
    config = _config(tmp_path)
    base = models.resolve(models.TINY)
    tuned = _perturbed(base, tmp_path / "tuned", config)
    rows = [replace(row, choices=["red", "green", "blue and yellow"]) for row in _rows(["red", "green"] * 4)]
    _write_mmlu(tmp_path / "mmlu")
    config.eval.mmlu = str(tmp_path / "mmlu")
    config.eval.mmlu_shots = [0, 2]
    config.eval.ifeval_rows = 0
    config.eval.general_rows = 2
    seen: list[str] = []
    result = evaluate_models({"tuned": tuned, "base": base}, config, rows, lambda stage, *_: seen.append(stage))

    for name, folder in (("base", base), ("tuned", tuned)):
        domain = result[name]["domain"]
        assert domain["metric"] == "choice"
        assert set(domain["metrics"]) == {"contains", "exact", "choice", "choice_norm", "letter"}
        assert domain["correct"] == domain["metrics"]["choice"]["correct"]
        expected = [_most_likely(folder, config, row.prompt, row.choices or []) == row.answer for row in rows]
        assert domain["correct"] == expected
        assert all(answer["correct"] in (True, False) for answer in result[name]["answers"])
        assert set(result[name]["mmlu"]) == {"0-shot", "2-shot"}
        for block in result[name]["mmlu"].values():
            assert block["n"] == len(block["correct"]) == 6
            assert block["shortened"] == 0
            assert set(block["subjects"]) == {"counting", "naming"}
    assert result["tuned"]["drift"]["kl"] > 0
    assert {"choices of base", "choices of tuned"} <= set(seen)


def test_mmlu_alone_needs_no_engine(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _write_mmlu(tmp_path / "mmlu")
    config.eval.mmlu = str(tmp_path / "mmlu")
    config.eval.mmlu_shots = [1]
    config.eval.ifeval_rows = config.eval.general_rows = 0
    seen: list[str] = []
    result = evaluate_models({"tuned": models.resolve(models.TINY)}, config, None, lambda stage, *_: seen.append(stage))
    assert result["tuned"]["mmlu"]["1-shot"]["n"] == 6
    assert result["tuned"]["domain"] is None
    assert set(seen) == {"choices of tuned"}


def _write_mmlu(folder: Path) -> None:
    folder.mkdir()
    for split, count in (("dev", 2), ("test", 3)):
        rows = [
            {
                "question": f"{split} {number}?",
                "choices": ["one", "two", "three"],
                "answer": number % 3,
                "subject": name,
            }
            for name in ("counting", "naming")
            for number in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _most_likely(folder: str, config: Config, prompt: str, choices: list[str]) -> str:
    """By one forward a choice, in transformers."""
    model, tokenizer = models.load_model(folder, config.model), models.load_tokenizer(folder, config.model)
    chat = [{"role": "user", "content": prompt}]
    start = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)

    def likelihood(choice: str) -> float:
        ids = tokenizer.encode(choice, add_special_tokens=False)
        with torch.no_grad():
            logprobs = model(torch.tensor([start + ids])).logits[0].log_softmax(-1)
        return float(sum(logprobs[len(start) + place - 1, token] for place, token in enumerate(ids)))

    return max(choices, key=likelihood)


def test_a_model_of_another_shape_is_refused_before_the_engine_starts(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _config(tmp_path)
    base = models.resolve(models.TINY)
    settings = AutoConfig.from_pretrained(base)
    settings.num_hidden_layers = 1
    settings.layer_types = None
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "small")
    models.load_tokenizer(base, config.model).save_pretrained(tmp_path / "small")
    stages: list[str] = []
    with pytest.raises(ModelError, match=r"model\.layers\.1\."):
        evaluate_models(
            {"base": base, "small": str(tmp_path / "small")}, config, None, lambda stage, *_: stages.append(stage)
        )
    assert "engine" not in stages


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    config = _config(tmp_path)
    config.eval.ifeval_rows = 0
    config.eval.general_rows = 0
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        evaluate_models({"base": models.resolve(models.TINY)}, config, None)


def test_a_dead_engine_is_reported_with_actor_and_node(tmp_path: Path) -> None:
    from actors.evaluate.eval_actor import EvalActor, questions
    from actors.evaluate.process import process

    class Dying(EvalActor):
        def start(self) -> list[int]:
            os._exit(1)

    config = _config(tmp_path)
    arguments, options = (
        ("folder", config, questions(config, None), KeptAnswers("")),
        {"num_cpus": 1.0, "num_gpus": 0.0},
    )
    with (
        pytest.raises(RaftError, match=rf"EvalActor on node {cluster.here()} \(pid \d+\): the process died"),
        process("EvalActor", Dying, arguments, options, 60.0) as actor,
    ):
        actor.call("start")


def test_an_actor_that_finds_no_place_is_reported_with_what_it_needs(tmp_path: Path) -> None:
    config = _config(tmp_path)
    config.rollout.num_cpus = 1000.0
    config.rollout.timeout = 3.0
    with pytest.raises(RaftError, match=r"EvalActor .*1000 CPUs.*no answer within 3 s"):
        evaluate_models({"tuned": models.resolve(models.TINY)}, config, None)


def test_an_adapter_on_its_base_is_measured_as_the_merged_model(tmp_path: Path) -> None:
    config = _config(tmp_path)
    config.eval.ifeval_rows = 2
    base = Path(models.resolve(models.TINY))
    name = f"{models.TINY} + {save_adapter(base, tmp_path / 'adapter')}"
    merged = shutil.copytree(models.resolve(name, config.model), tmp_path / "merged")
    rows = [replace(row, choices=["red", "green"]) for row in _rows(["red", "green"] * 2)]
    result = evaluate_models({"base": str(base), "adapter": name, "merged": str(merged)}, config, rows)
    assert result["adapter"]["model"] == name
    assert result["adapter"]["drift"]["kl"] > 0
    layers = result["adapter"]["weight_distance"]["layers"]
    assert layers["0"] > 0
    assert layers["embed"] == layers["other"] == 0
    for key in result["adapter"].keys() - {"model", "seconds"}:
        assert result["adapter"][key] == result["merged"][key], key
