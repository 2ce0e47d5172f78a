"""One Ray for all integration tests of a module, and the config that they vary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raft_ray import settings
from raft_ray.config import Config

ROWS = [
    ("What is the capital of France?", "Paris"),
    ("Who wrote Faust?", "Johann Wolfgang von Goethe"),
    ("How many legs has a spider?", "Eight"),
    ("Which gas do plants take in?", "Carbon dioxide"),
    ("What is frozen water called?", "Ice"),
    ("Which planet is the largest?", "Jupiter"),
    ("What do bees make?", "Honey"),
    ("Which metal is liquid at room temperature?", "Mercury"),
    ("How many days has a leap year?", "366"),
    ("What colour is an emerald?", "Green"),
]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray with token authentication and CPUs for every role of the tests."""
    from actors import cluster

    config = Config()
    config.run.local_cpus = 10
    cluster.start(config)
    yield
    cluster.stop()


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import json

    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps({"prompt": q, "answer": a}) + "\n" for q, a in ROWS))
    return path


@pytest.fixture(scope="module")
def make_config(train_file: Path) -> Callable[..., Config]:
    """`make_config(run_dir, "key=value", ...)`: three steps of four rows on the tiny model, trained on gold answers."""

    def make(run_dir: Path, *overrides: str) -> Config:
        return settings.load(
            "smoke",
            [
                f"run.dir={run_dir}",
                f"data.train={train_file}",
                "data.test=null",
                "data.limit=null",
                "refine.enabled=false",
                "distill.target=gold",
                "run.baselines=[]",
                "learner.epochs=2",
                "learner.max_steps=5",
                "eval.enabled=false",
                *overrides,
            ],
        )

    return make
