"""How much memory the tensors of a pass take at once, found without any of them.

The learner's and the teacher's passes run on PyTorch's meta device, which computes shapes alone, and what lives at the
same time is added up. They are made of the real model, losses and head, so that a change there changes the result. Only
attention is replaced: on a meta tensor PyTorch would take the kernel that keeps [B, H, L, L], on a CPU or GPU it takes
one that keeps query, key, value and result.

Shapes: B rows, L tokens, H heads, n predicting positions, K kept by the teacher, D hidden.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raft_ray.distill.losses import sft_loss, topk_kl_from_hidden
from raft_ray.distill.teacher import top_logprobs
from raft_ray.models.head import Head, decoder_of

_VALUES = tuple(getattr(torch.ops.aten, name).default for name in ("_local_scalar_dense", "item", "is_nonzero"))
"""Operations that look at a tensor's value."""


class LiveTensors(TorchDispatchMode):
    """Adds up the bytes of the tensors that are made while it is active, for as long as each lives.

    Args:
        model: whose parameters and buffers, and views of them, do not count.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._known[tensor.untyped_storage()._cdata] = tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _VALUES and args[0].is_meta:
            # Models ask whether a mask hides nothing; here none does.
            return True
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._remove(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _remove(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


class _Fused(torch.autograd.Function):
    """The memory of a fused attention kernel: of its inputs, result [B, H, L, d] and normaliser [B, H, L]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, mask, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return *map(torch.empty_like, ctx.saved_tensors[:3]), None


class _StayOnMeta(TorchFunctionMode):
    """What would go to the CPU stays where it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.cpu else func(*args, **(kwargs or {}))


@contextmanager
def _fused_attention() -> Iterator[None]:
    """In the block PyTorch attends as above, also where a checkpointed layer is computed again, which modes miss."""

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        # As PyTorch does, which adds a mask to the scores.
        mask = None if attn_mask is None else attn_mask.to(query.dtype)
        result: Tensor = _Fused.apply(query, key, value, mask)
        return result

    own, replaced = functional.scaled_dot_product_attention, cast(Any, functional)
    replaced.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        replaced.scaled_dot_product_attention = own


def training_bytes(model: Any, tokens: int, *, length: int, top_k: int | None, shared: bool, keeps: bool = True) -> int:
    """The most that a micro-batch's forward and backward pass hold beside the parameters.

    Args:
        model: a causal model on the meta device, as it is trained: adapter, dtype, gradient checkpointing.
        tokens: of the micro-batch, in rows of `length`.
        top_k: K of the KL, which half of the tokens have then; none without distillation.
        shared: rows bring their own mask (`learner.share_prompt`).
        keeps: gradients stay, in the parameters' dtype; else each is gone as soon as it is there.

    Raises whatever a model raises that needs values, such as one that routes tokens to experts.
    """
    model.train()
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        for parameter in model.parameters()
        if parameter.requires_grad and not keeps
    ]

    def step() -> None:
        hidden = _hidden(model, tokens, length, shared)
        head, half = Head.of(model), hidden.shape[0] // 2 if top_k else hidden.shape[0]
        weight = torch.empty(half, device="meta")
        labels = torch.empty(half, dtype=torch.long, device="meta")
        loss = sft_loss(hidden[:half], head.weight, labels, weight, head=head)
        if top_k:
            ids = torch.empty(half, min(top_k, head.rows), dtype=torch.int32, device="meta")
            values = torch.empty(ids.shape, dtype=torch.float16, device="meta")
            loss = loss + topk_kl_from_hidden(hidden[-half:], head.weight, ids, values, weight, 1.0, head=head)
        loss.backward()

    try:
        return _peak(model, step)
    finally:
        model.zero_grad(set_to_none=True)
        for hook in hooks:
            hook.remove()


def scoring_bytes(model: Any, tokens: int, *, length: int, top_k: int) -> int:
    """The most that the teacher's pass over `tokens` tokens holds beside the parameters; raises as `training_bytes`."""
    model.eval()

    def score() -> None:
        with torch.no_grad():
            head = Head.of(model)
            top_logprobs(torch.cat([_hidden(model, tokens, length, False)]), head, min(top_k, head.rows))

    return _peak(model, score)


def _hidden(model: Any, tokens: int, length: int, shared: bool) -> Tensor:
    """[n, D]."""
    rows, length = max(1, tokens // length), min(length, tokens)
    ids = torch.empty(rows, length, dtype=torch.long, device="meta")
    mask = torch.empty(rows, 1, length, length, dtype=torch.bool, device="meta") if shared else None
    hidden: Tensor = decoder_of(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)


def _peak(model: Any, work: Callable[[], None]) -> int:
    with LiveTensors(model) as live, _StayOnMeta(), _fused_attention():
        work()
    return live.peak
