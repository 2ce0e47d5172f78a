"""Part files know what they were made of: rows, settings, models, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from refine_fixture import read_refined

from raft_ray.config import Config, RefineConfig, RefineModelConfig, RunConfig
from raft_ray.data import Row, Slice
from raft_ray.errors import DataError
from raft_ray.refine.parts import fingerprint, part_name, sort_out, write_part
from raft_ray.refine.refiner import unrefined
from raft_ray.refine.roles import RefinePrompts
from raft_ray.refine.schema import FAILED, REFINED_SCHEMA, part_files, refined_table
from raft_ray.refine.summary import Summary, spending

PROMPTS = RefinePrompts("rewrite", "fuse")
SLICES = [Slice(0, 3, digest=11), Slice(3, 3, digest=22), Slice(6, 1, digest=33)]


def table(part: Slice, refused: str | None = None) -> Any:
    rows = []
    for index in range(part.first, part.first + part.count):
        message = [{"role": "user", "content": f"q{index}"}]
        rows.append(unrefined(Row(index=index, line=1, messages=message, answer="a", answers=["a"])))
    if refused:
        rows[-1]["refused"] = refused
    return refined_table(rows)


def fill(folder: Path, settings: str = "s") -> None:
    for part in SLICES:
        write_part(table(part), part, settings, folder)


def test_what_was_made_of_the_same_is_kept(tmp_path: Path) -> None:
    tmp_path = tmp_path / "tau=0.9"
    tmp_path.mkdir()
    fill(tmp_path)
    assert [file.name for file in part_files(tmp_path)] == [part_name(part) for part in SLICES]
    assert sort_out(tmp_path, SLICES, "s") == []
    assert [row["row"] for row in read_refined(tmp_path)] == list(range(7))
    assert pq.ParquetFile(part_files(tmp_path)[0]).read().schema.remove_metadata().equals(REFINED_SCHEMA)


def test_other_settings_rows_and_failures_are_made_anew(tmp_path: Path) -> None:
    fill(tmp_path)
    assert sort_out(tmp_path, SLICES, "other") == SLICES
    assert part_files(tmp_path) == []
    fill(tmp_path)
    write_part(table(SLICES[0], FAILED), SLICES[0], "s", tmp_path)
    changed = Slice(6, 1, digest=34)
    assert sort_out(tmp_path, [*SLICES[:2], changed], "s") == [SLICES[0], changed]
    assert [file.name for file in part_files(tmp_path)] == [part_name(SLICES[1])]
    # Slices of another size leave nothing behind.
    fill(tmp_path)
    wider = [Slice(0, 6, digest=33), SLICES[2]]
    assert sort_out(tmp_path, wider, "s") == [wider[0]]
    assert [file.name for file in part_files(tmp_path)] == [part_name(SLICES[2])]


def test_a_file_that_is_not_stage_1s_is_never_deleted(tmp_path: Path) -> None:
    path = tmp_path / "part-00000000.parquet"
    pq.write_table(table(SLICES[0]), path)
    with pytest.raises(DataError, match=r"part-00000000\.parquet: not made by this stage 1"):
        sort_out(tmp_path, SLICES, "s")
    write_part(table(SLICES[0]), SLICES[0], "s", tmp_path)
    written = pq.read_table(path)
    other = written.set_column(11, "fused", [["b"] * 3])
    pq.write_table(other.replace_schema_metadata(written.schema.metadata), path)
    with pytest.raises(
        DataError, match=r"part-00000000\.parquet: its rows are not those that stage 1 wrote; delete it"
    ):
        sort_out(tmp_path, SLICES, "s")
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"cannot be read as Parquet"):
        sort_out(tmp_path, SLICES, "s")
    assert path.exists()


def test_other_rows_than_the_slice_has_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="came for the slice of 3 rows from 3 on"):
        write_part(table(SLICES[0]), SLICES[1], "s", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_is_of_what_decides_the_rows() -> None:
    def of(prompts: RefinePrompts = PROMPTS, model: str = "m", seed: int = 0, **changes: Any) -> str:
        config = Config(run=RunConfig(seed=seed), refine=RefineConfig(**changes))
        return fingerprint(config, prompts, {"self": model})

    remote = {"x": RefineModelConfig(base_url="http://localhost", model="m", concurrency=3)}
    assert of() == of(actors=2, workers=5, max_workers=9, models=remote)
    others = [
        of(tau=0.9),
        of(judges=["exact"]),
        of(temperature=0.1),
        of(batch=32),
        of(embedder="other"),
        of(seed=1),
        of(model="n"),
        of(RefinePrompts("rewrite!", "fuse")),
        of(RefinePrompts("rewrite", "fuse!")),
    ]
    assert len({of(), *others}) == len(others) + 1


def test_the_summary_does_not_depend_on_how_rows_are_cut() -> None:
    rows = [row for part in SLICES for row in table(part, "similarity").to_pylist()]
    for number, row in enumerate(rows):
        row["similarity"] = 0.1 * number
    one, many = Summary(), Summary()
    one.add(rows)
    for row in reversed(rows):
        many.add([row])
    assert one.result() == many.result()
    assert one.result()["refused"] == {"off": 4, "similarity": 3}
    assert one.result()["similarity_mean"] == pytest.approx(0.3)


def test_the_spending_is_by_model_and_role_over_all_runs_and_by_stage_of_this_one() -> None:
    before = {("rewriter big", "misses"): 10.0, ("rewriter big", "input_tokens"): 1e6, ("rewrite", "rows"): 10.0}
    counts = before | {
        ("rewriter big", "misses"): 14.0,
        ("rewriter big", "hits"): 10.0,
        ("rewriter big", "input_tokens"): 2e6,
        ("rewriter big", "output_tokens"): 1e6,
        ("judge big", "misses"): 3.0,
        ("judge big", "failed"): 1.0,
        ("fuser self", "misses"): 5.0,
        ("rewrite", "rows"): 30.0,
        ("rewrite", "seconds"): 4.0,
    }
    models = {"big": RefineModelConfig(base_url="http://x", model="m", input_cost=2.0, output_cost=5.0)}
    spent = spending(counts, before, RefineConfig(models=models))
    assert spent["cache"] == {"hits": 10, "misses": 12}
    assert spent["stages"]["rewrite"] == {"rows": 20, "seconds": 4.0, "rows_per_second": 5.0}
    assert spent["stages"]["fuse"] == {"rows": 0, "seconds": 0.0, "rows_per_second": None}
    big = spent["models"]["big"]
    assert (big["asks"], big["failed"], big["input_tokens"], big["cost"]) == (17, 1, 2_000_000, 9.0)
    assert (spent["models"]["self"]["asks"], spent["models"]["self"]["cost"]) == (5, 0.0)
    assert spent["roles"]["judge big"]["asks"] == 3
