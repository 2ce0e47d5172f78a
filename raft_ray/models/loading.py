"""Resolves the name of a model (`raft_ray.models.sources`) to a folder, checks it, and loads from it what a run needs.

All functions take such names. Knows nothing about Ray or vLLM. Torch and transformers are imported inside the
functions.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from raft_ray.config import Config, LoraConfig, ModelConfig
from raft_ray.errors import ModelError, first_line
from raft_ray.files import writing
from raft_ray.json_files import read_object
from raft_ray.models import adapters, rope
from raft_ray.models.adapter_folder import read_settings
from raft_ray.models.architectures import READ_ONCE
from raft_ray.models.builtin import cache_dir
from raft_ray.models.chat import Chat, with_thinking
from raft_ray.models.checks import check_keys, check_ties, remove_randomness, settle_attention
from raft_ray.models.sources import adapted, base_folder, check_base, model_identity, split
from raft_ray.models.weight_files import INDEX, weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FILES = {".json", ".model", ".txt", ".jinja", ".py"}
"""Endings of a model's files other than weights."""
_TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model"}


def resolve(name: str, config: ModelConfig | None = None) -> str:
    """A local folder with the weights of `name`, or the hub name itself. Built-in models, and bases merged with their
    adapter, are made in this node's cache where they are missing, safe among processes.

    Args:
        config: what a base that is merged is trusted with.

    Raises `ModelError` for a name without a model, and for an adapter that does not fit its base.
    """
    base, adapter = split(name)
    if adapter is None:
        return base_folder(base)
    config = config or ModelConfig()
    original = resolve(base, config)
    if not os.path.isdir(original):
        from huggingface_hub import snapshot_download

        with _foreign(original, "the base of an adapter could not be fetched"):
            patterns = [f"*{kind}" for kind in _FILES] + ["*.safetensors"] + ["*.bin"] * config.allow_pickle
            original = snapshot_download(original, allow_patterns=patterns)
    folder = cache_dir() / "models" / f"merged-{model_identity(adapted(original, adapter))[:16]}"
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                _merge(original, adapter, config, folder)
    return str(folder)


def _merge(original: str, adapter: str, config: ModelConfig, folder: Path) -> None:
    """Write `folder`: the base with its adapter merged, in the base's own precision, all else as the base has it."""
    from transformers import GenerationConfig

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model = _from_checkpoint(original, config, dtype="auto")
    adapters.load_adapter(model, adapter, allow_pickle=config.allow_pickle)
    adapters.merge(model)
    model.generation_config = GenerationConfig()  # one of the base that contradicts itself could not be saved
    model.save_pretrained(partial, max_shard_size="5GB")
    for path in partial.iterdir():
        if path.suffix in _FILES and path.name != INDEX:
            path.unlink()
    for path in Path(original).iterdir():
        if path.suffix in _FILES and not path.name.endswith(".index.json"):
            shutil.copyfile(path, partial / path.name)
    partial.rename(folder)


def load_tokenizer(folder: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, which must have a chat template and an end-of-sequence token; its template thinks by default if
    `model.thinking` says so. Raises `ModelError`."""
    from transformers import AutoTokenizer

    folder = base_folder(folder)
    _check_folder(folder, config)
    with _foreign(folder, "no tokenizer could be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    templates = tokenizer.chat_template
    if not templates:
        raise _refusal(folder, "the tokenizer has no chat template; raft-ray trains chat models")
    if tokenizer.eos_token_id is None:
        raise _refusal(folder, "the tokenizer has no end-of-sequence token")
    if isinstance(templates, dict):
        tokenizer.chat_template = {name: with_thinking(text, config.thinking) for name, text in templates.items()}
    else:
        tokenizer.chat_template = with_thinking(templates, config.thinking)
    return tokenizer


def load_chat(folder: str, config: ModelConfig) -> Chat:
    """The tokenizer with its chat template, checked, as this run uses it. Raises `ModelError`."""
    folder = base_folder(folder)
    size, stops = vocabulary_size(folder, config), _generation_stops(folder, config)
    if (beyond := max(stops, default=0)) >= size:
        raise _refusal(
            folder,
            f"generation_config.json stops on token {beyond} (eos_token_id), and the model has {size}; repair one of "
            "the two",
        )
    tokenizer = load_tokenizer(folder, config)
    where = f"model.path={folder}"
    return Chat(tokenizer, size=size, stops=stops, thinking=config.thinking, date=config.date, where=where)


def _generation_stops(folder: str, config: ModelConfig) -> list[int]:
    """`eos_token_id` of the generation config, or of the model's config where it has none."""
    from transformers import GenerationConfig

    fix = "; repair it, or remove it to go by config.json"
    with _foreign(folder, "generation_config.json cannot be used", fix):
        try:
            eos = GenerationConfig.from_pretrained(folder).eos_token_id
        except OSError:
            eos = _config(folder, config).get_text_config().eos_token_id
    stops = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(stop, int) for stop in stops):
        what = f"eos_token_id of its generation config is {eos!r}; name the number of a token, or a list of such"
        raise _refusal(folder, what)
    return stops


