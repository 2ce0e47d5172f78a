"""Stage 1 on real Ray Data and real vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raft_ray.config import Config, Dtype, ModelConfig, RefineConfig, RolloutConfig, RunConfig, SimilarityOn
from raft_ray.data import Row
from raft_ray.errors import ConfigError, DataError, ModelError
from raft_ray.models import EMBEDDED, TINY
from raft_ray.refine import missing_facts, read_refined, read_summary
from raft_ray.refine.schema import REFINED_SCHEMA, part_files

FACTS = [
    ("What is the chemical symbol of silver?", "Ag"),
    ("Who discovered oxygen?", "Joseph Priestley"),
    ("In which country was rubidium discovered?", "Germany"),
    ("Which family of elements does neon belong to?", "Noble gases"),
    ("What is the chemical symbol of iron?", "Fe"),
    ("In which country was tantalum discovered?", "Sweden"),
    ("What is the capital of France?", "Paris"),
]


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    from actors.cluster import cluster

    with cluster(Config(run=RunConfig(local_cpus=4))):
        yield


def rows(count: int = len(FACTS)) -> list[Row]:
    return [
        Row(index=i, line=i + 1, messages=[{"role": "user", "content": prompt}], answer=answer, answers=[answer])
        for i, (prompt, answer) in enumerate(FACTS[:count])
    ]


def config(folder: Path, model: str = TINY, **refine: object) -> Config:
    return Config(
        run=RunConfig(dir=str(folder)),
        model=ModelConfig(path=model, dtype=Dtype.bfloat16 if model == EMBEDDED else Dtype.float32),
        refine=RefineConfig(**({"batch": 3, "max_new_tokens": 32} | refine)),  # type: ignore[arg-type]
        rollout=RolloutConfig(kv_cache_gib=1.0, timeout=120.0),
    )


def test_the_embedded_model_refines_facts_without_losing_them(tmp_path: Path) -> None:
    from actors.refine import refine

    settings = config(tmp_path, EMBEDDED, similarity_on=SimilarityOn.question_answer, attempts=3, rounds=1)
    done: list[tuple[int, int]] = []
    folder = refine(rows(), settings, tmp_path / "refined", lambda *count: done.append(count))

    refined = read_refined(folder)
    assert [row["row"] for row in refined] == list(range(len(FACTS)))
    assert [(row["prompt"], row["answer"]) for row in refined] == FACTS
    accepted = [row for row in refined if row["accepted"]]
    assert accepted
    for row in accepted:
        assert missing_facts(row["answer"], row["fused"]) == []
        assert row["similarity"] is not None
        assert row["similarity"] >= settings.refine.tau
        assert row["fused"] == max(row["candidates"], key=lambda candidate: candidate["score"])["text"]
        assert row["rounds"] == 1
    for row in refined:
        assert row["accepted"] or (row["refused"] and row["fused"] == row["answer"])

    assert [file.name[:13] for file in part_files(folder)] == [f"part-{first:08d}" for first in (0, 3, 6)]
    assert pq.read_table(folder).schema.remove_metadata().equals(REFINED_SCHEMA)
    assert read_summary(folder)["accepted"] == len(accepted)
    assert done[-1] == (len(FACTS), len(FACTS))


def test_the_result_depends_neither_on_the_actors_nor_on_being_cut_off(tmp_path: Path) -> None:
    from actors.refine import refine

    settings = config(tmp_path, EMBEDDED, actors=2, similarity_on=SimilarityOn.question_answer, stop_score=1.0)
    folder = refine(rows(), settings, tmp_path / "refined")
    whole = read_refined(folder)
    assert {row["rounds"] for row in whole if row["accepted"]} == {2}

    # As after a death in the middle: one file missing, one cut off.
    first, second, third = part_files(folder)
    untouched = first.stat().st_mtime_ns
    second.unlink()
    third.write_bytes(third.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"run\.resume=true"):
        refine(rows(), settings, folder)
    settings.run.resume = True
    settings.refine.actors = 1
    assert read_refined(refine(rows(), settings, folder)) == whole
    assert first.stat().st_mtime_ns == untouched
    # What had been generated for the two files is there: it is kept apart from them.
    assert generated(folder) == 0

    # Another τ asks the models for nothing; another temperature of the fusion for fused candidates only.
    settings.refine.tau = 0.99
    strict = read_refined(refine(rows(), settings, folder))
    assert generated(folder) == 0
    assert [row["rewrite"] for row in strict][:1] == [row["rewrite"] for row in whole][:1]
    assert all(row["similarity"] >= 0.99 for row in strict if row["accepted"])
    settings.refine.tau = 0.8
    settings.refine.fuse_temperature = 0.1
    cooler = read_refined(refine(rows(), settings, folder))
    assert [row["rewrite"] for row in cooler] == [row["rewrite"] for row in whole]
    accepted = sum(row["accepted"] for row in whole)
    assert generated(folder) == sum(row["rounds"] for row in cooler) * settings.refine.candidates
    assert accepted > 0
    with pytest.raises(DataError, match="holds other rows"):
        refine(rows(4), settings, folder)


def generated(folder: Path) -> int:
    """Texts that the models were asked for by the last call of `refine`."""
    return int(sum(counts.get("generated", 0) for counts in read_summary(folder)["counts"].values()))


def test_models_by_role_share_engines_and_a_model_may_judge(tmp_path: Path) -> None:
    """The original model rewrites and judges on one engine; another one, on its own, fuses."""
    from actors.refine import refine

    settings = config(
        tmp_path,
        EMBEDDED,
        models={"second": {"path": TINY}},
        fuser="second",
        judges=["embedding", "self"],
        tau=0.0,
        candidates=1,
        rounds=1,
    )
    folder = refine(rows(4), settings, tmp_path / "refined")
    refined = read_refined(folder)
    accepted = sum(row["accepted"] for row in refined)
    assert accepted > 0
    counts = read_summary(folder)["counts"]
    assert counts["second"]["generated"] == accepted
    assert counts["self"]["generated"] > 4
    assert counts["self"]["output_tokens"] > 0
    assert counts["seconds"]["self"] > 0
    judged = [c for row in refined for c in row["candidates"] if c["scores"]]
    assert all([score["judge"] for score in c["scores"]] == ["embedding", "self"] for c in judged)
    assert any(score["score"] is not None for c in judged for score in c["scores"] if score["judge"] == "self")
    assert set(read_summary(folder)["prompts"]) == {"rewrite", "fuse", "judge"}


def test_without_refinement_rows_pass_as_they_are(tmp_path: Path) -> None:
    from actors.refine import refine

    refined = read_refined(refine(rows(), config(tmp_path, enabled=False), tmp_path / "refined"))
    assert [row["fused"] for row in refined] == [answer for _, answer in FACTS]
    assert {row["rewrite"] for row in refined} == {None}


def test_an_actor_that_cannot_start_ends_stage_1_with_its_own_words(tmp_path: Path) -> None:
    from actors.refine import refine

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="no tokenizer there"):
        refine(rows(), config(tmp_path, str(tmp_path / "model")), tmp_path / "refined")
    with pytest.raises(ConfigError, match=r"refine\.actors=99: .*need 99 CPUs"):
        refine(rows(), config(tmp_path, actors=99), tmp_path / "refined")
