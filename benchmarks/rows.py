"""Rows of a data set's file, spread evenly over it, in the form that raft-ray reads.

    python benchmarks/rows.py FILE.jsonl --rows 300 > train.jsonl

The file has rows with `question` or `prompt`, and `answer`; a `context` is put before the question, and `answers` and
`choices` stay. Files are often sorted by what they are about, so the first rows would be no sample of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def spread(file: Path, rows: int) -> Iterator[dict[str, Any]]:
    """`rows` rows of `file`, or all if it has fewer."""
    lines = file.read_text(encoding="utf-8").splitlines()
    count = min(rows, len(lines))
    for row in (json.loads(lines[i * len(lines) // count]) for i in range(count)):
        question = row.get("prompt") or row["question"]
        context = f"{row['context']}\n\n" if row.get("context") else ""
        others = {key: row[key] for key in ("answers", "choices") if row.get(key)}
        yield {"prompt": f"{context}{question}", "answer": row["answer"], **others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=300)
    arguments = parser.parse_args()
    for row in spread(arguments.file, arguments.rows):
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
