"""The gap on Ray: rows stream through the actors, the numbers lie beside them, and nothing is measured twice."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from refine_fixture import read_refined

from raft_ray.config import Config, Dtype
from raft_ray.errors import DataError, RaftError
from raft_ray.models import TINY, load_chat, load_model, resolve
from raft_ray.models.likelihood import mean_log_likelihoods
from raft_ray.models.prompts import PromptEncoder
from raft_ray.refine.gap import GAP, VALUES, measure_rows, read_gap
from raft_ray.refine.refiner import unrefined
from raft_ray.refine.schema import RefinedRow, refined_table

pytestmark = pytest.mark.usefixtures("ray_cluster")


def refined_rows(count: int) -> list[RefinedRow]:
    from raft_ray.data import Row

    rows = []
    for i in range(count):
        question, gold = f"What is {i} plus {i}?", f"{2 * i}"
        refined = unrefined(Row(i, i + 1, [{"role": "user", "content": question}], gold, [gold]))
        if i % 2:
            refined.update(rewrite=f"It is {gold}.", fused=f"The sum is {gold}.", accepted=True, refused=None)
        rows.append(refined)
    return rows


def config(run_dir: Path) -> Config:
    settings = Config()
    settings.run.dir = str(run_dir)
    settings.model.path = TINY
    settings.model.dtype = Dtype.float32
    settings.refine.batch = 4
    return settings


def test_every_rows_numbers_are_those_of_the_model_whatever_the_actors(tmp_path: Path) -> None:
    from actors.refine.gap import measure_gap

    rows = refined_rows(21)
    folder = tmp_path / "refined"
    folder.mkdir()
    for start in range(0, 21, 8):
        pq.write_table(refined_table(rows[start : start + 8]), folder / f"part-{start:08d}-x.parquet")
    settings = config(tmp_path)
    done: list[tuple[int, int]] = []
    gap = measure_gap(settings, folder, lambda *now: done.append(now))

    chat = load_chat(resolve(TINY), settings.model)
    model: Any = load_model(resolve(TINY), settings.model).eval()
    values = pq.read_table(folder / VALUES).to_pylist()
    template = (
        "Background reference knowledge: {answer}\nAnswer the question based on the reference knowledge: {prompt}"
    )
    own = measure_rows(rows, PromptEncoder(chat, 512, teacher_template=template), partial(mean_log_likelihoods, model))
    assert [value["row"] for value in values] == list(range(21))
    for value, mine in zip(values, own, strict=True):
        assert value == pytest.approx(mine, abs=1e-4)
    assert gap["rows"] == 21
    assert gap["all"]["fused"]["mean"] == pytest.approx(sum(value["fused"] for value in own) / 21, abs=1e-4)
    assert gap["accepted"]["fused"]["n"] == 10
    assert done[-1] == (21, 21)
    assert read_gap(folder) == gap
    assert [row["row"] for row in read_refined(folder)] == list(range(21))

    stamp = (folder / GAP).stat().st_mtime_ns
    assert measure_gap(settings, folder) == gap
    assert (folder / GAP).stat().st_mtime_ns == stamp

    settings.run.seed += 1
    settings.teacher.actors = 2
    again = measure_gap(settings, folder)
    assert pq.read_table(folder / VALUES).to_pylist() == values
    assert again["all"]["gold"]["low"] != gap["all"]["gold"]["low"]

    (tmp_path / "mine.txt").write_text("{prompt} Say this: {answer}")
    settings.teacher.template = str(tmp_path / "mine.txt")
    other = measure_gap(settings, folder)
    assert other["all"]["fused"] == again["all"]["fused"]
    assert other["all"]["conditioned"]["mean"] != again["all"]["conditioned"]["mean"]

    # Another teacher's use of the reference is not the original model's.
    settings.teacher.path = TINY
    assert measure_gap(settings, folder)["all"]["conditioned"]["n"] == 0


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    from actors.refine.gap import measure_gap

    folder = tmp_path / "refined"
    folder.mkdir()
    with pytest.raises(DataError, match="no refined rows there"):
        measure_gap(config(tmp_path), folder)
    pq.write_table(refined_table(refined_rows(2)), folder / "part-00000000-x.parquet")
    settings = config(tmp_path)
    settings.model.path = str(tmp_path)
    with pytest.raises(RaftError, match=r"no config\.json there"):
        measure_gap(settings, folder)
    assert not (folder / GAP).exists()
