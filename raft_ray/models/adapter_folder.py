"""A peft adapter's folder: what it may hold, and its settings and tensors.

What is not known to be computed right by `raft_ray.models.adapters` is refused by file and field: peft itself only
warns of tensors that do not fit, and ignores fields that its version does not have. Torch and peft are imported inside
the functions.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_ray.errors import ModelError, first_line
from raft_ray.files import home
from raft_ray.json_files import read_object

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS, TENSORS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

_COMPUTED = {
    *("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
}
"""Fields that peft follows when it puts the adapter into a model, whatever their values."""
_WITHOUT_EFFECT = {
    *("base_model_name_or_path", "inference_mode", "lora_dropout", "peft_type", "peft_version", "auto_mapping"),
    *("megatron_core", "qalora_group_size"),
}
"""Fields that do not change what a loaded adapter computes."""
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none",),
    # Other ways to begin change the base's weights as well, and the adapter is the difference from those.
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    # Another commit of the base than the one that would be loaded.
    "revision": (None, "main"),
}
_MERGE = "merge it into its base with peft's merge_and_unload, and name the folder of the whole model"


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds an adapter alone; one beside whole weights is the loader's to refuse."""
    folder = home(str(path))
    whole = [name for pattern in ("model*.safetensors", "pytorch_model*.bin") for name in folder.glob(pattern)]
    return (folder / SETTINGS).is_file() and not whole


def adapter_folder(path: str | Path) -> Path:
    """The folder, which holds an adapter alone. Raises `ModelError`."""
    folder = home(str(path))
    if not is_adapter(folder):
        what = "no adapter_config.json without whole weights there" if folder.is_dir() else "no such folder"
        raise _refusal(path, f"{what}; name the folder of a peft adapter")
    return folder


def base_name(path: str | Path) -> str | None:
    """The base that an adapter says it was trained on. Raises `ModelError` for settings that cannot be read."""
    name = _object(home(str(path))).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def read_settings(path: str | Path) -> Any:
    """The `peft.LoraConfig` of a folder. Raises `ModelError` for a folder that holds no adapter, without peft, and for
    fields whose value would not be computed as peft does when it trains."""
    values = _object(adapter_folder(path))
    if find_spec("peft") is None:
        raise _refusal(path, "the package peft is not installed; pip install 'raft-ray[lora]'")
    import peft

    if (kind := values.get("peft_type")) != "LORA":
        raise _refusal(path, f"{SETTINGS}: peft_type={_shown(kind)}: only LORA is loaded; {_MERGE}")
    defaults = peft.LoraConfig().to_dict()
    for name, value in values.items():
        if name in _ALLOWED:
            fits = any(value is each or (isinstance(each, str) and value == each) for each in _ALLOWED[name])
        else:
            # An empty list, or a field of another version of peft that is off.
            fits = name in _COMPUTED | _WITHOUT_EFFECT or not value or value == defaults.get(name)
        if not fits:
            raise _refusal(path, f"{SETTINGS}: {name}={_shown(value)}: is not loaded; {_MERGE}")
    try:
        known = {name: value for name, value in values.items() if name in defaults and name not in _WITHOUT_EFFECT}
        return peft.LoraConfig(**known | {"task_type": "CAUSAL_LM"})
    except (TypeError, ValueError) as error:
        raise _refusal(path, f"{SETTINGS}: {first_line(error)}; save it anew with save_pretrained") from error


def read_tensors(path: str | Path, *, allow_pickle: bool) -> dict[str, Tensor]:
    """The adapter's tensors, by their names without peft's `base_model.model.`. Raises `ModelError`."""
    import torch
    from safetensors.torch import load_file

    folder = home(str(path))
    file = folder / TENSORS
    if not file.is_file() and (folder / PICKLED).is_file():
        if not allow_pickle:
            raise _refusal(
                path,
                f"{PICKLED}: pickled weights can run code when opened; save the adapter anew with save_pretrained, or "
                "set model.allow_pickle=true if you trust them",
            )
        file = folder / PICKLED
    if not file.is_file():
        raise _refusal(path, f"there is no {TENSORS}; save the adapter anew with save_pretrained")
    try:
        state = load_file(file) if file.name == TENSORS else torch.load(file, map_location="cpu", weights_only=True)
        named = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}
        finite = all(bool(tensor.isfinite().all()) for tensor in named.values())
    # Of a damaged or foreign file safetensors and torch may raise anything.
    except Exception as error:
        raise _refusal(path, f"{file.name}: cannot be read ({first_line(error)}); save the adapter anew") from error
    if not finite:
        raise _refusal(path, f"{file.name}: has weights that are not finite; train the adapter again")
    return named


def check_tensors(path: str | Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Refuse an adapter whose tensors are not those that its settings make of the model. Raises `ModelError`."""
    faults = []
    for names, what in (
        (wanted.keys() - found.keys(), "missing"),
        (found.keys() - wanted.keys(), "not of this model"),
        ({n for n in wanted.keys() & found.keys() if wanted[n].shape != found[n].shape}, "of another shape"),
    ):
        if names:
            faults.append(f"{len(names)} tensors {what} ({min(names)}{', ...' * (len(names) > 1)})")
    if faults:
        raise _refusal(
            path,
            f"{TENSORS}: does not fit the base by {SETTINGS}: {'; '.join(faults)}; name the base that it was trained "
            "on as model.path",
        )


def _object(folder: Path) -> dict[str, Any]:
    fix = "save the adapter anew with save_pretrained"
    return read_object(folder / SETTINGS, fix, key="model.adapter", raises=ModelError)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:76]} ..."


def _refusal(path: str | Path, what: str) -> ModelError:
    return ModelError(f"model.adapter={path}: {what}")
