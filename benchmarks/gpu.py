"""What one GPU makes of the method's own parts, without Ray, vLLM or DeepSpeed: a few minutes on one of 80 GB or more.

    python benchmarks/gpu.py [--tiny] [--tokens 4096] [--length 512] [--steps 5] [--out FOLDER]

Compares the losses of the GPU with the CPU's. Then, on a model of 3B parameters with random weights in bfloat16, takes
training steps (all weights with AdamW, and LoRA of rank 16), scores as the teacher does (alone, and with an adapter
that is switched off), and packs and checksums the weights. The share of the GPU's peak counts 6·N FLOPs per token with
all weights and 4·N with LoRA, of N parameters, which leaves out attention and the losses. `--tiny` does all of it on a
tiny shape, on the CPU if need be. Prints a table and writes `benchmark-gpu.json`.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

sys.path.insert(0, str(Path(__file__).parents[1]))

from actors.engine.weights import Checksum, PackedWeights, full_tensors
from raft_ray.config import LoraConfig
from raft_ray.distill.live_memory import training_bytes
from raft_ray.distill.losses import EmaBalancer, sft_loss, topk_kl_from_hidden
from raft_ray.distill.order import SampleId
from raft_ray.distill.step import train_step
from raft_ray.distill.student import MicroBatch, Student, make_micro_batches
from raft_ray.distill.teacher import score
from raft_ray.distill.trajectory import Sample, Trajectory
from raft_ray.models.adapters import adapted_layers, add_adapter
from raft_ray.models.prompts import EncodedRow

SHAPES = {
    "3b": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "vocab_size": 151936},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512},
}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12}
"""Dense bfloat16 FLOPs per second, by a part of the GPU's name."""
ALLOWED = {"float32": 1e-5, "bfloat16": 1e-2}
"""Largest relative difference of a loss, and of its gradient's norm."""
KEPT = 512
DTYPE = torch.bfloat16


class Trainer:
    """One process in the place of a DeepSpeed engine, with its three calls: AdamW on the weights as they are."""

    def __init__(self, student: Student) -> None:
        self.student = student
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def __call__(self, batch: MicroBatch) -> Tensor:
        losses: Tensor = self.student(batch)
        return losses

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def compare_losses(device: torch.device, vocabulary: int) -> dict[str, dict[str, float]]:
    """The largest relative difference of each loss, and of its gradient, between the CPU and the device."""
    seeded = torch.Generator().manual_seed(0)
    count, width, kept = 64, 256, min(KEPT, vocabulary)
    hidden = torch.randn(count, width, generator=seeded)
    head = torch.randn(vocabulary, width, generator=seeded) / width**0.5
    labels = torch.randint(vocabulary, (count,), generator=seeded)
    ids = torch.stack([torch.randperm(vocabulary, generator=seeded)[:kept] for _ in range(count)])
    logprobs = torch.randn(count, kept, generator=seeded).log_softmax(-1)
    weight = torch.full((count,), 1 / count)
    found: dict[str, dict[str, float]] = {}
    for dtype, allowed in ALLOWED.items():
        found[dtype] = {"allowed": allowed}
        for name in ("sft", "kl"):
            results = []
            for place in (torch.device("cpu"), device):
                state = hidden.to(place, getattr(torch, dtype)).detach().clone().requires_grad_()
                rows = head.to(place, getattr(torch, dtype))
                if name == "sft":
                    loss = sft_loss(state, rows, labels.to(place), weight.to(place))
                else:
                    loss = topk_kl_from_hidden(
                        state, rows, ids.to(place), logprobs.to(place), weight.to(place), temperature=1.5
                    )
                loss.backward()
                assert state.grad is not None
                results.append((loss.detach().cpu(), state.grad.float().cpu()))
            (ours, grad), (theirs, other) = results
            found[dtype][name] = float((ours - theirs).abs() / ours.abs())
            found[dtype][f"{name}_gradient"] = float((grad - other).norm() / grad.norm())
    return found


def make_model(shape: dict[str, int], device: torch.device, lora: LoraConfig | None) -> Any:
    """The shape with random weights, or on the meta device without any; with an adapter if asked for."""
    heads = 16 if shape["hidden_size"] > 1000 else 4
    keys: dict[str, Any] = {**shape, "num_attention_heads": heads, "num_key_value_heads": 2}
    config = Qwen2Config(**keys, tie_word_embeddings=True)
    with torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    if lora is not None:
        add_adapter(model, lora, seed=0)
    return model.to(DTYPE)


