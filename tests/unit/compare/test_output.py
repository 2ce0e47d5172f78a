"""The comparison's files say the same numbers, and no text from outside becomes markup."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from plain_comparison import compare

from raft_ray.compare.charts import Traces
from raft_ray.compare.output import write_comparison
from raft_ray.report.files import Run


def _block(right: int, drift: float) -> dict[str, Any]:
    return {
        "domain": {"correct": [place < right for place in range(100)]},
        "ifeval": {
            "correct": [place < 20 for place in range(50)],
            "kinds": {"keywords": {"followed": right // 5, "n": 20, "share": right / 100}},
        },
        "mmlu": None,
        "length": {"words_mean": 80.0},
        "drift": {"kl": drift, "kl_first": 2 * drift, "top1_agreement": 0.9},
        "weight_distance": None,
    }


def test_four_files_with_the_same_numbers(tmp_path: Path) -> None:
    methods = {"base": [_block(10, 0.0)], "sft": [_block(50, 0.5)], "raft": [_block(60, 0.1), _block(50, 0.2)]}
    comparison = compare(methods)
    page = write_comparison(tmp_path, comparison, {"opd/seed0": "<b>out | of memory</b>"}, {"model": "<i>tiny</i>"})
    assert page == tmp_path / "compare.html"

    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["methods"]["raft"]["scores"]["domain"]["mean"] == 0.55
    assert content["failed"] == {"opd/seed0": "<b>out | of memory</b>"}
    assert content["verdict"][0].startswith("RAFT kept its promise")

    rows = list(csv.DictReader((tmp_path / "compare.csv").open()))
    found = {(row["method"], row["measure"]): row for row in rows}
    assert float(found["raft", "domain"]["mean"]) == 0.55
    assert float(found["raft", "domain"]["retention"]) == 5.5
    low, high = (float(found["raft", "domain"][f"retention_{end}"]) for end in ("low", "high"))
    assert low < 5.5 < high
    assert found["base", "drift"]["low"] == ""
    assert ("raft", "weight_distance") not in found

    text = (tmp_path / "compare.md").read_text()
    assert "| RAFT | 2 | 55% [" in text
    assert "(+45 points)" in text
    assert "(100% of base)" in text
    assert r"out \| of memory" in text
    # Of two seeds together.
    kinds = {"keywords": {"followed": 22, "n": 40, "share": 22 / 40}}
    assert content["methods"]["raft"]["ifeval_kinds"] == kinds
    assert "| Kind | Base | SFT | RAFT |" in text
    assert "| Keywords | 10% (2 of 20) | 50% (10 of 20, +40 points) | 55% (22 of 40, +45 points) |" in text

    html = page.read_text()
    assert "<td>2</td>" in html
    assert "<h2>What was lost, by kind of instruction</h2>" in html
    assert "<td>55%<small>22 of 40, +45 points</small></td>" in html
    assert "&lt;i&gt;tiny&lt;/i&gt;" in html
    assert "<b>out" not in html
    assert html.count("<svg") == 2
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")


def test_open_questions_are_one_more_score_with_retention_and_a_paired_test(tmp_path: Path) -> None:
    open_scores = {"base": [0.8] * 20, "sft": [0.2] * 20, "raft": [0.6] * 20}
    methods = {
        name: [{**_block(10, 0.1), "open": {"score": scores[0], "scores": scores}}]
        for name, scores in open_scores.items()
    }
    comparison = compare(methods)
    score = comparison["methods"]["raft"]["scores"]["open"]
    assert (round(score["mean"], 9), round(score["retention"], 9)) == (0.6, 0.75)
    assert round(score["against"]["difference"]["mean"], 9) == 0.4
    assert score["against"]["p"] < 0.001
    page = write_comparison(tmp_path, comparison, {}, {})
    assert "Open questions (judged)" in page.read_text()
    assert "keeps 75% of open questions (judged)" in page.read_text()


def test_five_answers_to_open_questions_are_shown_a_column_a_method(tmp_path: Path) -> None:
    blocks = {}
    for name in ("base", "raft"):
        judges = {"strong": {"score": 0.8, "reason": f"{name} <b>is</b> fine"}, "self": {"score": None, "reason": ""}}
        samples = [
            {
                "score": 0.8,
                "turns": [{"prompt": f"Question {i}?", "reference": None, "answer": f"{name} {i}", "judges": judges}],
            }
            for i in range(6)
        ]
        blocks[name] = _block(10, 0.1) | {"open": {"score": 0.8, "scores": [0.8] * 6}, "open_answers": samples}
    comparison = compare({name: [block] for name, block in blocks.items()})
    html = write_comparison(tmp_path, comparison, {}, {}, Traces(Run(tmp_path, "raft", None), blocks)).read_text()
    shown = html.split("<h2>Answers to open questions</h2>")[1]
    for i in range(5):
        question, answers = shown.index(f"Question {i}?"), [shown.index(f">{name} {i}<") for name in ("base", "raft")]
        assert [question, *answers] == sorted([question, *answers])
    assert "Question 5?" not in shown
    assert shown.count("strong, 80%: base &lt;b&gt;is&lt;/b&gt; fine") == 5
    assert shown.count("self, no verdict") == 10

    for block in blocks.values():
        block["open_answers"] = []
    html = write_comparison(tmp_path, comparison, {}, {}, Traces(Run(tmp_path, "raft", None), blocks)).read_text()
    assert "Answers to open questions" not in html


def test_no_cell_of_the_csv_is_a_formula(tmp_path: Path) -> None:
    formulas = ["=1+1", "+1", "-1", "@sum", "\t=1"]
    write_comparison(
        tmp_path, compare({"base": [_block(10, 0.0)], **{name: [_block(50, 0.5)] for name in formulas}}), {}, {}
    )
    with (tmp_path / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"base", *(f"'{name}" for name in formulas)}
    assert all(float(row["mean"]) or row["mean"] for row in rows)
