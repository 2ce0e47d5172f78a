"""A LoRA adapter inside a causal model, by peft: which layers have one, and what base and adapter are together.

    y = W x + s B A dropout(x)              W [out, in] frozen; A [rank, in] and B [out, rank] trained, B from zeros
    W' = W + s B A                          merged; s = alpha / rank, or alpha / √rank (rsLoRA, arXiv 2312.03732)
    W' = m (W + s B A) / ‖W + s B A‖        DoRA (arXiv 2402.09353), m [out] trained, the norm of each row

peft puts its layers into the model itself, whose class, config, decoder and head stay where everybody finds them.
Without an adapter nothing here imports peft. Knows nothing about Ray, DeepSpeed or ranks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from raft_ray.config import LoraConfig
from raft_ray.errors import ModelError, first_line
from raft_ray.models import adapter_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

ALL = "all-linear"
_KEY = "learner.lora.target_modules"
_NAME = "default"
"""What peft calls the one adapter."""
_PROBE_TOKENS = 16
_OF_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Names that peft takes for parts of the experts wherever a model packs these into one tensor."""


def check_peft(lora: LoraConfig) -> None:
    """Refuse an adapter in a process that cannot import peft. Raises `ModelError`."""
    if lora.rank and find_spec("peft") is None:
        raise ModelError(
            f"learner.lora.rank={lora.rank}: the package peft is not installed; pip install 'raft-ray[lora]', or set "
            "learner.lora.rank=0 to train all weights"
        )


def packs_experts(model: Any) -> bool:
    """The experts of a layer are one tensor."""
    return any(parameter.ndim == 3 and ".experts." in name for name, parameter in model.named_parameters())


def target_modules(model: Any, wanted: str | list[str]) -> list[str]:
    """What peft shall look for in a model without an adapter: ends of the names of linear layers, never of its head or,
    in a model with packed experts, of other layers that are called like theirs.

    Args:
        wanted: `learner.lora.target_modules`.

    Raises `ModelError` for a name that no such layer has.
    """
    from torch import nn

    head = model.get_output_embeddings()
    barred: set[str] = _OF_EXPERTS if packs_experts(model) else set()
    linear = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    linear = [name for name in linear if name.rpartition(".")[2] not in barred]
    there = sorted({name.rpartition(".")[2] for name in linear})
    if not there:
        raise ModelError(f"{_KEY}={wanted}: {type(model).__name__} has no linear layers; set learner.lora.rank=0")
    if wanted == ALL:
        return there
    names = [wanted] if isinstance(wanted, str) else wanted
    absent = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in linear)]
    if absent or not names:
        what = f"there is no linear layer {absent[0]}" if absent else "names no layer"
        raise ModelError(
            f"{_KEY}={wanted}: {what} in {type(model).__name__}; it has {', '.join(there)} (the output head and packed "
            f"experts cannot have an adapter); name some of these, or set {_KEY}={ALL}"
        )
    return names


def add_adapter(model: Any, lora: LoraConfig, seed: int) -> None:
    """Put a new adapter into a model on the CPU and freeze all else; what the model computes stays the same, bit for
    bit in float32. A is drawn from `seed` alone, so that all ranks draw the same. A model without values (on the meta
    device) gets its shapes.

    Raises `ModelError` without peft, and for layers that cannot be adapted.
    """
    check_peft(lora)
    import peft

    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=target_modules(model, lora.target_modules),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    _inject(settings, model, seed, f"{_KEY}={lora.target_modules}")
    if not next(model.parameters()).is_meta:
        _check_called(model, adapted_layers(model))


def load_adapter(model: Any, folder: str, *, allow_pickle: bool, lora: LoraConfig | None = None) -> None:
    """Put the adapter of a peft folder into the model that it was trained on, and freeze all else. Without values (a
    model on the meta device) it is only seen whether it fits.

    Args:
        lora: it is trained on, as these settings have it, in the precision of the model; else its parameters are kept
            in float32.

    Raises `ModelError` for an adapter that does not fit the model or contradicts `lora`, or that `read_settings` or
    `read_tensors` refuses.
    """
    settings = adapter_folder.read_settings(folder)
    if lora is not None:
        agree(settings, lora, folder)
        settings.lora_dropout = lora.dropout
    tensors = adapter_folder.read_tensors(folder, allow_pickle=allow_pickle)
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    where = f"model.adapter={folder}: {adapter_folder.SETTINGS}: target_modules"
    _inject(settings, model, 0, where)
    layers = adapted_layers(model)
    wanted = get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)
    adapter_folder.check_tensors(folder, wanted, tensors)
    if next(model.parameters()).is_meta:
        return
    if lora is None:
        for parameter in (each for layer in layers.values() for each in adapter_parameters(layer)):
            parameter.data = parameter.data.float()
    else:
        _check_called(model, layers)
    set_peft_model_state_dict(model, tensors, adapter_name=_NAME)


_FIELDS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "target_modules": "target_modules",
    "rslora": "use_rslora",
    "dora": "use_dora",
}
"""What peft calls the keys of `learner.lora` that make an adapter what it is."""


def shown(settings: Any) -> str:
    """The fields of an adapter's settings that `learner.lora` has keys for."""
    return ", ".join(f"{name}={_sorted(getattr(settings, name))}" for name in _FIELDS.values())


