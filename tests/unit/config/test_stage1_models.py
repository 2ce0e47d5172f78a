"""Models of stage 1 (`refine.models`) as keys of a config."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from own_config import refused

from raft_ray.checks import check
from raft_ray.config import RefineModelConfig, settings
from raft_ray.config.explain import explained
from raft_ray.config.keys import hints


def test_models_of_stage_1_are_named_in_files_and_overrides(workspace: Path) -> None:
    Path("mine.yaml").write_text(
        "extends: raft\nrefine:\n  fuser: big\n  models:\n    big:\n      base_url: http://localhost:8000/v1\n"
        "      model: qwen\n"
    )
    config = settings.load(
        "mine.yaml",
        ["refine.models.big.concurrency=4", "refine.models.small={path: random:tiny, actors: 2}", "data.train=x.jsonl"],
    )
    assert config.refine.models["big"] == RefineModelConfig(
        base_url="http://localhost:8000/v1", model="qwen", concurrency=4
    )
    assert config.refine.models["small"] == RefineModelConfig(path="random:tiny", actors=2)
    check(config)
    for text in (settings.to_yaml(config), explained(config)):
        Path("again.yaml").write_text(text)
        assert settings.load("again.yaml") == config
    assert "# NAME.api_key_env: The environment variable that holds the endpoint's key" in explained(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("refine.models.big.bse_url=x", "unknown key refine.models.big.bse_url; did you mean base_url?"),
        ("refine.models.big.zzz=x", "unknown key refine.models.big.zzz; there are path, actors"),
        ("refine.models.big.actors=many", "refine.models.big.actors=many: takes a whole number"),
        ("refine.models.big.path.x=1", "unknown key refine.models.big.path.x"),
        ("refine.models.big=qwen", "refine.models.big=qwen: takes keys, such as {path: ...}"),
        ("refine.models=qwen", "refine.models=qwen: takes a mapping from names to sections"),
        ("refine.models.4b.path=x", "refine.models.4b: a name has letters"),
        ("refine.models.big={path: x, retries: -1}", "refine.models.big.retries=-1: must be at least 0"),
        ("refine.models.big={path: x, actors: 0}", "refine.models.big.actors=0: must be at least 1"),
        ("refine.max_workers=1", "refine.max_workers=1: below refine.workers=2"),
    ],
)
def test_a_model_of_stage_1_that_is_amiss_is_told_by_its_key(override: str, message: str) -> None:
    assert message in refused(override)


def test_every_number_of_a_stage_1_model_has_a_range() -> None:
    numbers = [name for name, kind in hints(RefineModelConfig).items() if re.match(r".*\b(int|float)\b", str(kind))]
    assert len(numbers) == 10
    for name in numbers:
        assert f"refine.models.big.{name}=-1" in refused(f"refine.models.big={{path: x, {name}: -1}}")
