"""Stage 1 on real Ray Data and real vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from refine_fixture import read_refined
from refine_runs import TINY_REFINE, make_config, refine, refined_folder, summary, tiny_rows

from raft_ray.config import Config, RefineModelConfig, SimilarityOn
from raft_ray.errors import ConfigError, ModelError
from raft_ray.models import EMBEDDED, TINY
from raft_ray.refine.generation import Request
from raft_ray.refine.key_facts import missing_facts
from raft_ray.refine.schema import REFINED_SCHEMA, RefinedRow, part_files

pytestmark = pytest.mark.usefixtures("ray_cluster")
FACTS = [
    ("What is the chemical symbol of silver?", "Ag"),
    ("Who discovered oxygen?", "Joseph Priestley"),
    ("In which country was rubidium discovered?", "Germany"),
    ("Which family of elements does neon belong to?", "Noble gases"),
    ("What is the chemical symbol of iron?", "Fe"),
    ("In which country was tantalum discovered?", "Sweden"),
    ("What is the capital of France?", "Paris"),
]


@pytest.fixture(scope="module")
def plain(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[RefinedRow]]:
    """Eleven rows, one engine, one worker."""
    config = make_config(tmp_path_factory.mktemp("plain") / "run", tiny_rows(11), workers=1, **TINY_REFINE)
    return config, refine(config)


def test_the_embedded_model_refines_facts_without_losing_them(tmp_path: Path) -> None:
    config = make_config(
        tmp_path / "run",
        FACTS,
        EMBEDDED,
        batch=3,
        max_new_tokens=32,
        similarity_on=SimilarityOn.question_answer,
        attempts=3,
        rounds=1,
    )
    done: list[tuple[int, int]] = []
    refined = refine(config, lambda *count: done.append(count))

    assert [row["row"] for row in refined] == list(range(len(FACTS)))
    assert [(row["prompt"], row["answer"]) for row in refined] == FACTS
    accepted = [row for row in refined if row["accepted"]]
    assert accepted
    for row in accepted:
        assert missing_facts(row["answer"], row["fused"]) == []
        assert row["similarity"] is not None
        assert row["similarity"] >= config.refine.tau
        assert row["fused"] == max(row["candidates"], key=lambda candidate: candidate["score"])["text"]
        assert row["rounds"] == 1
    for row in refined:
        assert row["accepted"] or (row["refused"] and row["fused"] == row["answer"])

    folder = refined_folder(config)
    assert [file.stem for file in part_files(folder)] == [f"part-{first:08d}" for first in (0, 3, 6)]
    assert pq.read_table(folder).schema.remove_metadata().equals(REFINED_SCHEMA)
    assert (done[0], done[-1]) == ((0, len(FACTS)), (len(FACTS), len(FACTS)))
    found = summary(config)
    assert found["accepted"] == len(accepted)
    assert found["stages"]["rewrite"]["rows"] == found["stages"]["fuse"]["rows"] == len(FACTS)
    assert found["models"]["self"]["asks"] == found["cache"]["misses"]
    assert found["models"]["self"]["input_tokens"] > 10 * len(FACTS)
    assert {name: len(text) for name, text in found["prompts"].items()} == {"rewrite": 64, "fuse": 64}


def test_the_rows_do_not_depend_on_the_number_of_engines_and_workers(
    plain: tuple[Config, list[RefinedRow]], tmp_path: Path
) -> None:
    config, rows = plain
    assert any(row["candidates"] for row in rows)
    assert any(row["refused"] for row in rows)
    many = make_config(tmp_path / "run", tiny_rows(11), **(TINY_REFINE | {"actors": 2, "workers": 2, "max_workers": 3}))
    assert refine(many) == rows
    assert summary(many)["sources"] == summary(config)["sources"]


def test_another_tau_rewrites_nothing_anew_and_ends_as_if_it_had_been_the_first(
    plain: tuple[Config, list[RefinedRow]], tmp_path: Path
) -> None:
    def config(tau: float, run: str) -> Config:
        return make_config(tmp_path / run, tiny_rows(11), **(TINY_REFINE | {"tau": tau, "attempts": 1}))

    low = config(0.0, "one")
    before = refine(low)
    with pytest.raises(ConfigError, match=r"run\.resume=true"):
        refine(low)
    # Between two of the cosines that were accepted.
    tau = sorted(row["similarity"] or 0.0 for row in before if row["accepted"])[1]
    high = config(tau, "one")
    high.run.resume = True
    after = refine(high)
    assert [row["rewrite"] for row in after] == [row["rewrite"] for row in before]
    assert 0 < sum(row["accepted"] for row in after) < sum(row["accepted"] for row in before)
    roles = summary(high)["roles"]
    assert roles["rewriter self"]["asks"] == len({json.dumps(row["messages"]) + str(row["row"] // 3) for row in after})
    assert refine(config(tau, "two")) == after
    # Finished parts are not touched again.
    times = [file.stat().st_mtime_ns for file in part_files(refined_folder(high))]
    assert refine(high) == after
    assert [file.stat().st_mtime_ns for file in part_files(refined_folder(high))] == times
    assert summary(high)["cache"] == {"hits": 0, "misses": 0}


def test_rows_added_to_the_file_are_the_only_ones_generated(tmp_path: Path) -> None:
    first = make_config(tmp_path / "run", tiny_rows(7), **(TINY_REFINE | {"fuser": "none", "attempts": 1}))
    before = refine(first)
    more = make_config(tmp_path / "run", tiny_rows(9), **(TINY_REFINE | {"fuser": "none", "attempts": 1}))
    more.run.resume = True
    after = refine(more)
    assert after[:6] == before[:6]
    assert [row["row"] for row in after] == list(range(9))
    assert summary(more)["cache"] == {"hits": 1, "misses": 2}


def test_roles_may_be_played_by_models_of_their_own(tmp_path: Path) -> None:
    import ray

    config = make_config(tmp_path / "run", tiny_rows(3), **(TINY_REFINE | {"fuser": "other", "rounds": 1}))
    config.refine.models = {"other": RefineModelConfig(path=TINY, context=256)}
    engines = []

    def look(rows: int, _: int) -> None:
        if rows:
            engines.extend(ray.get_actor(f"refine-{name}-0") for name in ("self", "other"))

    assert any(row["rounds"] for row in refine(config, look))
    assert len(engines) == 2
    found = summary(config)
    assert set(found["models"]) == {"self", "other"}
    assert set(found["roles"]) == {"rewriter self", "fuser other"}


def test_an_engine_follows_a_schema(tmp_path: Path) -> None:
    """Guided decoding: even a random model answers in JSON."""
    import ray

    from actors.refine.engines import RefineEngine, plan_pool

    config = make_config(tmp_path / "run", [])
    engine = ray.remote(RefineEngine).options(num_cpus=1).remote(plan_pool(config, "self"), "e", config.run.dir)
    schema = {
        "type": "object",
        "properties": {"good": {"type": "boolean"}, "score": {"enum": [0, 0.5, 1]}},
        "required": ["good", "score"],
        "additionalProperties": False,
    }
    asks = [Request([{"role": "user", "content": text}]) for text in ("a", "b")]
    options = {"temperature": 1.0, "max_new_tokens": 60, "seed": 0}
    free, bound, again = ray.get(
        [engine.generate.remote(asks, schema=each, **options) for each in (None, schema, None)]
    )
    for one in bound:
        assert set(json.loads(one.text)) == {"good", "score"}
    assert free == again
    ray.kill(engine)


def test_without_refinement_rows_pass_as_they_are(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", FACTS, enabled=False, batch=2)
    refined = refine(config)
    assert [row["fused"] for row in refined] == [answer for _, answer in FACTS]
    assert {row["rewrite"] for row in refined} == {None}
    assert len(part_files(refined_folder(config))) == 4


def test_what_cannot_start_ends_stage_1_with_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="no tokenizer there"):
        refine(make_config(tmp_path / "run", FACTS, str(tmp_path / "model")))
    with pytest.raises(ConfigError, match=r"refine\.actors=99"):
        refine(make_config(tmp_path / "run", FACTS, actors=99))


def test_the_rows_that_were_checked_are_refined_whatever_happens_to_their_file(tmp_path: Path) -> None:
    from actors.refine.flow import refine as refine_rows
    from raft_ray.data import read_table

    config = make_config(tmp_path / "run", FACTS, enabled=False, batch=2)
    found = read_table(config.data.train, config.data, split="train")
    Path(config.data.train).write_text("{}\n" * 9)
    refined = read_refined(refine_rows(found, config, refined_folder(config)))
    assert [(row["prompt"], row["fused"]) for row in refined] == FACTS
