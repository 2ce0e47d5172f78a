"""What the name of a model stands for: a folder, a built-in, a hub name, or a base with a peft adapter.

A base with an adapter is one name, `BASE + ADAPTER`, which goes to every actor as a folder's does; each node merges the
two by itself, once (`raft_ray.models.loading.resolve`). What needs no weights reads the base's folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from raft_ray.config import ModelConfig
from raft_ray.errors import ModelError
from raft_ray.files import home
from raft_ray.models.adapter_folder import adapter_folder, base_name, is_adapter
from raft_ray.models.builtin import builtin_folder

_AND = " + "
_MODEL_FILES = {".json", ".safetensors", ".bin", ".pt", ".model", ".txt", ".jinja", ".py"}
_WEIGHTS = {".safetensors"}
_SAMPLE, _SAMPLES = 1 << 20, 32


def adapted(base: str, adapter: str | None) -> str:
    """The name of a base with the adapter of a folder, or of the base alone. Raises `ModelError`."""
    if adapter is None:
        return base
    if _AND in adapter:
        raise ModelError(f'model.adapter={adapter}: "{_AND}" stands between base and adapter; rename the folder')
    return f"{base}{_AND}{adapter}"


def split(name: str) -> tuple[str, str | None]:
    """The base of a name and its adapter's folder, none for a whole model. An adapter's folder by itself goes with the
    base that it names. Raises `ModelError` where that base is not on this machine."""
    if is_adapter(name):
        base = base_name(name) or "BASE"
        if not _is_here(base):
            raise ModelError(
                f"model.path={name}: holds an adapter (adapter_config.json), whose base {base} is not on this machine; "
                f"set model.path={base} model.adapter={name}"
            )
        return base, name
    if _AND not in name or home(name).exists():
        return name, None
    base, _, adapter = name.rpartition(_AND)
    return base, adapter


def source(config: ModelConfig) -> str:
    """The name of a section's model, `model.path` with `model.adapter`."""
    return adapted(config.path, config.adapter)


def given(name: str, config: ModelConfig) -> str:
    """The name of a model to measure: an adapter's folder means it on `model.path`."""
    return adapted(config.path, name) if is_adapter(name) and name != config.path else name


def settled(name: str) -> str:
    """A name as actors get it: the local folder of a model that has one; base and adapter of one with an adapter, by
    their whole paths, since learners work in folders of their own. Raises as `split` and `base_folder` do."""
    base, adapter = split(name)
    if adapter is None:
        return base_folder(base)
    inner = settled(base) if split(base)[1] is not None else base
    return adapted(_absolute(inner), _absolute(adapter))


def base_folder(name: str) -> str:
    """The local folder, or hub name, of a model without its adapters: all that config and tokenizer need. Makes
    built-in models where they are missing. Raises `ModelError` for an unknown built-in name, a folder that does not
    exist, or a file."""
    base, adapter = split(name)
    if adapter is not None:
        return base_folder(base)
    if (builtin := builtin_folder(base)) is not None:
        return builtin
    folder = home(base)
    if folder.is_dir():
        return str(folder) if base.startswith("~") else base
    # transformers would read a file as the config of a model.
    if folder.exists():
        raise ModelError(f"model.path={base}: a file, not a folder; name the folder of a Hugging Face model")
    if base.startswith(("/", "./", "../", "~")) or base.count("/") > 1:
        raise ModelError(f"model.path={base}: no such folder")
    return base


def model_identity(name: str) -> str:
    """What tells a model from every other: for a folder a hash of its files, for a hub name the name, with an adapter
    a hash of both. Of large files only a MiB in each of `_SAMPLES` places is read, which training changes all the
    same."""
    base, adapter = split(name)
    if adapter is not None:
        both = f"{model_identity(base)} {_identity(adapter_folder(adapter))}"
        return hashlib.sha256(both.encode()).hexdigest()
    folder = base_folder(base)
    return _identity(Path(folder)) if Path(folder).is_dir() else folder


def check_base(base: str, adapter: str) -> None:
    """Refuse an adapter for a model with other weights than those of the base that it names, if both are in folders
    here. Raises `ModelError`."""
    said = base_name(adapter)
    if said is None or split(base)[1] is not None or not home(said).is_dir():
        return
    ours, theirs = Path(base_folder(base)), home(said)
    if ours.is_dir() and theirs.is_dir() and _identity(ours, _WEIGHTS) != _identity(theirs, _WEIGHTS):
        raise ModelError(
            f"model.adapter={adapter}: was trained on {said} (base_model_name_or_path of adapter_config.json), which "
            f"has other weights than {base}; set model.path={said}, or remove that field if both are the same model"
        )


def _absolute(name: str) -> str:
    """The whole path of a folder that is here, any other name as it is."""
    return str(home(name).absolute()) if home(name).is_dir() else name


def _identity(folder: Path, kinds: Iterable[str] = _MODEL_FILES) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in kinds):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES if size > _SAMPLE else 1):
                file.seek(max(0, size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _is_here(name: str) -> bool:
    """A model's files are on this machine: a folder, a built-in, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name.startswith(("embedded:", "random:")) or home(name).is_dir():
        return True
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False
