"""One vLLM engine in the calling process: token ids in, token ids out.

Used by rollout actors, stage 1 and the evaluation alike. Sampling is deterministic: the same engine, weights, list of
prompts and seed give the same tokens. Its weights can be replaced while it lives (`actors.engine.weight_sync`).
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from raft_ray import models
from raft_ray.config import LoraConfig, ModelConfig, RolloutConfig, SyncBackend
from raft_ray.errors import ModelError, RaftError, first_line
from raft_ray.models import rope

if TYPE_CHECKING:
    import ray
    from vllm import RequestOutput, SamplingParams, TokensPrompt


ADAPTER = ("learner", 1)
"""vLLM's name and number of the one adapter."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt."""

    token_ids: list[int]
    """The sampled ids verbatim, the end-of-turn token included if it was sampled."""
    truncated: bool
    """The token limit ended it, not the model."""


class FairLock:
    """A lock for threads, given in the order in which it was asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = 0
        self._served = 0

    def __enter__(self) -> None:
        with self._changed:
            place = self._asked
            self._asked += 1
            self._changed.wait_for(lambda: self._served == place)

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._served += 1
            self._changed.notify_all()

    def give_way(self) -> None:
        """Called by the holder: whoever waits has the lock first, then the caller again."""
        self.__exit__()
        self.__enter__()


class Engine:
    """A vLLM `LLM` that lives in this process where that is possible (CPU, or a single GPU).

    Threads take turns: one may replace the weights inside `paused` while another generates. It is no `AsyncLLM`, whose
    requests reach another process at times that vary: which of them share a forward pass decides what a call's seed
    draws for each, so the same seed would not be the same tokens.

    Args:
        folder: the model's, or another of its names (`raft_ray.models.sources`).
        resources: section `rollout`, of which it takes threads, GPUs and memory.
        context: longest prompt + response in tokens.
        own_seeds: prompts may have seeds of their own. On the CPU vLLM then must not read a prompt in parts: its
            generators there cannot go back, which it asks of those of prompts that are not read yet.
        weight_sync: how the weights will be replaced before the first use, if they will. The engine then starts with
            random ones: what an update does not bring cannot pass for what it should bring.
        adapter: of what is swapped by `swap_adapter`, before the first use too; none serves whole weights.
    """

    def __init__(
        self,
        folder: str,
        model: ModelConfig,
        resources: RolloutConfig,
        *,
        context: int,
        own_seeds: bool = False,
        weight_sync: SyncBackend | None = None,
        adapter: LoraConfig | None = None,
    ) -> None:
        alone = resources.tensor_parallel == 1
        # vLLM reads these when it is imported; in one process an engine starts in 3 s instead of 27 s.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0" if alone else "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if resources.threads is not None:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            os.environ["OMP_NUM_THREADS"] = str(resources.threads)
        import torch

        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            # vLLM's sampler has functions of microseconds that would first be compiled, for 2 to 10 s.
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        # vLLM collects garbage five times while it starts; what was imported is none.
        gc.freeze()
        folder = models.base_folder(folder) if weight_sync else models.resolve(folder, model)
        self._folder = folder
        self._turns = FairLock()
        self._stale_prefixes = False
        self._stop_ids = models.load_chat(folder, model).stop_ids
        self._adapter = adapter
        layers = models.swapped_layers(folder, model, adapter, on_gpu=on_gpu) if adapter else []
        # Names the adapter that the workers have: they find nothing at this path, and need not look.
        self._lora_request = LoRARequest(*ADAPTER, "swapped") if adapter else None
        try:
            self.llm = LLM(
                model=folder,
                dtype=model.dtype.value,
                max_model_len=context,
                tensor_parallel_size=resources.tensor_parallel,
                distributed_executor_backend="uni" if alone else "ray",
                gpu_memory_utilization=resources.gpu_memory_utilization,
                kv_cache_memory_bytes=None if on_gpu else round(resources.kv_cache_gib * 1024**3),
                enforce_eager=not on_gpu,
                enable_chunked_prefill=False if own_seeds and not on_gpu else None,
                trust_remote_code=model.trust_remote_code,
                load_format="dummy" if weight_sync else "auto" if model.allow_pickle else "safetensors",
                hf_overrides=partial(rope.freeze, context=model.context),
                generation_config="vllm",
                disable_log_stats=True,
                # Between the parts of a JSON answer a small model writes blank lines until its limit cuts it off.
                structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                weight_transfer_config={"backend": f"raft_{weight_sync.value}"} if weight_sync else None,
                # Makes the back end known to vLLM, also in the worker processes of a tensor-parallel engine.
                worker_extension_cls="actors.engine.weight_engines.WorkerExtension" if weight_sync else "",
                **(_adapter_arguments(adapter, layers) if adapter else {}),
            )
        except ValueError as error:
            if adapter and "LoRA" in str(error):
                raise RaftError(f"sync.adapter=hot: {first_line(error)}; set sync.adapter=merged") from error
            if "KV cache" not in str(error):
                raise
            value = resources.gpu_memory_utilization if on_gpu else resources.kv_cache_gib
            key = f"rollout.{'gpu_memory_utilization' if on_gpu else 'kv_cache_gib'}={value:g}"
            raise RaftError(f"{key}: too little for {context} tokens; raise it, or lower model.context") from error

    def generate(
        self,
        prompts: list[list[int]],
        *,
        max_new_tokens: int | list[int],
        temperature: float,
        top_p: float = 1.0,
        seed: int = 0,
        seeds: list[int] | None = None,
        schema: dict[str, Any] | None = None,
        stop_ids: list[int] | None = None,
        before_step: Callable[[list[int]], None] | None = None,
    ) -> list[Completion]:
        """One completion for each prompt (a list of token ids), in the prompts' order.

        Args:
            max_new_tokens: one limit for all, or a limit for each prompt.
            temperature: 0 is greedy.
            seed: of the whole call, so a prompt's tokens depend on the list it is in.
            seeds: of each prompt, so that its tokens depend on no other; only of an engine with `own_seeds`.
            schema: a JSON schema that every completion follows, unless it is cut off.
            stop_ids: tokens that end a completion; none takes those that end an assistant's turn.
            before_step: called before every forward pass with the number of tokens that each prompt has got so far.
                With it another thread's `paused` begins between two passes, without it after the call.
        """
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import StructuredOutputsParams

        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        own_seeds: Sequence[int | None] = seeds or [None] * len(prompts)
        params = [
            SamplingParams(
                max_tokens=limit,
                temperature=temperature,
                top_p=top_p,
                detokenize=False,
                skip_special_tokens=False,
                stop_token_ids=stop_ids or self._stop_ids,
                structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
                seed=own,
            )
            for limit, own in zip(limits, own_seeds, strict=True)
        ]
        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        with self._turns:
            # In every worker process: with tensor parallelism none of them is this one.
            self.llm.collective_rpc(seed_worker, args=(seed,))
            if before_step is None:
                outputs = self.llm.generate(inputs, params, use_tqdm=False, lora_request=self._lora_request)
            else:
                outputs = self._generate_in_steps(inputs, params, before_step)
            if self._stale_prefixes:
                self._stale_prefixes = not self.llm.reset_prefix_cache()
        return [
            Completion(list(output.outputs[0].token_ids), output.outputs[0].finish_reason == "length")
            for output in outputs
        ]

    def _generate_in_steps(
        self, prompts: list[TokensPrompt], params: list[SamplingParams], before_step: Callable[[list[int]], None]
    ) -> list[RequestOutput]:
        """What `LLM.generate` does, with a chance for other threads between two steps."""
        from vllm import RequestOutput
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        for number, prompt in enumerate(prompts):
            params[number].output_kind = RequestOutputKind.CUMULATIVE
            engine.add_request(str(number), prompt, params[number], lora_request=self._lora_request)
        latest: dict[str, RequestOutput] = {}
        written = [0] * len(prompts)
        while engine.has_unfinished_requests():
            before_step(list(written))
            for output in engine.step():
                assert isinstance(output, RequestOutput)
                latest[output.request_id] = output
                written[int(output.request_id)] = len(output.outputs[0].token_ids)
            self._turns.give_way()
        return [latest[str(number)] for number in range(len(prompts))]

    def logprobs(self, prompt: list[int], response: list[int]) -> list[float]:
        """The log-probability of each token of `response` after the ids before it, at temperature 1, in nats."""
        from vllm import SamplingParams, TokensPrompt

        ids = [*prompt, *response]
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        with self._turns:
            (output,) = self.llm.generate(
                [TokensPrompt(prompt_token_ids=ids)], params, use_tqdm=False, lora_request=self._lora_request
            )
        # None stands for the first token alone.
        found: Any = output.prompt_logprobs
        return [found[at][ids[at]].logprob for at in range(len(prompt), len(ids))]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """During the block vLLM computes nothing, and keeps what it is writing with its keys and values."""
        with self._turns:
            self.llm.sleep(level=0, mode="keep")
            try:
                yield
            finally:
                self.llm.wake_up(tags=["scheduling"])

    def forget_prefixes(self) -> None:
        """The next call reads every prompt as a new engine would."""
        with self._turns:
            self._stale_prefixes = not self.llm.reset_prefix_cache()

    def load_weights(self, folder: str) -> None:
        """Go on with the weights of `folder`, a model of the same architecture, without starting anew."""
        self.weights_change()
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self.weights_changed()

    def swap_adapter(self, packed: ray.ObjectRef) -> list[tuple[int, list[str]]]:
        """Go on with a packed adapter of rank and layers of `adapter`, on the same base; returns for each worker what
        `WorkerExtension.swap_adapter` does."""
        assert self._adapter is not None
        settings = {
            "r": self._adapter.rank,
            "lora_alpha": self._adapter.alpha,
            "use_rslora": self._adapter.rslora,
            "target_modules": self._adapter.target_modules,
        }
        reports: list[tuple[int, list[str]]] = self.llm.collective_rpc("swap_adapter", args=(packed, settings))
        self._stale_prefixes = not self.llm.reset_prefix_cache()
        return reports

    def weights_change(self) -> None:
        """Call before every way of replacing the weights."""
        self.llm.collective_rpc(unpack_experts)

    def weights_changed(self) -> None:
        """Forget what was derived from the old weights; call after every way of replacing them. Raises `RaftError` for
        a model whose experts vLLM has not taken up."""
        if not all(self.llm.collective_rpc(repack)):
            raise RaftError(
                f"{self._folder}: vLLM does not take up new weights for the experts of this architecture while it "
                "runs; it can be trained by methods without rollouts (sft, sdft), and evaluated alone"
            )
        # The prefix cache holds keys and values of the old weights. While some are in use, it is not emptied.
        self._stale_prefixes = not self.llm.reset_prefix_cache()


def check_adapters_served(architecture: str) -> None:
    """Refuse a transformers class whose adapters vLLM does not serve apart from the base, as an engine would when it
    starts. Raises `ModelError`."""
    from vllm.model_executor.models import ModelRegistry, supports_lora

    known = ModelRegistry.models.get(architecture)
    if known is not None and not supports_lora(known.load_model_cls()):
        raise ModelError(f"sync.adapter=hot: vLLM's {architecture} does not support LoRA; set sync.adapter=merged")


def _adapter_arguments(adapter: LoraConfig, names: list[str]) -> dict[str, Any]:
    """Those of `LLM`, for layers whose names end in `names`."""
    from vllm.config.lora import MaxLoRARanks

    rank = min(rank for rank in get_args(MaxLoRARanks) if rank >= adapter.rank)
    return {
        "enable_lora": True,
        "max_lora_rank": rank,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "lora_target_modules": names,
    }


def seed_worker(worker: Any, seed: int) -> None:
    """Seed the sampling of a vLLM worker's process; all workers of an engine draw the same."""
    import torch

    del worker
    torch.manual_seed(seed)


def unpack_experts(worker: Any) -> None:
    """Let a vLLM worker pack its experts for the CPU with the next weights too; elsewhere nothing happens. vLLM packs
    them with the kernel's first weights only; later ones would be read as if they were packed."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        for method in _expert_methods(worker):
            method.moe_kernel = None


def repack(worker: Any) -> bool:
    """Pack a vLLM worker's output head for the CPU anew; elsewhere nothing is packed and nothing happens. vLLM's reload
    packs the layers that it loads. A head tied to the embeddings is not loaded by itself, so it would go on computing
    logits from the packed copy of the old weights. Returns whether all experts have been packed again."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in worker.model_runner.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
    return all(method.moe_kernel is not None for method in _expert_methods(worker))


def _expert_methods(worker: Any) -> list[Any]:
    from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase

    methods = (getattr(module, "quant_method", None) for module in worker.model_runner.get_model().modules())
    return [method for method in methods if isinstance(method, FusedMoEMethodBase)]
