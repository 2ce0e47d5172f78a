"""Benchmarks run: the simulated pipeline, whose waiting actors answer as the real ones do, and other trainers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from raft_ray import models
from raft_ray.compare.given import check_given
from raft_ray.config import settings

ROOT = Path(__file__).parents[2]


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}


def test_the_simulation_of_many_rollout_actors_runs(tmp_path: Path) -> None:
    arguments = ["scaling", "--rollouts", "3", "--row-seconds", "0.01", "--steps", "4", "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "simulate.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=_environment())
    assert done.returncode == 0, done.stderr
    (point,) = json.loads((tmp_path / "benchmark-scaling.json").read_text())["points"]
    assert point["rollouts"] == 3
    assert point["rows_per_second"] > 0
    assert point["of_ideal"] > 0


def test_the_benchmark_of_a_gpu_runs_on_a_tiny_shape_without_ray(tmp_path: Path) -> None:
    code = "import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    code += "assert not {'ray', 'vllm', 'deepspeed'} & set(sys.modules)"
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=_environment())
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "benchmark-gpu.json").read_text())
    assert found["losses"]["float32"]["kl"] <= 1e-5
    assert found["full"]["trained"] == found["full"]["parameters"] > found["lora"]["trained"] > 0
    assert found["lora"]["planned_bytes"] < found["full"]["planned_bytes"]
    speeds = [found["full"]["tokens_per_second"], found["lora"]["tokens_per_second"], *found["teacher"].values()]
    assert min(speeds) > 0
    assert found["weights"]["bytes"] == 2 * found["full"]["parameters"]


def test_trls_own_trainer_trains_on_the_same_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": "How many legs has a spider?", "answer": "Eight."},
        {"messages": [{"role": "user", "content": "And a cat?"}, {"role": "assistant", "content": "Four."}]},
    ]
    file, out = tmp_path / "rows.jsonl", tmp_path / "model"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = str(ROOT / "benchmarks" / "peers" / "trl_sdft.py")
    arguments = [str(file), "random:tiny", str(out), "--steps", "2", "--batch", "2", "--max-new-tokens", "4"]
    arguments += ["--template", str(ROOT / "configs" / "prompts" / "teacher.txt"), "--lr", "1e-2"]
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=600, env=_environment()
    )
    assert done.returncode == 0, done.stderr
    # What came of it is compared with the model that it came of.
    config = settings.load("raft", [f"data.train={file}", "model.path=random:tiny"])
    config.compare.models = {"trl": [str(out)]}
    check_given(config, models.resolve("random:tiny"))
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (models.resolve("random:tiny"), out))
    assert any((before[name].bfloat16() != after[name]).any() for name in before)
