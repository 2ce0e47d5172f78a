"""One vLLM engine in the calling process: token ids in, token ids out.

Used by rollout actors, stage 1 and the evaluation alike. Knows nothing about templates, text, rows or Ray,
except that its weights can be replaced while it lives (see `actors.weight_sync`).

Sampling is deterministic: the same engine, weights, list of prompts and seed give the same tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raft_ray.config import ModelConfig, RolloutConfig

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams, TokensPrompt


@dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt."""

    token_ids: list[int]
    """The sampled ids verbatim, the end-of-turn token included if it was sampled."""
    truncated: bool
    """The token limit ended it, not the model."""


class Engine:
    """A vLLM `LLM` that lives in this process where that is possible (CPU, or a single GPU).

    Args:
        folder: the model's, or its hub name.
        model: its dtype, and what loading it may do; `path` and `context` are not looked at.
        resources: section `rollout`, of which it takes threads, GPUs and memory.
        context: longest prompt + response in tokens.
        weight_sync: name of a weight-transfer back end, if the weights will be replaced.
    """

    def __init__(
        self,
        folder: str,
        model: ModelConfig,
        resources: RolloutConfig,
        *,
        context: int,
        weight_sync: str | None = None,
    ) -> None:
        alone = resources.tensor_parallel == 1
        # vLLM reads these when it is imported; in one process an engine starts in 3 s instead of 27 s.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0" if alone else "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        import math

        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, math.ceil(resources.kv_cache_gib)))
        if resources.threads is not None:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            os.environ["OMP_NUM_THREADS"] = str(resources.threads)
        import torch
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        self._stale_prefixes = False
        on_gpu = torch.cuda.is_available()
        self.llm = LLM(
            model=folder,
            dtype=model.dtype.value,
            max_model_len=context,
            tensor_parallel_size=resources.tensor_parallel,
            distributed_executor_backend="uni" if alone else "ray",
            gpu_memory_utilization=resources.gpu_memory_utilization,
            enforce_eager=not on_gpu,
            trust_remote_code=model.trust_remote_code,
            load_format="auto" if model.allow_pickle else "safetensors",
            generation_config="vllm",
            disable_log_stats=True,
            # Between the parts of a JSON answer a small model writes blank lines until its limit cuts it off.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            weight_transfer_config=WeightTransferConfig(backend=weight_sync) if weight_sync else None,
            # Also makes the back end known in worker processes of a tensor-parallel engine.
            worker_extension_cls="actors.weight_sync_engine.WorkerExtension" if weight_sync else "",
        )

    def generate(
        self,
        prompts: list[list[int]],
        *,
        max_new_tokens: int | list[int],
        temperature: float,
        top_p: float = 1.0,
        seed: int = 0,
        schema: dict[str, Any] | None = None,
        between: Callable[[list[int]], None] | None = None,
    ) -> list[Completion]:
        """One completion for each prompt (a list of token ids), in the prompts' order.

        `max_new_tokens` is one limit for all, or a limit for each prompt. `temperature=0` is greedy.
        `seed` seeds the whole call, so a prompt's tokens depend on the list it is in.
        `schema` is a JSON schema that every completion follows, unless it is cut off.
        `between` is called after every forward pass with the number of tokens that each prompt has got so far; it may
        replace the weights inside `paused`.
        """
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import StructuredOutputsParams

        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        params = [
            SamplingParams(
                max_tokens=limit,
                temperature=temperature,
                top_p=top_p,
                detokenize=False,
                skip_special_tokens=False,
                structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
            )
            for limit in limits
        ]
        # Seeding the call, not each request: a per-request generator crashes the CPU engine under chunked prefill.
        # In every worker process: with tensor parallelism none of them is this one.
        self.llm.collective_rpc(seed_worker, args=(seed,))
        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        if between is None:
            outputs = self.llm.generate(inputs, params, use_tqdm=False)
        else:
            outputs = self._step_by_step(inputs, params, between)
        if self._stale_prefixes:
            self._forget_prefixes()
        return [
            Completion(list(output.outputs[0].token_ids), output.outputs[0].finish_reason == "length")
            for output in outputs
        ]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For the block vLLM computes nothing and keeps what it is writing; then it goes on. From `between` only."""
        self.llm.sleep(level=0, mode="keep")
        try:
            yield
        finally:
            self.llm.wake_up(tags=["scheduling"])

    def _step_by_step(
        self, prompts: list[TokensPrompt], params: list[SamplingParams], between: Callable[[list[int]], None]
    ) -> list[RequestOutput]:
        """What `LLM.generate` does, with `between` after every step."""
        from vllm import RequestOutput
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        latest: dict[str, RequestOutput] = {}
        for number, (prompt, wanted) in enumerate(zip(prompts, params, strict=True)):
            wanted.output_kind = RequestOutputKind.CUMULATIVE
            engine.add_request(str(number), prompt, wanted)
        while engine.has_unfinished_requests():
            for output in engine.step():
                assert isinstance(output, RequestOutput)
                latest[output.request_id] = output
            written = (latest.get(str(number)) for number in range(len(prompts)))
            between([len(output.outputs[0].token_ids) if output else 0 for output in written])
        return [latest[str(number)] for number in range(len(prompts))]

    def load_weights(self, folder: str) -> None:
        """Go on with the weights of `folder`, a model of the same architecture, without starting anew."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self.weights_changed()

    def weights_changed(self) -> None:
        """Forget what was derived from the old weights; call after every way of replacing them."""
        self.llm.collective_rpc(repack_heads)
        self._forget_prefixes()

    def _forget_prefixes(self) -> None:
        """The prefix cache holds keys and values of the old weights. While some are in use, it is not emptied."""
        self._stale_prefixes = not self.llm.reset_prefix_cache()


def seed_worker(worker: Any, seed: int) -> None:
    """Seed the sampling of a vLLM worker's process; all workers of an engine draw the same."""
    import torch

    del worker
    torch.manual_seed(seed)


def repack_heads(worker: Any) -> None:
    """Pack a vLLM worker's output head for the CPU anew; elsewhere nothing is packed and nothing happens.

    vLLM's reload packs the layers that it loads. A head tied to the embeddings is not loaded by itself, so it would
    go on computing logits from the packed copy of the old weights.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in worker.model_runner.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