def load_model(
    folder: str, config: ModelConfig, dtype: torch.dtype | None = None, *, dropout: bool = False
) -> PreTrainedModel:
    """The causal language model on the CPU, in `dtype` (default: `model.dtype`). What comes back computes what the run
    assumes: every tensor is the checkpoint's, rotary factors are those of `model.context` for every row, attention
    leaves nothing out, and `Head` makes its logits. `dropout`: keep what the model's config drops at random in
    training. Only from safetensors, unless `model.allow_pickle`. Raises `ModelError`."""
    import torch

    from raft_ray.models.head import check_head

    dtype = dtype if dtype is not None else getattr(torch, config.dtype.value)
    model = _from_checkpoint(resolve(folder, config), config, dropout=dropout, dtype=dtype)
    settle_attention(model)
    check_head(model)
    return model


def empty_model(folder: str, config: ModelConfig, dtype: torch.dtype) -> Any:
    """The causal model of a folder's or hub name's config.json on the meta device: shapes without values. No weights
    are read, nor need there be any. Raises `ModelError`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, trust = base_folder(folder), config.trust_remote_code
    with _foreign(folder, "no model could be made of its config"):
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        rope.freeze(settings, config.context)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(settings, dtype=dtype, trust_remote_code=trust)


def check_weights(name: str, config: ModelConfig) -> None:
    """Refuse a model in a local folder whose tensors are not those of its architecture, and adapters that do not fit
    it; reads names and shapes, not the tensors. Hub names pass: loading tells. Raises `ModelError`."""
    folder, found = base_folder(name), split(name)
    if not os.path.isdir(folder):
        return
    model = _from_checkpoint(folder, config, device_map="meta")
    while (adapter := found[1]) is not None:
        adapters.load_adapter(model, adapter, allow_pickle=config.allow_pickle)
        check_base(found[0], adapter)
        found = split(found[0])
        model = _from_checkpoint(folder, config, device_map="meta") if found[1] else model


def check_adapter(name: str, config: Config) -> str | None:
    """Refuse `learner.lora` for layers that the model does not have, as `check_weights` reads it, and where it
    contradicts the adapter that is trained on. Returns what is to be known of such an adapter. Raises `ModelError`."""
    adapter, lora = split(name)[1], config.learner.lora
    if lora.rank and adapter is not None:
        settings = read_settings(adapter)
        adapters.agree(settings, lora, adapter)
        for unfit, message in (
            (
                settings.use_dora and config.learner.zero_stage == 3,
                "use_dora=true takes norms of whole weights, which ranks at learner.zero_stage=3 do not have; set "
                "learner.zero_stage=2, or learner.lora.rank=0",
            ),
            (
                config.learners_score,
                "it belongs to the original model, which learners do not have apart from what they train "
                "(teacher.place=learner); set teacher.place=own",
            ),
            (
                config.swaps_adapters,
                "engines swap new adapters alone (sync.adapter=hot); set sync.adapter=merged",
            ),
        ):
            if unfit:
                raise ModelError(f"model.adapter={adapter}: {message}")
        return f"the adapter {adapter} trains on: {adapters.shown(settings)}"
    if lora.rank and os.path.isdir(folder := base_folder(name)):
        adapters.target_modules(_from_checkpoint(folder, config.model, device_map="meta"), lora.target_modules)
    return None


def swapped_layers(folder: str, config: ModelConfig, lora: LoraConfig, *, on_gpu: bool) -> list[str]:
    """Last parts of the names of the layers whose adapters an engine swaps. Raises `ModelError` where it cannot."""
    model = _without_tensors(folder, config)
    if adapters.packs_experts(model) and not on_gpu:
        raise ModelError(
            f"sync.adapter=hot: {type(model).__name__} has experts, which vLLM on the CPU does not compute beside "
            "adapters; set sync.adapter=merged"
        )
    ends = adapters.target_modules(model, lora.target_modules)
    return sorted({end.rpartition(".")[2] for end in ends})


def check_rollouts(folder: str, config: ModelConfig) -> None:
    """Refuse an architecture whose engines cannot follow a learner. Raises `ModelError`."""
    kind = _config(folder, config).get_text_config().model_type
    if kind in READ_ONCE:
        raise _refusal(
            folder,
            f"vLLM reads the experts of {kind} once and takes up no later weights, which rollouts need; train it with "
            "distill.method=sft or sdft",
        )


def checkpoint_tensors(folder: str, config: ModelConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's tensors under the names and in the form in which checkpoints of its architecture hold them.
    transformers packs the experts of a layer into one tensor when it loads them, for instance. `folder`: of the
    original model. `state`: by their names in the model, `named_parameters` and persistent buffers."""
    from transformers.core_model_loading import revert_weight_conversion

    model = _without_tensors(folder, config)
    # Copies of parts: safetensors wants memory of its own for each tensor.
    return {
        name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        for name, tensor in revert_weight_conversion(model, state).items()
    }


