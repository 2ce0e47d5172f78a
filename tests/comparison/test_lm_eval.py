"""IFEval's and MMLU's numbers are those of lm-eval's own run of the same model on the same questions, item by item."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from raft_ray import models
from raft_ray.config import Dtype, ModelConfig
from raft_ray.evaluate.ifeval import load_prompts, score
from raft_ray.evaluate.mmlu import LETTERS, load_mmlu, scores
from raft_ray.models.likelihood import Choices, choose, encode_pair
from raft_ray.models.prompts import PromptEncoder

REFERENCE = Path(__file__).parents[1] / "lm_eval_reference.py"
SUBJECT = "elementary_mathematics"
ITEMS = 20


def _write_questions(folder: Path) -> None:
    draw = random.Random(0)
    for name, count in (("dev", 5), ("test", ITEMS)):
        rows = []
        for number in range(count):
            first, second = draw.randrange(2, 90), draw.randrange(2, 90)
            choices = draw.sample(range(first + second - 9, first + second + 10), 4)
            right = draw.randrange(4)
            choices[right] = first + second
            # lm-eval strips the question and leaves the choices.
            question = (
                f" What is {first} plus {second}?\n" if number % 3 else f"Ann has {first} pens, Bo {second}. Both?"
            )
            rows.append(
                {
                    "question": question,
                    "choices": [f"{choice} " if number % 5 == 0 else str(choice) for choice in choices],
                    "answer": right,
                    "subject": SUBJECT,
                }
            )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _lm_eval(cache: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(REFERENCE), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "HF_DATASETS_CACHE": str(cache)},
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_ifeval_is_asked_and_scored_as_by_lm_eval(tmp_path: Path) -> None:
    # Two prompts have a letter drawn by chance, which lm-eval does not seed.
    prompts = [prompt for prompt in load_prompts(None, seed=0) if prompt.key not in (1129, 1122)][::12]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(asdict(prompt)) + "\n" for prompt in prompts))
    folder = models.resolve(models.EMBEDDED)
    theirs = _lm_eval(tmp_path / "cache", "ifeval", folder, str(file), "12")

    config = ModelConfig(path=models.EMBEDDED)
    chat = models.load_chat(folder, config)
    encoder = PromptEncoder(chat, models.model_context(folder, config))
    for prompt, context in zip(prompts, theirs["contexts"], strict=True):
        asked = encoder.prompt([{"role": "user", "content": prompt.prompt}])
        assert asked == chat.tokenizer(context, add_special_tokens=False)["input_ids"]
    ours = score(prompts, theirs["responses"])
    assert ours["correct"] == theirs["correct"]
    for kind in ("strict", "loose"):
        assert ours[f"prompt_{kind}"] == theirs[f"prompt_level_{kind}_acc"]
        assert ours[f"instruction_{kind}"] == theirs[f"inst_level_{kind}_acc"]
    assert 0 < ours["prompt_strict"] <= ours["prompt_loose"] < ours["instruction_loose"] < 1


@pytest.fixture(scope="module")
def mmlu_reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of the questions, and lm-eval's results by number of shots."""
    folder = tmp_path_factory.mktemp("mmlu")
    _write_questions(folder)
    files = str(folder / "test.jsonl"), str(folder / "dev.jsonl")
    return folder, _lm_eval(folder / "cache", "mmlu", models.resolve(models.EMBEDDED), *files, SUBJECT, "0", "5")


@pytest.mark.parametrize("shots", [0, 5])
def test_every_item_is_scored_as_by_lm_eval(mmlu_reference: tuple[Path, dict[str, Any]], shots: int) -> None:
    questions_folder, results = mmlu_reference
    theirs = results[str(shots)]
    folder = models.resolve(models.EMBEDDED)
    config = ModelConfig(path=models.EMBEDDED, dtype=Dtype.float32)
    model, tokenizer = models.load_model(folder, config, torch.float32).eval(), models.load_tokenizer(folder, config)
    mmlu = load_mmlu(str(questions_folder), None, 0, [shots])
    prompts = [mmlu.prompt(question, shots) for question in mmlu.test]
    assert prompts == theirs["contexts"]
    questions = []
    for question, prompt in zip(mmlu.test, prompts, strict=True):
        pairs = [encode_pair(tokenizer, prompt, f" {letter}") for letter in LETTERS[: len(question.choices)]]
        questions.append(Choices(pairs[0][0], [ids for _, ids in pairs], [1] * len(pairs), question.right))
    chosen = choose(model, questions, limit=models.model_context(folder, config))
    for ours, expected in zip(chosen, theirs["logprobs"], strict=True):
        assert ours.logprobs == pytest.approx(expected, abs=2e-3)
    result = scores(mmlu.test, [one.by_sum for one in chosen])
    assert result["correct"] == theirs["correct"]
    assert result["accuracy"] == theirs["accuracy"]
    assert len(theirs["correct"]) == ITEMS
