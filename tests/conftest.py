"""What every test relies on: no hub is asked for anything, and the folder it works in is its own if it wants one.

The tests that use Ray share one local cluster in each test process (`pytest -n 2` has two of them, side by side) and
one config that they vary. Tests that need a cluster of their own end the shared one; the next module starts it again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

from raft_ray.config import Config, settings

# Before any test imports transformers or datasets, which read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell that starts us in the background lets us, and all that we start, ignore Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Several runs share the cores: threads that spin while they wait would take them from each other.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Ray Train gives its workers a minute to start, which on a busy machine two of them may need for their imports.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")

# Time is never asserted, and machines are busy.
hypothesis.settings.register_profile("timeless", deadline=None)
hypothesis.settings.load_profile("timeless")

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


def pytest_configure(config: pytest.Config) -> None:
    """Where there is no token for Ray yet, make it before the test processes start, which would each make one."""
    if not hasattr(config, "workerinput") and not (Path.home() / ".ray" / "auth_token").exists():
        command = [str(Path(sys.executable).parent / "ray"), "get-auth-token", "--generate"]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of `random:tiny`: two layers, 512 tokens of vocabulary and of context."""
    from raft_ray import models

    return Path(models.resolve(models.TINY))


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of all processes of this test session; `worker_id` is pytest-xdist's."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@pytest.fixture(scope="session")
def ray_lock(common_folder: Path) -> Iterator[FileLock]:
    """Held while a cluster starts: of all test processes only one at a time looks for ports."""
    yield FileLock(common_folder / "ray.lock")
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="session")
def forks() -> Iterator[None]:
    """Workers of every Ray that this process starts are forks of one that has imported everything."""
    from forked.server import forked_workers

    with forked_workers(Path(f"/tmp/raft-forks-{os.getpid()}.sock")):
        yield


@pytest.fixture(scope="module")
def ray_cluster(forks: None, ray_lock: FileLock) -> None:
    """A local Ray with token authentication and CPUs for every role of the tests, which the test process keeps."""
    from actors.runtime import cluster

    config = Config()
    config.run.local_cpus = 10
    with ray_lock:
        cluster.start(config)


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
                "rollout.kv_cache_gib=0.125",
                # More threads gain nothing on two layers.
                "rollout.threads=1",
                "teacher.threads=1",
                "learner.threads=1",
                *overrides,
            ],
        )

    return make


@pytest.fixture(scope="module")
def undisturbed_run(request: pytest.FixtureRequest, make_config: Callable[..., Config], common_folder: Path) -> Path:
    """The run folder of four steps with two checkpoints, which a test session trains once; not to be changed."""
    folder = common_folder / "undisturbed"
    with FileLock(common_folder / "undisturbed.lock"):
        if not (folder / "model").exists():
            from actors.run import train

            request.getfixturevalue("ray_cluster")
            train(make_config(folder, "learner.max_steps=4", "learner.checkpoint_every=2"))
    return folder


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """For a listener. A socket's path must be short."""
    path = Path(f"/tmp/raft-listener-{os.getpid()}.sock")
    yield path
    path.unlink(missing_ok=True)
