"""What a run computes in, and which day it is there, where its config leaves that to the machine."""

from __future__ import annotations

from datetime import date

from raft_ray.config import Config, Dtype


def settle(config: Config) -> None:
    """Put the machine's precision in the place of `model.dtype=auto`: bfloat16 on GPUs, else what `of_cpu` says of this
    CPU. And today in the place of no `model.date`, so that all that is encoded for a run names the same day."""
    config.model.date = config.model.date or date.today().isoformat()
    if config.model.dtype is not Dtype.auto:
        return
    roles = (config.rollout, config.teacher, config.learner)
    config.model.dtype = Dtype.bfloat16 if any(role.num_gpus for role in roles) else of_cpu()


def of_cpu() -> Dtype:
    """bfloat16 where this machine's CPU computes in it, else float32. A CPU without AVX-512 (most laptops, AMD before
    Zen 4) converts every number to and fro, several times slower than computing in float32 (`docs/benchmarks.md`)."""
    import torch

    has = torch.cpu.get_capabilities()
    # Of x86 with AVX-512 alone, oneDNN widens whole blocks at a time; ARM's flag is called bf16.
    return Dtype.bfloat16 if any(has.get(flag) for flag in ("avx512_bw", "amx_bf16", "bf16")) else Dtype.float32
