"""The folder of a trained model: whole or as it was, with all that others read of it. No Ray started."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.distill import export
from actors.engine.weight_sync import WeightVersion
from actors.engine.weights import PackedWeights, full_tensors
from raft_ray.config import Dtype, ModelConfig
from raft_ray.errors import RaftError
from raft_ray.models import load_model
from raft_ray.runs.trained import Trained, read_trained

MODEL = ModelConfig(dtype=Dtype.float32)
OF = Trained(3, "rows", {"learner.lr": "5f2c"})


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes in the block."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def original(tmp_path: Path, tiny_model: Path) -> Path:
    """A model whose generation config transformers reads, but would not write."""
    shutil.copytree(tiny_model, tmp_path / "original")
    settings = {"eos_token_id": 2, "do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (tmp_path / "original" / "generation_config.json").write_text(json.dumps(settings))
    return tmp_path / "original"


def exported(
    original: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, only: str = "", adapter: Any = None
) -> Path:
    """The folder of the model, or of its tensors whose names have `only` in them."""
    tensors = full_tensors(load_model(str(original), MODEL), 0)
    weights = PackedWeights.of(3, [(name, tensor) for name, tensor in tensors if only in name])
    monkeypatch.setattr(export.ray, "get", lambda _, timeout: weights)
    return Path(export.export_model._function(MODEL, str(original), WeightVersion(3), str(folder), OF, adapter))


def test_the_folder_says_what_it_is_and_has_the_originals_generation_config(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported(original, tmp_path / "model", monkeypatch)

    assert read_trained(folder) == OF
    name = "generation_config.json"
    assert (folder / name).read_bytes() == (original / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"], config["rope_theta"]) == ("float32", "float32", 10000.0)
    again = load_model(str(folder), MODEL).state_dict()
    assert all(torch.equal(again[key], value) for key, value in load_model(str(original), MODEL).state_dict().items())
    (original / name).unlink()
    assert not (exported(original, folder, monkeypatch) / name).exists()


@pytest.mark.parametrize(("only", "size"), [("", 300_000), ("norm", 15_000), ("norm", 600)])
def test_a_full_disk_leaves_the_model_of_before_and_is_named(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: str, size: int
) -> None:
    folder = exported(original, tmp_path / "model", monkeypatch)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with disk_of(size), pytest.raises(RaftError, match=r"model: cannot be written \(.*too large.*\); free space there"):
        exported(original, folder, monkeypatch, only)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_adapter_lies_beside_its_model_and_moves_with_it(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    exported(original, run / "best" / "step-3", monkeypatch, adapter={"adapter_config.json": b"3"})
    exported(original, run / "model", monkeypatch, adapter={"adapter_config.json": b"2"})
    assert {path.name for path in run.iterdir()} == {"best", "model", "adapter"}
    assert (run / "adapter" / "adapter_config.json").read_bytes() == b"2"

    export.move_model(run / "best" / "step-3", run / "model")
    assert (run / "adapter" / "adapter_config.json").read_bytes() == b"3"
    assert not list((run / "best").iterdir())
    exported(original, run / "model", monkeypatch)
    assert not (run / "adapter").exists()
