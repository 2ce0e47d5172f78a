"""`raft-ray refine --export` from a file to a data set: rows, measured gap, report and export in one command."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from refine_fixture import read_refined
from typer.testing import CliRunner

from raft_ray.cli import app
from raft_ray.refine.gap import VALUES_SCHEMA, read_gap


@pytest.mark.usefixtures("ray_cluster")
def test_one_command_refines_measures_reports_and_exports(train_file: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "rows"
    keys = [f"data.train={train_file}", "data.test=null", "data.limit=6", "refine.require_key_facts=false"]
    done = CliRunner().invoke(app, ["refine", "smoke", *keys, "--run-dir", str(run), "--export", "hf", str(out)])
    assert done.exit_code == 0, done.output

    rows = read_refined(run / "refined")
    gap = read_gap(run / "refined")
    assert gap is not None
    assert gap["rows"] == len(rows) == 6
    assert gap["all"]["gold"]["n"] == 6
    assert {name for name in VALUES_SCHEMA.names if name in gap["all"]} == {"gold", "rewrite", "fused", "conditioned"}
    assert gap["all"]["conditioned_minus_fused"]["n"] == 6
    html = (run / "refine_report.html").read_text(encoding="utf-8")
    assert "What training uses" in html
    assert f"{gap['all']['gold']['mean']:.3f}" in html
    exported = datasets.load_from_disk(str(out))
    assert [chat[-1]["content"] for chat in exported["messages"]] == [row["fused"] for row in rows]

    # Again in the same folder: nothing is measured a second time, and the other formats come from what is there.
    stamp = json.loads((run / "refined" / "_gap.json").read_text())
    lines = tmp_path / "rows.jsonl"
    again = ["refine", str(run), "--resume", "--export", "jsonl", str(lines)]
    done = CliRunner().invoke(app, again)
    assert done.exit_code == 0, done.output
    assert json.loads((run / "refined" / "_gap.json").read_text()) == stamp
    assert [json.loads(line)["fused"] for line in lines.read_text().splitlines()] == [row["fused"] for row in rows]
