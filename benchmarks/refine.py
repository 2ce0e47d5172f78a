"""Throughput of stage 1's rewriting against a bare vLLM loop on the same prompts.

    PYTHONPATH=tests python benchmarks/refine.py ROWS.jsonl --rows 300 --json refine.json

The same prompts (chat template and rewriting prompt filled in), the same batches and sampling, the same model. Measured
in turn in one run: bare, stage 1, bare, stage 1, .. "Bare" is `vllm.LLM.generate` in a loop over the batches, in a
process of its own. Stage 1 is `raft-ray refine` without fusion, from the source to the written Parquet files, the
filter and the guards included; what both need once (start of the engine) is left out: the time runs from the first
call of the engine to the last file. Tokens are those generated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raft_ray.config import Config, DataConfig, ModelConfig, OnBadRow, RefineConfig, SimilarityOn
from raft_ray.data import RowTable, read_table
from raft_ray.models import EMBEDDED, load_chat, model_context, resolve
from raft_ray.models.prompts import PromptEncoder
from raft_ray.models.templates import fill
from raft_ray.refine.roles import load_prompts


class Bare:
    """An actor with nothing but an engine and token ids."""

    def __init__(self, config: Config, batches: list[list[list[int]]]) -> None:
        from actors.engine.vllm_engine import Engine

        self._config = config
        self._batches = batches
        folder = resolve(config.model.path)
        context = model_context(folder, config.model)
        self._engine = Engine(folder, config.model, config.rollout, context=context)

    def loop(self) -> tuple[float, int]:
        """Seconds and tokens of one pass over all batches."""
        refine = self._config.refine
        start, tokens = time.perf_counter(), 0
        for batch in self._batches:
            self._engine.llm.reset_prefix_cache()
            completions = self._engine.generate(
                batch, max_new_tokens=refine.max_new_tokens, temperature=refine.temperature, seed=0
            )
            tokens += sum(len(completion.token_ids) for completion in completions)
        return time.perf_counter() - start, tokens


def prompts(config: Config, found: RowTable) -> list[list[list[int]]]:
    """Token ids of what stage 1 asks, batch by batch."""
    folder = resolve(config.model.path)
    encoder = PromptEncoder(load_chat(folder, config.model), model_context(folder, config.model))
    template = load_prompts(config.refine).rewrite
    chats = [
        [*row.messages[:-1], {"role": "user", "content": fill(template, prompt=row.prompt, answer=row.answer)}]
        for row in found
    ]
    ids = [encoder.prompt(chat) for chat in chats]
    return [ids[i : i + config.refine.batch] for i in range(0, len(ids), config.refine.batch)]


def bare(config: Config, batches: list[list[list[int]]]) -> tuple[float, int]:
    """Seconds and tokens of the bare loop, in a new process whose engine has started."""
    import ray

    from actors.runtime.cluster import actor_options

    options = actor_options(role="bare", num_cpus=1, num_gpus=0, threads=config.rollout.threads)
    actor: Any = ray.remote(Bare).options(**options).remote(config, batches)
    result: tuple[float, int] = ray.get(actor.loop.remote())
    ray.kill(actor)
    return result


def stage_1(config: Config, found: RowTable, folder: Path) -> tuple[float, int]:
    """Seconds from the first call of the engine to the last file, and tokens, of stage 1 in a new run folder."""
    from listener import Listener, Said

    from actors.refine.flow import refine
    from raft_ray.refine import read_summary

    times: dict[str, float] = {}

    def heard(said: Said) -> None:
        if said["state"] == "generating":
            times.setdefault("first", time.perf_counter())

    def done(rows: int, total: int) -> None:
        if rows == total:
            times["last"] = time.perf_counter()

    with Listener(folder.parent / "s", heard):
        out = refine(found, config, folder / "refined", done)
    return times["last"] - times["first"], read_summary(out)["models"]["self"]["output_tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="JSONL file with prompt and answer")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    arguments = parser.parse_args()

    config = Config(
        model=ModelConfig(path=arguments.model, context=1024 if arguments.model == EMBEDDED else None),
        data=DataConfig(train=arguments.source, limit=arguments.rows, on_bad_row=OnBadRow.skip),
        refine=RefineConfig(
            fuser="none",
            batch=arguments.batch,
            max_new_tokens=arguments.max_new_tokens,
            similarity_on=SimilarityOn.question_answer,
        ),
    )
    found = read_table(arguments.source, config.data, split="train")
    batches = prompts(config, found)
    measured: dict[str, list[dict[str, Any]]] = {"bare vLLM": [], "stage 1": []}

    def note(what: str, seconds: float, tokens: int) -> None:
        measured[what].append({"seconds": round(seconds, 2), "tokens": tokens, "rate": round(tokens / seconds, 1)})
        print(f"{what}: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s", file=sys.stderr)

    from actors.runtime.cluster import cluster

    with tempfile.TemporaryDirectory(prefix="raft-") as scratch:
        for repeat in range(arguments.repeats):
            config.run.dir = str(Path(scratch) / str(repeat))
            # A Ray each, so that neither has another's processes beside it.
            with cluster(config):
                note("bare vLLM", *bare(config, batches))
            with cluster(config):
                note("stage 1", *stage_1(config, found, Path(config.run.dir)))
    rates = {what: statistics.median(each["rate"] for each in each_time) for what, each_time in measured.items()}
    ratios = [
        stage["rate"] / alone["rate"] for alone, stage in zip(measured["bare vLLM"], measured["stage 1"], strict=True)
    ]
    result = {
        "rows": len(found),
        "batch": arguments.batch,
        "model": arguments.model,
        "measured": measured,
        "tokens_per_second": rates,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    print(f"\n| {len(found)} rows, batches of {arguments.batch} | tokens/s (median) | of bare |\n|---|---:|---:|")
    print(f"| bare `vllm.LLM.generate` loop | {rates['bare vLLM']:.1f} | 1 |")
    print(f"| stage 1, rewriting | {rates['stage 1']:.1f} | {result['ratio']:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
