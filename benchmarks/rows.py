"""Rows of a data set's file, spread evenly over it, in the form that raft-ray reads.

    python benchmarks/rows.py FILE.jsonl --rows 300 [--answers 20] [--words 80] > train.jsonl
    python benchmarks/rows.py FILE.jsonl --rows 300 --sentence "The answer is {answer}." > train.jsonl

The file has rows with `question` or `prompt`, and `answer`; a `context` is put before the question, and `answers` and
`choices` stay. Files are often sorted by what they are about, so the first rows would be no sample of them. `--answers`
keeps the rows of the first so many different answers, where answers are labels, and `--words` those whose context and
question have at most so many words. `--sentence` says the answers in a sentence, and the label alone becomes what an
answer must state (`answers`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def spread(
    file: Path, rows: int, answers: int | None = None, words: int | None = None, sentence: str = "{answer}"
) -> Iterator[dict[str, Any]]:
    """`rows` rows of `file`, or all if it has fewer; only those of its first `answers` different answers, and with
    at most `words` words before the answer, which is put into `sentence`."""
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = [row for row in found if words is None or len(_prompt(row).split()) <= words]
    kept = set(list(dict.fromkeys(row["answer"] for row in found))[:answers])
    found = [row for row in found if row["answer"] in kept]
    count = min(rows, len(found))
    for row in (found[i * len(found) // count] for i in range(count)):
        others = {key: row[key] for key in ("answers", "choices") if row.get(key)}
        said = sentence.replace("{answer}", row["answer"])
        if said != row["answer"]:
            others.setdefault("answers", [row["answer"]])
        yield {"prompt": _prompt(row), "answer": said, **others}


def _prompt(row: dict[str, Any]) -> str:
    context = f"{row['context']}\n\n" if row.get("context") else ""
    return f"{context}{row.get('prompt') or row['question']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--answers", type=int, help="rows of so many different answers only")
    parser.add_argument("--words", type=int, help="rows of at most so many words of context and question only")
    parser.add_argument("--sentence", default="{answer}", help='how answers are said: "It is about {answer}."')
    arguments = parser.parse_args()
    for row in spread(arguments.file, arguments.rows, arguments.answers, arguments.words, arguments.sentence):
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
