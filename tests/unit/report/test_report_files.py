"""What a report refuses: files that cannot be understood, named with their line, and folders without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_fixture import edit_evaluation

from raft_ray.errors import RaftError
from raft_ray.report import write_report


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 0}\n{"step": 1, "loss"\n', r"metrics\.jsonl line 2: not JSON"),
        ("metrics.jsonl", '{"step": 0, "kl_loss": "low"}\n', r"metrics\.jsonl line 1: `kl_loss` must be a number"),
        ("metrics.jsonl", '{"loss": 1.0}\n', r"metrics\.jsonl line 1: `step` must be a whole number"),
        ("metrics.jsonl", "[]\n", r"metrics\.jsonl line 1: not a JSON object"),
        ("metrics.jsonl", '{"step": 0, "seconds": 3}\n', r"metrics\.jsonl line 1: `seconds` must be an object"),
        ("methods/sft/metrics.jsonl", "x\n", r"methods/sft/metrics\.jsonl line 1: not JSON"),
        ("trace.jsonl", '{"epoch": 0, "step": 0, "row": null}\n', r"trace\.jsonl line 1: `row` must be"),
        ("spans.jsonl", '{"who": "rollout-0"}\n', r"spans\.jsonl line 1: `what` must say"),
        ("config.yaml", "run:\n  dir: [\n", r"config\.yaml line 3: not YAML"),
        ("config.yaml", "- run\n", r"config\.yaml line 1: expected sections"),
        ("config.yaml", "3\n", r"config\.yaml: not a configuration"),
        ("eval.json", '{\n"main": "raft",\n"methods": {\n', r"eval\.json line 4: not JSON"),
        ("eval.json", '{"main": "raft", "methods": {}}', r"eval\.json line 1: `methods` must be"),
        (
            "eval.json",
            '{"main": "raft", "methods": {"raft": {"drift": {}}}}',
            r"methods\.raft\.drift\.kl must be a number",
        ),
        *(
            (
                "eval.json",
                json.dumps({"main": "raft", "methods": {"raft": {"open_answers": samples}}}),
                r"methods\.raft\.open_answers must be a list of objects with a `score` and judged `turns`",
            )
            for samples in (
                {"score": 0.5},
                [3],
                [{"turns": []}],
                [{"score": 0.5}],
                [{"score": 0.5, "turns": [{"prompt": "p"}]}],
                [{"score": 0.5, "turns": [{"judges": {}}]}],
                [{"score": 0.5, "turns": [{"prompt": "p", "judges": {"strong": {"score": 1}}}]}],
                [{"score": 0.5, "turns": [{"prompt": "p", "judges": {"strong": {"score": "1", "reason": ""}}}]}],
            )
        ),
        ("refined/part-00000.parquet", "no parquet", r"part-00000\.parquet: not a readable Parquet file"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(run: Path, name: str, content: str, message: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(RaftError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kinds": [1]}, r"methods\.raft\.ifeval\.kinds must be objects with `followed`, `n` and `share`"),
        ({"kinds": {"keywords": {"followed": 1, "n": "2", "share": 0.5}}}, r"ifeval\.kinds must be"),
        ({"retention_low": "0.9"}, r"methods\.raft\.ifeval must be tested against the base, or not at all"),
        ({"samples": None}, r"ifeval must be tested"),
        ({"low": None}, r"ifeval must be tested"),
        ({"on_base": {"p": 0.5, "difference": 0.1}}, r"ifeval must be tested"),
    ],
)
def test_an_ifeval_part_that_cannot_be_understood_is_named(run: Path, changed: dict[str, Any], message: str) -> None:
    edit_evaluation(run, lambda methods: methods["raft"]["ifeval"].update(changed))
    with pytest.raises(RaftError, match=message):
        write_report(run)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RaftError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(RaftError, match="no such run folder"):
        write_report(tmp_path / "missing")