def model_context(folder: str, config: ModelConfig) -> int:
    """Longest prompt + response in tokens: `model.context`, or the limit that the model's own config states. Where
    rotary factors depend on the length (`raft_ray.models.rope`), the limit is the length that the short ones hold for;
    a longer context is to be asked for. Raises `ModelError`."""
    settings = _config(folder, config)
    text = settings.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if config.context is None:
        if limit is None:
            raise _refusal(folder, "its config states no longest sequence; set model.context")
        return min(int(limit), rope.original_length(text) or int(limit))
    if limit is not None and config.context > limit:
        raise ModelError(f"model.context={config.context}: {folder} reads at most {limit} tokens")
    rope.freeze(settings, config.context)
    return config.context


def vocabulary_size(folder: str, config: ModelConfig) -> int:
    """Rows of the model's output head."""
    return int(_config(folder, config).get_text_config().vocab_size)


def vocabulary_difference(folder: str, original: str, config: ModelConfig) -> str | None:
    """What keeps token ids of two models from meaning the same, in words; none if they do. Raises `ModelError`."""
    ours, theirs = (load_tokenizer(path, config).get_vocab() for path in (original, folder))
    own, other = (vocabulary_size(path, config) for path in (original, folder))
    if ours == theirs and own == other:
        return None
    found, wanted = f"{len(theirs)} tokens, head {other}", f"{len(ours)} tokens, head {own}"
    return f"its vocabulary ({found}) is not that of model.path ({wanted})"


def _from_checkpoint(folder: str, config: ModelConfig, *, dropout: bool = False, **arguments: Any) -> Any:
    """The model with the folder's tensors, all of them and no others. Raises `ModelError`."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # drawn by every process of a run, over the run's own bars
    set_verbosity_error()  # what it says of keys is a table; `check_keys` has a line for them
    load: Any = AutoModelForCausalLM.from_pretrained
    settings = _config(folder, config)
    text = settings.get_text_config()
    rope.freeze(settings, config.context)
    tied = bool(text.tie_word_embeddings)
    if not dropout:
        remove_randomness(text)
    if os.path.isdir(folder) and not config.allow_pickle:
        try:
            weight_files(folder)
        except ModelError as error:
            raise ModelError(f"model.path={error}") from error
    with _foreign(folder, "the model could not be loaded"):
        model, found = load(
            folder,
            config=settings,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=None if config.allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **arguments,
        )
    check_keys(folder, found)
    check_ties(folder, model, tied)
    return model


def _without_tensors(folder: str, config: ModelConfig) -> Any:
    """The model on the device `meta`. Raises `ModelError`."""
    import torch

    if os.path.isdir(folder := base_folder(folder)):
        return _from_checkpoint(folder, config, device_map="meta")
    return empty_model(folder, config, getattr(torch, config.dtype.value))


def _config(folder: str, config: ModelConfig) -> Any:
    """The folder's whole config, made anew at each call."""
    from transformers import AutoConfig

    folder = base_folder(folder)
    _check_folder(folder, config)
    with _foreign(folder, "no model config could be loaded"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)


def _check_folder(folder: str, config: ModelConfig) -> None:
    """Refuse a local folder that holds no model that can be trained: parts are missing, an adapter, quantised weights.
    Hub names pass: loading tells. Raises `ModelError`."""
    root = Path(folder)
    if not root.is_dir():
        return
    names = {path.name for path in root.iterdir()}
    kinds = {path.suffix for path in root.iterdir()}
    adapter, weights = "adapter_config.json" in names, ".safetensors" in kinds or config.allow_pickle
    settings: dict[str, Any] = {}
    if "config.json" in names:
        fix = "save the model anew with save_pretrained"
        settings = read_object(root / "config.json", fix, key="model.path", raises=ModelError)
    quantised = settings.get("quantization_config") or settings.get("compression_config")
    for fault, what in (
        ("config.json" not in names, "no config.json there; it is not a Hugging Face model folder"),
        (
            adapter,
            "it holds an adapter (adapter_config.json), which would be left out; merge it into its base with peft's "
            "merge_and_unload, and remove adapter files beside whole weights",
        ),
        (
            quantised,
            f"its weights are quantised ({(quantised or {}).get('quant_method', 'unknown')}), and cannot be trained; "
            "name the folder of the model's bfloat16 or float32 weights",
        ),
        (not names & _TOKENIZERS, "no tokenizer there; save one with tokenizer.save_pretrained"),
        (
            not weights and kinds & {".bin", ".pt"},
            "only pickled weights there, which can run code when opened; convert them to safetensors, or set "
            "model.allow_pickle=true if you trust them",
        ),
        (not weights, "no *.safetensors weights there"),
    ):
        if fault:
            raise _refusal(folder, what)
    if "generation_config.json" in names:
        fix = "repair it, or remove it to go by config.json"
        read_object(root / "generation_config.json", fix, key="model.path", raises=ModelError)


def _refusal(folder: str, what: str) -> ModelError:
    return ModelError(f"model.path={folder}: {what}")


@contextmanager
def _foreign(folder: str, what: str, fix: str = "") -> Iterator[None]:
    """Of a damaged or foreign folder transformers, safetensors and the model's own code may raise anything in the
    block: it becomes a `ModelError` of one line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise _refusal(folder, f"{what} ({first_line(error)}){fix}") from error
