"""Exports: `datasets` reads them, `raft_ray.data` reads them back as they were, and training gets the fused answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refine_fixture import read_refined, refined_row, write_refine_run
from typer.testing import CliRunner

from raft_ray import models
from raft_ray.cli import app
from raft_ray.config import DataConfig, settings
from raft_ray.data import Row, read_rows
from raft_ray.errors import ConfigError, DataError
from raft_ray.preflight import encode, preflight
from raft_ray.refine import export as module
from raft_ray.refine.export import export
from raft_ray.refine.gap import GAP, VALUES
from raft_ray.refine.schema import SUMMARY, refined_table

ROWS = 300
OUTS = {"hf": "data", "jsonl": "data.jsonl", "parquet": "data.parquet"}


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refine_run(tmp_path_factory.mktemp("run") / "run", ROWS) / "refined"


@pytest.fixture(params=OUTS)
def exported(request: pytest.FixtureRequest, refined: Path, tmp_path: Path) -> Path:
    out = tmp_path / "new" / OUTS[request.param]
    assert export(refined, request.param, out) == ROWS
    return out


def load(path: Path) -> Any:
    """As others load it."""
    if path.is_dir():
        return datasets.load_from_disk(str(path))
    kind = {".jsonl": "json", ".parquet": "parquet"}[path.suffix]
    cache = str(path.parent / "cache")
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache)


def test_datasets_loads_every_row_with_the_fused_answer_as_the_last_turn(refined: Path, exported: Path) -> None:
    rows = read_refined(refined)
    data = load(exported)
    assert data.column_names == ["messages", "question", "answer", "answers", "rewrite", "fused", "accepted"]
    assert len(data) == ROWS
    for row, given in zip(rows, data, strict=True):
        assert given["messages"] == [*row["messages"], {"role": "assistant", "content": row["fused"]}]
        assert given["question"] == row["prompt"]
        for key in ("answer", "answers", "rewrite", "fused", "accepted"):
            assert given[key] == row[key]  # type: ignore[literal-required]


def test_readers_of_the_refined_folder_pass_over_what_lies_beside_its_rows(refined: Path, tmp_path: Path) -> None:
    assert {VALUES, GAP, SUMMARY} < {path.name for path in refined.iterdir()}
    data = datasets.load_dataset(str(refined), split="train", cache_dir=str(tmp_path))
    assert [row["row"] for row in data] == list(range(ROWS))
    assert pq.read_table(refined).num_rows == ROWS


def test_nothing_is_left_beside_the_export(exported: Path) -> None:
    # `cache` is what `datasets` may have made when the test loaded it.
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    if exported.is_dir():
        assert {path.suffix for path in exported.iterdir()} == {".arrow", ".json"}


def test_it_comes_back_as_the_refined_folder_itself_does(refined: Path, exported: Path) -> None:
    def rows(source: Path) -> list[Row]:
        good, bad = read_rows(str(source), DataConfig(), split="train")
        assert bad == []
        return good

    assert rows(exported) == rows(refined)
    assert any(row.fused != row.answer for row in rows(exported))


def test_training_takes_the_fused_answers_and_gold_where_it_is_asked_for(exported: Path) -> None:
    fused = [row["fused"] for row in load(exported)]
    gold = [row["answer"] for row in load(exported)]
    for target, texts in (("fused", fused), ("gold", gold)):
        config = settings.load("sft", [f"data.train={exported}", "model.path=random:tiny", f"distill.target={target}"])
        prepared = preflight(config)
        tokenizer = models.load_tokenizer(prepared.folder, config.model)
        encoded, _ = encode(config, prepared.folder, prepared.train)
        assert [tokenizer.decode(encoded[i].answer, skip_special_tokens=True) for i in range(ROWS)] == texts


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_file_made_elsewhere_trains_too(tmp_path: Path, ending: str) -> None:
    chats = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "written elsewhere"}]}]
    pairs = [{"prompt": "q", "fused": "written elsewhere"}, {"prompt": "q", "answer": "gold", "fused": "f"}]
    for name, records in (("chats", chats), ("pairs", pairs)):
        path = tmp_path / f"{name}.{ending}"
        if ending == "jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        else:
            pq.write_table(
                pa.Table.from_pylist(
                    records,
                    pa.schema({key: pa.string() for key in ("prompt", "answer", "fused")}) if name == "pairs" else None,
                ),
                path,
            )
    rows, bad = read_rows(str(tmp_path / f"chats.{ending}"), DataConfig(), split="train")
    assert [(row.prompt, row.answer, row.fused) for row in rows] == [("q", "written elsewhere", None)]
    assert bad == []
    rows, bad = read_rows(str(tmp_path / f"pairs.{ending}"), DataConfig(), split="train")
    expected = [("q", "written elsewhere", "written elsewhere"), ("q", "gold", "f")]
    assert [(row.prompt, row.answer, row.fused) for row in rows] == expected
    assert bad == []


def test_a_chat_without_fused_answers_that_contradicts_the_answer_beside_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "said"}]
    rows = [{"messages": chat, "answer": "said"}, {"messages": chat, "answer": "beside"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, bad = read_rows(str(path), DataConfig(), split="train")
    assert [row.answer for row in good] == ["said"]
    assert [row.line for row in bad] == [2]


def test_only_a_batch_of_rows_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 7)
    pq.write_table(refined_table([refined_row(i) for i in range(30)]), tmp_path / "part-00000000.parquet")
    made: list[int] = []
    own = module._exported

    def count(row: dict[str, Any]) -> dict[str, Any]:
        made.append(1)
        return own(row)

    monkeypatch.setattr(module, "_exported", count)
    rows = module.exported_rows([tmp_path / "part-00000000.parquet"])
    next(rows)
    assert len(made) == 1
    assert export(tmp_path, "parquet", tmp_path / "out.parquet") == 30
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 30


def test_an_export_that_was_cut_off_is_written_anew(refined: Path, tmp_path: Path) -> None:
    for kind, name in OUTS.items():
        partial = tmp_path / f"{name}.partial"
        if kind == "hf":
            partial.mkdir()
            (partial / "left").write_text("behind")
        else:
            partial.write_text("left behind")
        assert export(refined, kind, tmp_path / name) == ROWS
        assert not partial.exists()
        assert len(load(tmp_path / name)) == ROWS


def test_what_cannot_be_exported_is_said_at_once(refined: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="must be one of hf, jsonl, parquet"):
        export(refined, "csv", tmp_path / "x")
    with pytest.raises(ConfigError, match="there: exists already; name a new folder"):
        export(refined, "hf", tmp_path / "there")
    with pytest.raises(ConfigError, match=r"must be named \*\.jsonl"):
        export(refined, "jsonl", tmp_path / "rows.json")
    with pytest.raises(DataError, match="no refined rows there"):
        export(tmp_path, "hf", tmp_path / "x")
    (tmp_path / "part-00000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-00000000\.parquet: not a file of refined rows"):
        export(tmp_path, "jsonl", tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


def test_the_command_line_exports_a_run_and_refuses_before_it_refines(refined: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    done = CliRunner().invoke(app, ["export", str(refined.parent), str(out), "--format", "jsonl"])
    assert done.exit_code == 0
    assert f"exported 300 rows: {out}" in done.stdout.replace("\n", "")
    assert len(out.read_text().splitlines()) == ROWS
    arguments = ["refine", "smoke", "--run-dir", str(tmp_path / "run"), "--export", "jsonl", str(out)]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "exists already" in refused.output
    assert not (tmp_path / "run").exists()
