"""The memory of this machine and of its GPUs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes."""

    memory: int
    gpus: list[int] = field(default_factory=list)
    """The whole memory of each GPU."""


def this_machine() -> Machine:
    """What this machine has; its GPUs by nvidia-smi."""
    import psutil

    tool = shutil.which("nvidia-smi")
    asked = [str(tool), "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listing = subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout if tool else ""
    mebibytes = [int(line) for line in listing.split() if line.isdigit()]
    return Machine(psutil.virtual_memory().total, [size * 2**20 for size in mebibytes])
