"""MMLU's numbers are those of lm-eval's own run of the same model on the same questions, item by item."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raft_ray import models
from raft_ray.config import Dtype, ModelConfig
from raft_ray.evaluate.likelihood import Choices, choose, encode_pair
from raft_ray.evaluate.mmlu import LETTERS, load_mmlu, scores

REFERENCE = Path(__file__).parents[1] / "lm_eval_reference.py"
SUBJECT = "elementary_mathematics"
ITEMS = 40


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


@pytest.mark.parametrize("shots", [0, 5])
def test_every_item_is_scored_as_by_lm_eval(tmp_path: Path, shots: int) -> None:
    _write_questions(tmp_path)
    folder = models.resolve(models.EMBEDDED)
    done = subprocess.run(
        [
            sys.executable,
            str(REFERENCE),
            folder,
            str(tmp_path / "test.jsonl"),
            str(tmp_path / "dev.jsonl"),
            SUBJECT,
            str(shots),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])

    config = ModelConfig(path=models.EMBEDDED, dtype=Dtype.float32)
    model, tokenizer = models.load_model(folder, config, torch.float32).eval(), models.load_tokenizer(folder, config)
    mmlu = load_mmlu(str(tmp_path), None, 0, [shots])
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
