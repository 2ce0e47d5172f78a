"""lm-eval's own run of a model on MMLU questions of local files, item by item, as JSON on the last line of stdout.

    python tests/lm_eval_reference.py MODEL TEST.jsonl DEV.jsonl SUBJECT SHOTS

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


def main(model: str, test: str, dev: str, subject: str, shots: str) -> None:
    # lm-eval imports sacrebleu for translation scores; nothing here asks for one.
    if importlib.util.find_spec("sacrebleu") is None:
        sys.modules["sacrebleu"] = types.ModuleType("sacrebleu")
    import torch
    from lm_eval import evaluator
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    folder = Path(evaluator.__file__).parent / "tasks" / "mmlu" / "default"
    config: dict[str, Any] = {
        **yaml.safe_load((folder / "_default_template_yaml").read_text()),
        **yaml.safe_load((folder / f"mmlu_{subject}.yaml").read_text()),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": test, "dev": dev}},
        "num_fewshot": int(shots),
    }
    del config["include"]
    task = ConfigurableTask(config=config)
    lm = HFLM(pretrained=model, dtype=torch.float32, batch_size=4, device="cpu")
    result = evaluator.evaluate(lm=lm, task_dict={config["task"]: task}, bootstrap_iters=0)
    samples = sorted(result["samples"][config["task"]], key=lambda sample: sample["doc_id"])
    print(
        json.dumps(
            {
                "accuracy": result["results"][config["task"]]["acc,none"],
                "contexts": [sample["arguments"][0][0] for sample in samples],
                "logprobs": [[float(one[0]) for one in sample["filtered_resps"]] for sample in samples],
                "correct": [bool(sample["acc"]) for sample in samples],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
