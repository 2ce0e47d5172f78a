"""lm-eval's own run of a model on questions of local files, item by item, as JSON on the last line of stdout.

    python tests/lm_eval_reference.py mmlu MODEL TEST.jsonl DEV.jsonl SUBJECT SHOTS...
    python tests/lm_eval_reference.py ifeval MODEL PROMPTS.jsonl MAX_NEW_TOKENS

A program of its own: importing lm-eval's evaluator changes what a process has loaded. Everything is lm-eval's: the
task's template is read from its package, and its HFLM and evaluator run it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import yaml


def main(task: str, *arguments: str) -> None:
    # lm-eval imports sacrebleu for translation scores; nothing here asks for one.
    if importlib.util.find_spec("sacrebleu") is None:
        sys.modules["sacrebleu"] = types.ModuleType("sacrebleu")
    print(json.dumps({"mmlu": mmlu, "ifeval": ifeval}[task](*arguments)))


def mmlu(model: str, test: str, dev: str, subject: str, *shots: str) -> dict[str, Any]:
    """By number of shots."""
    return {number: _mmlu(model, test, dev, subject, int(number)) for number in shots}


def _mmlu(model: str, test: str, dev: str, subject: str, shots: int) -> dict[str, Any]:
    folder = _tasks() / "mmlu" / "default"
    config: dict[str, Any] = {
        **yaml.safe_load((folder / "_default_template_yaml").read_text()),
        **yaml.safe_load((folder / f"mmlu_{subject}.yaml").read_text()),
        "dataset_kwargs": {"data_files": {"test": test, "dev": dev}},
        "num_fewshot": shots,
    }
    del config["include"]
    results, samples = _run(model, config)
    return {
        "accuracy": results["acc,none"],
        "contexts": [sample["arguments"][0][0] for sample in samples],
        "logprobs": [[float(one[0]) for one in sample["filtered_resps"]] for sample in samples],
        "correct": [bool(sample["acc"]) for sample in samples],
    }


def ifeval(model: str, prompts: str, max_new_tokens: str) -> dict[str, Any]:
    # For the sentence splitter's data, which lm-eval would download.
    from raft_ray.evaluate.ifeval import check

    check()
    from lm_eval.tasks.ifeval import utils

    class Loader(yaml.SafeLoader):
        """With lm-eval's tag for functions."""

    Loader.add_constructor("!function", lambda _, node: getattr(utils, node.value.split(".")[1]))
    # Its own file, read with a loader that makes plain data and these functions of it.
    config = yaml.load((_tasks() / "ifeval" / "ifeval.yaml").read_text(), Loader)
    config["dataset_kwargs"] = {"data_files": {"train": prompts}}
    config["generation_kwargs"]["max_gen_toks"] = int(max_new_tokens)
    results, samples = _run(model, config, apply_chat_template=True)
    return {
        **{name.removesuffix(",none"): value for name, value in results.items() if name.endswith("_acc,none")},
        "contexts": [sample["arguments"][0][0] for sample in samples],
        "responses": [sample["filtered_resps"][0] for sample in samples],
        "correct": [bool(sample["prompt_level_strict_acc"]) for sample in samples],
    }


def _tasks() -> Path:
    from lm_eval import evaluator

    return Path(evaluator.__file__).parent / "tasks"


def _run(model: str, config: dict[str, Any], **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and samples of a task over local JSON files."""
    import torch
    from lm_eval import evaluator
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    name = config["task"]
    task = ConfigurableTask(config={**config, "dataset_path": "json", "dataset_name": None})
    lm = HFLM(pretrained=model, dtype=torch.float32, batch_size=16, device="cpu")
    result = evaluator.evaluate(lm=lm, task_dict={name: task}, bootstrap_iters=0, **options)
    return result["results"][name], sorted(result["samples"][name], key=lambda sample: sample["doc_id"])


if __name__ == "__main__":
    main(*sys.argv[1:])
