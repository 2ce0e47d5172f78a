"""Two domains one after the other: what is left of the first, and of the original model?

    python benchmarks/sequence.py demo --first domain:chemistry:40 --second domain:geography:40 --out runs/sequence \
        [--rows rows.yaml] [KEY=VALUE ...]

Each row trains on the first domain, and its model, which is also the teacher then, on the second. Rows are keys by
name, `{sft: {distill.method: sft}, ...}`; by default plain fine-tuning, RAFT, and RAFT with rehearsal. All models are
then compared with the original one on either domain's test questions: `OUT/on_first/compare.html` and `OUT/on_second/`.
What is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROWS: dict[str, dict[str, Any]] = {
    "sft": {"distill.method": "sft"},
    "raft": {"distill.method": "raft"},
    "rehearsal": {"distill.method": "raft", "distill.rehearsal.rows": 4},
}


def raft_ray(*arguments: str) -> None:
    """A command of raft-ray; ends this script with its exit status where it fails."""
    code = subprocess.run([sys.executable, "-m", "raft_ray", *arguments]).returncode
    if code:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("keys", nargs="*", help="KEY=VALUE of every training and evaluation")
    parser.add_argument("--first", required=True)
    parser.add_argument("--second", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=Path, help="YAML file of rows")
    arguments = parser.parse_args()
    rows = yaml.safe_load(arguments.rows.read_text(encoding="utf-8")) if arguments.rows else ROWS
    models: dict[str, list[str]] = {}
    for row, own in rows.items():
        before: list[str] = []
        for place, domain in (("first", arguments.first), ("second", arguments.second)):
            folder = (arguments.out / row / place).absolute()
            if not (folder / "model").exists():
                keys = [f"{key}={json.dumps(value)}" for key, value in own.items()]
                keys += [f"data.train={domain}", "run.baselines=[]", "eval.enabled=false", *before]
                resume = ["--resume"] if folder.exists() else []
                raft_ray("run", arguments.config, *arguments.keys, *keys, "--run-dir", str(folder), *resume)
            models[f"{row}_{place}"] = [str(folder / "model")]
            before = [f"model.path={folder / 'model'}"]
    for place, domain in (("first", arguments.first), ("second", arguments.second)):
        keys = [
            f"data.test={domain}",
            f"data.train={domain}",
            "compare.methods=[]",
            f"compare.models={json.dumps(models)}",
        ]
        folder = arguments.out / f"on_{place}"
        resume = ["--resume"] if folder.exists() else []
        raft_ray("compare", arguments.config, *arguments.keys, *keys, "--run-dir", str(folder), *resume)


if __name__ == "__main__":
    main()
