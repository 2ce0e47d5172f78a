"""A model made of two others with the same parameters, a tensor at a time: of a fine-tuned one and its base.

Knows nothing about architectures, training or Ray: safetensors folders only. Torch is imported inside the functions.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from raft_ray.errors import ModelError
from raft_ray.models.weight_files import INDEX, matched_files

if TYPE_CHECKING:
    from torch import Tensor


def derive_folder(
    base: str | Path, tuned: str | Path, out: str | Path, derive: Callable[[Tensor, Tensor, str], Tensor]
) -> None:
    """Write to `out` what `derive(base tensor, tuned tensor, name)` makes; files and shards as `tuned` has them.

    Holds one shard of the result, and beside it one tensor of each model. `out` must not exist, and appears only when
    it is whole. A tied head that `tuned` stores beside its embeddings is left out. Raises as `derive` does, and
    `ModelError` for a folder without weights, other parameters, or an `out` that exists.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    base, tuned, out = Path(base), Path(tuned), Path(out)
    if out.exists():
        raise ModelError(f"{out}: exists already; remove it, or name another folder for the model made there")
    base_files, tuned_files = matched_files(base, tuned)
    shards: defaultdict[str, list[str]] = defaultdict(list)
    for name, file in tuned_files.items():
        shards[file].append(name)
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(tuned, part, ignore=shutil.ignore_patterns("*.safetensors", INDEX, "*.bin", "*.pt"))
    size = 0
    for file, names in shards.items():
        state = {}
        for name in names:
            with safe_open(base_files[name], framework="pt") as old, safe_open(file, framework="pt") as new:
                state[name] = derive(old.get_tensor(name), new.get_tensor(name), name)
        size += sum(tensor.nbytes for tensor in state.values())
        save_file(state, part / Path(file).name, metadata={"format": "pt"})
    if (tuned / INDEX).is_file():
        index = {
            "metadata": {"total_size": size},
            "weight_map": {name: Path(file).name for name, file in tuned_files.items()},
        }
        (part / INDEX).write_text(json.dumps(index, indent=2))
    part.rename(out)


def check_alike(what: str, base: Tensor, tuned: Tensor, name: str) -> None:
    """Refuse a parameter whose shapes differ, or of which one is a weight and the other is not. Raises `ModelError`."""
    alike = base.dtype == tuned.dtype or (base.is_floating_point() and tuned.is_floating_point())
    if base.shape != tuned.shape or not alike:
        raise ModelError(
            f"{what}: {name} is {tuple(tuned.shape)} {tuned.dtype} in the tuned model, "
            f"{tuple(base.shape)} {base.dtype} in the base"
        )