def agree(settings: Any, lora: LoraConfig, folder: str) -> None:
    """Refuse keys of `learner.lora` that say something else than a given adapter's settings (`peft.LoraConfig`). Keys
    that were left at their default are the adapter's. Raises `ModelError` naming both."""
    default = LoraConfig()
    for key, name in _FIELDS.items():
        ours, theirs = _sorted(getattr(lora, key)), _sorted(getattr(settings, name))
        if ours != getattr(default, key) and ours != theirs:
            fix = ", or to 0, which merges the adapter and trains all weights" if key == "rank" else ""
            raise ModelError(
                f"learner.lora.{key}={ours}: model.adapter={folder} has {name}={theirs} ({adapter_folder.SETTINGS}); "
                f"set learner.lora.{key} to that{fix}"
            )


def _sorted(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | list) else value


def merge(model: Any) -> None:
    """Put `W'` of every adapted layer, as `merged` has it, into the model, which has no adapter afterwards."""
    for name, layer in adapted_layers(model).items():
        base = layer.base_layer
        base.weight.data = merged(layer).to(base.weight.dtype)
        model.set_submodule(name, base)
    del model.peft_config


def _inject(settings: Any, model: Any, seed: int, where: str) -> None:
    """Let peft put its layers into a model; what it draws is drawn from `seed` alone. Raises `ModelError`, which
    `where` opens, for layers that cannot be adapted."""
    import peft
    import torch

    head = model.get_output_embeddings()
    on_meta = next(model.parameters()).is_meta
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(seed)
        warnings.simplefilter("ignore")  # of layers that are refused below
        try:
            peft.inject_adapter_in_model(settings, model, adapter_name=_NAME, low_cpu_mem_usage=on_meta)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(f"{where}: {first_line(error)}; name other layers") from error
    # By the end of its name peft finds layers of any kind.
    for name, layer in adapted_layers(model).items():
        if not isinstance(layer.base_layer, torch.nn.Linear) or layer.base_layer is head:
            raise ModelError(f"{where}: {name} cannot have an adapter; name other layers")


def adapted_layers(model: Any) -> dict[str, Any]:
    """peft's layers by the names that their base layers have in the model; none without an adapter."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """During the block the model computes what its base does without an adapter, bit for bit."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def base_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """`(name, parameter, layer)` of the model without its adapter, under the names that it has then; `layer` is peft's
    for a weight that has an adapter, else none."""
    layers = adapted_layers(model)
    if not layers:
        yield from ((name, parameter, None) for name, parameter in model.named_parameters())
        return
    own = {f"{name}.base_layer.{part}": name for name in layers for part in ("weight", "bias")}
    adapters = {id(parameter) for layer in layers.values() for parameter in adapter_parameters(layer)}
    for name, parameter in model.named_parameters():
        if id(parameter) in adapters:
            continue
        if (base := own.get(name)) is None:
            yield name, parameter, None
        else:
            part = name.rpartition(".")[2]
            yield f"{base}.{part}", parameter, layers[base] if part == "weight" else None


def adapter_parameters(layer: Any) -> list[nn.Parameter]:
    """Those of an adapted layer that are trained: A, B and, for DoRA, m."""
    base = {id(parameter) for parameter in layer.base_layer.parameters()}
    return [parameter for parameter in layer.parameters() if id(parameter) not in base]


def merged(layer: Any) -> Tensor:
    """[out, in] float32, W' of an adapted layer whose tensors are whole (gathered); a new tensor."""
    import torch

    weight = layer.base_layer.weight.detach()
    a, b = (part[_NAME].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
    whole: Tensor = weight.float() + layer.scaling[_NAME] * (b @ a)
    if _NAME in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[_NAME].weight.detach().float()
        # In the dtype in which peft takes it: both roundings must meet.
        norm = torch.linalg.norm(whole.to(weight.dtype), dim=1).float()
        whole *= (magnitude / norm)[:, None]
    return whole


def peft_names(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors by their names in the model -> by those in peft's files, which vLLM reads too."""
    from peft import get_peft_model_state_dict

    named = get_peft_model_state_dict(model, dict(tensors), adapter_name=_NAME, save_embedding_layers=False)
    return {f"base_model.model.{name}": tensor for name, tensor in named.items()}


def adapter_files(model: Any, tensors: Mapping[str, Tensor], base: str) -> dict[str, bytes]:
    """Name -> content of the files from which peft and vLLM load the adapter.

    Args:
        tensors: the adapter's whole tensors by their names in the model.
        base: folder or hub name of the original model.
    """
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in peft_names(model, tensors).items()}
    settings = model.peft_config[_NAME].to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    return {
        "adapter_model.safetensors": save(state, metadata={"format": "pt"}),
        "adapter_config.json": (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode(),
    }


def _check_called(model: Any, layers: Mapping[str, Any]) -> None:
    """Refuse layers whose weight the model reads without calling them, which would leave their adapter out. By kind: a
    few tokens do not call every expert. Raises `ModelError`."""
    import torch

    from raft_ray.models.head import last_hidden

    called: set[int] = set()
    hooks = [layer.register_forward_pre_hook(lambda layer, _: called.add(id(layer))) for layer in layers.values()]
    with torch.inference_mode():
        last_hidden(model, torch.arange(_PROBE_TOKENS)[None])
    for hook in hooks:
        hook.remove()
    kinds = {name.rpartition(".")[2]: False for name in layers}
    kinds |= {name.rpartition(".")[2]: True for name, layer in layers.items() if id(layer) in called}
    if left_out := [kind for kind, is_called in kinds.items() if not is_called]:
        fix = f"[{','.join(sorted(kinds.keys() - left_out))}]" if any(kinds.values()) else ALL
        raise ModelError(
            f"{_KEY}: {type(model).__name__} does not call its layers {', '.join(left_out)}, whose adapters it would "
            f"leave out; set {_KEY}={fix}"
        )
