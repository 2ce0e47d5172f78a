"""Stage 1 over data sets of several domains: acceptance, compatibility gap before and after, time.

    python benchmarks/refinement.py DATA.jsonl ... [--rows 300] [--out docs] [KEY=VALUE ...]

Takes rows that are spread evenly over each file (`rows.py`). A domain is called after its file's folder, or after the
file where that is not called `train`. The model is the embedded one, and the settings those of the preset `demo`, with
longer answers; other keys can be overridden. Runs lie in `--work`, and a second call goes on with what is there.

Prints the table, and writes it to `OUT/benchmark-refinement.md` and all numbers to `OUT/benchmark-refinement.json`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from rows import spread

from actors.run import refine
from raft_ray.checks import check
from raft_ray.config import settings
from raft_ray.refine.gap import describe, read_gap
from raft_ray.refine.schema import read_summary

SETTINGS = ["data.test=null", "data.on_bad_row=skip", "eval.enabled=false", "refine.max_new_tokens=192"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="DATA.jsonl | KEY=VALUE")
    parser.add_argument("--rows", type=int, default=300, help="rows of each file")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-refinement"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    overrides = [text for text in arguments.inputs if "=" in text]
    results = []
    for file in (Path(text) for text in arguments.inputs if "=" not in text):
        name = file.parent.name if file.stem == "train" else file.stem
        results.append(measure(name, file, arguments.rows, arguments.work.absolute() / name, overrides))
        arguments.out.mkdir(parents=True, exist_ok=True)
        record = {"cores": os.cpu_count(), "overrides": overrides, "domains": results}
        (arguments.out / "benchmark-refinement.json").write_text(json.dumps(record, indent=1, ensure_ascii=False))
        (arguments.out / "benchmark-refinement.md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))
    for result in results:
        print(f"{result['domain']}: {describe(result['gap'])}")


def measure(name: str, file: Path, rows: int, work: Path, overrides: list[str]) -> dict[str, Any]:
    """Refine `rows` rows of `file` in the run folder `work`, and return what came of it."""
    data = work.parent / f"{name}.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in spread(file, rows)))
    keys = [f"run.dir={json.dumps(str(work))}", f"data.train={json.dumps(str(data))}"]
    config = settings.load("demo", [*SETTINGS, *keys, f"run.resume={str(work.exists()).lower()}", *overrides])
    check(config)
    refined = refine(config)
    gap = read_gap(refined)
    assert gap is not None, "refine.gap=false leaves nothing to measure"
    return {"domain": name, "model": config.model.path, "summary": read_summary(refined), "gap": gap}


def markdown(results: list[dict[str, Any]]) -> str:
    """The table; log-likelihoods are nats per token under the original model, intervals 95%."""
    lines = [
        "| domain | rows | accepted | gold | fused | rise, all rows | gold, accepted | fused, accepted | "
        "rise, accepted | time by stage (rows/s) | in all |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for result in results:
        summary, whole, accepted = result["summary"], result["gap"]["all"], result["gap"]["accepted"]
        cells = [
            result["domain"],
            f"{summary['rows']:,}",
            f"{summary['accepted']:,} ({100 * (summary['acceptance'] or 0):.0f}%)",
            *(_mean(whole[kind]) for kind in ("gold", "fused")),
            _rise(whole["fused_minus_gold"]),
            *(_mean(accepted[kind]) for kind in ("gold", "fused")),
            _rise(accepted["fused_minus_gold"]),
            _stages(summary, result["gap"]),
            f"{summary['seconds']:.0f} s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(interval: dict[str, Any]) -> str:
    return "–" if interval["mean"] is None else f"{interval['mean']:.2f}"


def _rise(interval: dict[str, Any]) -> str:
    if interval["low"] is None:
        return _mean(interval)
    return f"{interval['mean']:+.2f} ({interval['low']:+.2f} to {interval['high']:+.2f})"


def _stages(summary: dict[str, Any], gap: dict[str, Any]) -> str:
    """Seconds and rows per second of each stage on record, and of the measurement of the gap."""
    stages = dict(summary.get("stages") or {})
    stages["gap"] = {"seconds": gap["seconds"], "rows_per_second": gap["rows"] / max(gap["seconds"], 1e-9)}
    return ", ".join(f"{name} {s['seconds']:.0f} s ({s['rows_per_second']:.2g})" for name, s in stages.items())


if __name__ == "__main__":
    main()