def timed(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds of one call, after two that warm up."""
    for _ in range(2):
        work()
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - start) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def make_rows(tokens: int, length: int, vocabulary: int) -> tuple[list[EncodedRow], list[Sample]]:
    """Rows of `length` tokens, half answer and half response beside a prompt of eight."""
    random, kept, half = np.random.default_rng(0), min(KEPT, vocabulary), (length - 8) // 2

    def ids(count: int) -> list[int]:
        return random.integers(3, vocabulary, count).tolist()

    rows = [EncodedRow(i, ids(8), ids(half), ids(8)) for i in range(max(1, tokens // length))]
    samples = [
        Sample(
            Trajectory(SampleId(0, i), 0, np.asarray(ids(half), dtype=np.int32), False, ""),
            random.integers(0, vocabulary, (half, kept)).astype(np.int32),
            np.log(random.dirichlet(np.ones(kept), half)).astype(np.float16),
        )
        for i in range(len(rows))
    ]
    return rows, samples


def train(
    shape: dict[str, int], device: torch.device, lora: LoraConfig | None, tokens: int, length: int, steps: int
) -> dict[str, Any]:
    """Training steps of one micro-batch: speed, and the highest memory beside the plan's."""
    rows, samples = make_rows(tokens, length, shape["vocab_size"])
    model = make_model(shape, device, lora).train()
    (batch,) = make_micro_batches(rows, samples, total=len(rows), tokens=10**9, share_prompt=True)
    batch, count = batch.to(device), batch.input_ids.numel()
    trainer = Trainer(Student(model, 1.5))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        losses = train_step(trainer, [batch], balancer=EmaBalancer(), ranks=1, keep_graph=True, reduce=list)
        assert np.isfinite(losses.loss)

    seconds = timed(step, device, steps)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = sum(parameter.numel() for parameter in model.parameters())
    held = sum(parameter.nbytes for parameter in model.parameters()) + 2 * sum(p.nbytes for p in trained)
    shapes = make_model(shape, torch.device("meta"), lora)
    passes = training_bytes(shapes, count, length=batch.input_ids.shape[1], top_k=KEPT, shared=True)
    flops = (4 if lora else 6) * total * count / seconds
    return {
        "parameters": total,
        "trained": sum(parameter.numel() for parameter in trained),
        "tokens": count,
        "tokens_per_second": count / seconds,
        "flops_per_second": flops,
        "of_peak": flops / peak if (peak := _peak(device)) else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "planned_bytes": held + passes,
    }


def _peak(device: torch.device) -> float | None:
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def teach(
    shape: dict[str, int], device: torch.device, lora: LoraConfig, tokens: int, length: int, steps: int
) -> dict[str, float]:
    """Tokens per second that a teacher scores: a model of its own, and the student's with its adapter switched off."""
    random, vocabulary = np.random.default_rng(0), shape["vocab_size"]
    count = max(1, tokens // length)
    prompts = [random.integers(3, vocabulary, 8).tolist() for _ in range(count)]
    responses = [random.integers(3, vocabulary, length - 8).astype(np.int32) for _ in range(count)]
    found = {}
    for name in ("own", "adapter_off"):
        model = make_model(shape, device, lora if name == "adapter_off" else None).eval()
        for layer in adapted_layers(model).values():
            layer.enable_adapters(False)

        def work(model: Any = model) -> None:
            score(model, prompts, responses, top_k=KEPT, tokens=tokens)

        found[name] = count * length / timed(work, device, steps)
        del model, work
        _free(device)
    return found


def pack(shape: dict[str, int], device: torch.device) -> dict[str, float]:
    """Seconds to checksum the weights where they are, and to pack them for the object store."""
    model = make_model(shape, device, None)

    def check() -> int:
        checksum = Checksum()
        for _ in checksum.over(full_tensors(model, 0)):
            pass
        return checksum.value()

    checked = timed(check, device, 3)
    start = time.perf_counter()
    packed = PackedWeights.of(0, full_tensors(model, 0))
    seconds = time.perf_counter() - start
    return {"bytes": packed.nbytes, "checksum_seconds": checked, "pack_seconds": seconds}


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    for name, default in (("tokens", 4096), ("length", 512), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --tiny runs on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, lora = SHAPES["tiny" if arguments.tiny else "3b"], LoraConfig(rank=16)
    tokens, length, steps = arguments.tokens, arguments.length, arguments.steps
    if arguments.tiny:
        tokens, length, steps = min(tokens, 256), min(length, 64), 1
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "losses": compare_losses(device, shape["vocab_size"]),
    }
    for name, adapter in (("full", None), ("lora", lora)):
        found[name] = train(shape, device, adapter, tokens, length, steps)
        _free(device)
    found["teacher"] = teach(shape, device, lora, tokens, length, steps)
    found["weights"] = pack(shape, device)
    (arguments.out / "benchmark-gpu.json").write_text(json.dumps(found, indent=1))
    table = Table("measured", "value")
    for name, value in _flat(found):
        table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else str(value))
    Console(width=100).print(table)
    wrong = [
        f"{dtype} {name}: {value:.2g}"
        for dtype, values in found["losses"].items()
        for name, value in values.items()
        if not value <= values["allowed"]
    ]
    if wrong:
        sys.exit(f"losses differ between the CPU and {found['device']}: {', '.join(wrong)}")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found


if __name__ == "__main__":
    main()
