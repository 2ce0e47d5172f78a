"""TRL's own SDFT trainer (arXiv 2601.19897) on the same rows, model, steps and token budget as a row of a comparison.

    raft-ray export runs/comparison rows.jsonl --format jsonl
    .venv/bin/python benchmarks/peers/trl_sdft.py rows.jsonl MODEL OUT --steps 60 --lr 1e-4 --template teacher.txt
    raft-ray compare runs/comparison --resume "compare.models={trl_sdft: [OUT]}"

MODEL is a folder, or a built-in name such as `embedded:smollm2-135m-instruct`; rows are chats, or `prompt` and
`answer`. The last answer is TRL's privileged context. What the two have in common is set to the demo's values (one
answer per question, a constant rate after a warm-up, AdamW, clipping); what TRL alone has keeps its default, its
divergence and its teacher's template too, unless `--template` gives a file with `{prompt}` and `{answer}`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = Path(__file__).parents[2] / ".venv" / "peers"
"""`make env` installs TRL here, beside what it requires."""
sys.path.insert(0, str(PACKAGES))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows as TRL's trainer takes them: a chat up to the question, and what the teacher is shown."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        chat = row.get("messages") or [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        rows.append({"prompt": chat[:-1], "privileged_context": chat[-1]["content"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024, help="longest prompt, which TRL cuts from the left")
    parser.add_argument("--template", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    from raft_ray import models
    from raft_ray.config import Dtype
    from raft_ray.config.precision import of_cpu

    folder = models.resolve(arguments.model)
    template = {}
    if arguments.template:
        text = arguments.template.read_text(encoding="utf-8").replace("{answer}", "{privileged_context}")
        template["teacher_prompt_template"] = text.strip("\n")
    config = SDFTConfig(
        output_dir=str(arguments.out),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        num_generations=1,
        learning_rate=arguments.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=arguments.warmup,
        weight_decay=0.01,
        max_grad_norm=1.0,
        max_completion_length=arguments.max_new_tokens,
        max_prompt_length=arguments.context,
        bf16=torch.cuda.is_available() or of_cpu() is Dtype.bfloat16,
        gradient_checkpointing=False,
        seed=arguments.seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        **template,
    )
    trainer = SDFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(read_rows(arguments.rows)),
        processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
    )
    begun = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begun
    trainer.model.to(torch.bfloat16).save_pretrained(arguments.out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(arguments.out)
    print(f"{arguments.steps} steps in {seconds:.0f} s; the model lies in {arguments.out}")


if __name__ == "__main__":
    main()
