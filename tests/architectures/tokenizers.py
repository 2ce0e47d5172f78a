"""Tokenizers with chat templates of the shapes that people train, 512 tokens each, and their generation configs.

    TOKENIZERS["gemma2"]()      a fast tokenizer with its chat template
    GENERATION["gemma2"]        what generation_config.json says

The templates have the features of the real ones (who may speak, what is trimmed, dates, thinking, how a turn ends), not
their text. `</think>` and the like are added tokens that are not special, as in Qwen3.

This folder is a package: as a folder of plain modules its name `tokenizers` would hide the library's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raft_ray.data.general import general_prompts

SIZE = 512
"""Tokens of each vocabulary, its markers included."""

_CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_THINK = ["<think>", "</think>"]
_LLAMA = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
]
_GEMMA = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
_HARMONY = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
]

PLAIN = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA32 = """\
{{- bos_token }}
{%- set day = date_string if date_string is defined else strftime_now("%d %b %Y") %}
{%- if messages[0].role == "system" %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + day + "\\n\\n" + system + "<|eot_id|>" }}
{%- for m in messages %}
    {{- "<|start_header_id|>" + m.role + "<|end_header_id|>\\n\\n" + m.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}"""

SMOLLM3 = """\
{%- if enable_thinking is not defined -%}
    {%- set enable_thinking = true -%}
{%- endif -%}
{%- set start = "" if enable_thinking else "<think>\\n\\n</think>\\n" -%}
{{- "<|im_start|>system\\nToday Date: " + strftime_now("%d %B %Y") + "\\nReasoning Mode: " -}}
{{- ("/think" if enable_thinking else "/no_think") + "\\n\\n" -}}
{%- if messages[0].role == "system" -%}
    {{- messages[0].content.rstrip() + "\\n\\n" -}}
{%- endif -%}
{{- "<|im_end|>\\n" -}}
{%- for m in messages -%}
    {%- set content = m.content if m.content is string else "" -%}
    {%- if m.role == "user" -%}
        {{ "<|im_start|>user\\n" + content + "<|im_end|>\\n" }}
    {%- elif m.role == "assistant" -%}
        {% generation %}
        {{- "<|im_start|>assistant\\n" + start + content.lstrip("\\n") + "<|im_end|>\\n" -}}
        {% endgeneration %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ "<|im_start|>assistant\\n" + start }}
{%- endif -%}"""

PHI4MINI = """\
{% for m in messages %}{{ "<|" + m.role + "|>" + m.content + "<|end|>" }}{% endfor %}\
{% if add_generation_prompt %}{{ "<|assistant|>" }}{% else %}{{ eos_token }}{% endif %}"""

QWEN25 = """\
{%- if messages[0].role == "system" %}
    {{- "<|im_start|>system\\n" + messages[0].content + "<|im_end|>\\n" }}
{%- else %}
    {{- "<|im_start|>system\\nYou help.<|im_end|>\\n" }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role != "system" or not loop.first %}
        {{- "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}"""

QWEN3 = """\
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
    {%- if m.role == "user" %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role != "assistant" %}
        {{- "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" }}
    {%- else %}
        {%- set content = m.content %}
        {%- set thought = "" %}
        {%- if "</think>" in content %}
            {%- set thought = content.split("</think>")[0].rstrip("\\n").split("<think>")[-1].lstrip("\\n") %}
            {%- set content = content.split("</think>")[-1].lstrip("\\n") %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {%- set content = "<think>\\n" + thought.strip("\\n") + "\\n</think>\\n\\n" + content.lstrip("\\n") %}
        {%- endif %}
        {{- "<|im_start|>assistant\\n" + content + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}"""

_ALTERNATES = """\
    {%- if (m.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Roles must alternate, the user's first") }}
    {%- endif %}
"""

GEMMA2 = (
    """\
{{- bos_token }}
{%- if messages[0].role == "system" %}
    {{- raise_exception("There is no system role") }}
{%- endif %}
{%- for m in messages %}
"""
    + _ALTERNATES
    + """\
    {{- "<start_of_turn>" + ("model" if m.role == "assistant" else m.role) + "\\n" }}
    {{- m.content | trim + "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<start_of_turn>model\\n" }}
{%- endif %}"""
)

GEMMA3 = (
    """\
{{- bos_token }}
{%- set first = "" %}
{%- if messages[0].role == "system" %}
    {%- set first = messages[0].content + "\\n\\n" %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
"""
    + _ALTERNATES
    + """\
    {{- "<start_of_turn>" + ("model" if m.role == "assistant" else m.role) + "\\n" + (first if loop.first else "") }}
    {{- m.content | trim + "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<start_of_turn>model\\n" }}
{%- endif %}"""
)

MISTRAL = (
    """\
{{- bos_token }}
{%- for m in messages %}
"""
    + _ALTERNATES
    + """\
    {%- if m.role == "user" %}
        {{- "[INST] " + m.content + " [/INST]" }}
    {%- else %}
        {{- " " + m.content + eos_token }}
    {%- endif %}
{%- endfor %}"""
)

OLMO2 = """\
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == "assistant" %}
        {{- "<|assistant|>\\n" + m.content + eos_token + ("" if loop.last else "\\n") }}
    {%- else %}
        {{- "<|" + m.role + "|>\\n" + m.content + "\\n" }}
    {%- endif %}
    {%- if loop.last and add_generation_prompt %}
        {{- "<|assistant|>\\n" }}
    {%- endif %}
{%- endfor %}"""

GPTOSS = """\
{{- "<|start|>system<|message|>Current date: " + strftime_now("%Y-%m-%d") }}
{{- "\\n\\nReasoning: medium\\n\\n# Valid channels: analysis, commentary, final.<|end|>" }}
{%- for m in messages %}
    {%- if m.role == "system" %}
        {{- "<|start|>developer<|message|># Instructions\\n\\n" + m.content + "<|end|>" }}
    {%- elif m.role == "assistant" %}
        {%- if "<|channel|>analysis<|message|>" in m.content or "<|channel|>final<|message|>" in m.content %}
            {{- raise_exception("Channels do not belong into a message's content") }}
        {%- endif %}
        {{- "<|start|>assistant<|channel|>final<|message|>" + m.content }}
        {{- "<|return|>" if loop.last and not add_generation_prompt else "<|end|>" }}
    {%- else %}
        {{- "<|start|>user<|message|>" + m.content + "<|end|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start|>assistant" }}
{%- endif %}"""


def _make(
    template: str,
    special: list[str],
    eos: str,
    pad: str,
    bos: str | None = None,
    *,
    plain: list[str] | None = None,
    writes_bos: bool = False,
    sentencepiece: bool = False,
) -> PreTrainedTokenizerFast:
    """A fast tokenizer of `SIZE` tokens.

    Args:
        special: its special tokens, with the ids from 0 on.
        plain: added tokens that are not special, with the last ids.
        writes_bos: encoding with special tokens puts `bos` in front.
        sentencepiece: spaces are written as Gemma and Llama-2 do, and unknown characters as their bytes.
    """
    backend = Tokenizer.from_str(_trained(tuple(special), SIZE - len(plain or []), sentencepiece))
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain or []])
    if writes_bos and bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    names = {"eos_token": eos, "pad_token": pad} | ({"bos_token": bos} if bos else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = template
    return tokenizer


@cache
def _trained(special: tuple[str, ...], size: int, sentencepiece: bool) -> str:
    """A BPE tokenizer as JSON, trained on the shipped prompts."""
    pre = pre_tokenizers.Metaspace(prepend_scheme="first") if sentencepiece else pre_tokenizers.ByteLevel(False)
    first = [f"<0x{byte:02X}>" for byte in range(256)] if sentencepiece else []
    backend = Tokenizer(models.BPE(byte_fallback=sentencepiece, unk_token=None))
    backend.pre_tokenizer = pre
    if sentencepiece:
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*special, *first],
        initial_alphabet=[] if sentencepiece else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(general_prompts(), trainer)
    state = json.loads(backend.to_str())
    # The bytes are ordinary tokens, which nothing in a text matches.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    return json.dumps(state)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "plain": lambda: _make(PLAIN, _CHATML, "<|im_end|>", "<|endoftext|>"),
    "llama32": lambda: _make(LLAMA32, _LLAMA, "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>", writes_bos=True),
    "smollm3": lambda: _make(SMOLLM3, _CHATML, "<|im_end|>", "<|im_end|>", plain=_THINK),
    "phi4mini": lambda: _make(
        PHI4MINI,
        ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        "<|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    "qwen25": lambda: _make(QWEN25, _CHATML, "<|im_end|>", "<|endoftext|>"),
    "qwen3": lambda: _make(QWEN3, _CHATML, "<|im_end|>", "<|endoftext|>", plain=_THINK),
    "qwen3moe": lambda: _make(QWEN3, _CHATML, "<|im_end|>", "<|endoftext|>", plain=_THINK),
    "gemma2": lambda: _make(GEMMA2, _GEMMA, "<eos>", "<pad>", "<bos>", writes_bos=True),
    "gemma3": lambda: _make(GEMMA3, _GEMMA, "<eos>", "<pad>", "<bos>", writes_bos=True),
    "mistral": lambda: _make(
        MISTRAL,
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        "</s>",
        "</s>",
        "<s>",
        writes_bos=True,
        sentencepiece=True,
    ),
    "olmo2": lambda: _make(
        OLMO2,
        ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"],
        "<|endoftext|>",
        "<|pad|>",
        "<|endoftext|>",
    ),
    "gptoss": lambda: _make(GPTOSS, _HARMONY, "<|return|>", "<|endoftext|>", "<|startoftext|>"),
}

GENERATION: dict[str, dict[str, Any]] = {
    "plain": {"eos_token_id": 2, "pad_token_id": 0},
    "llama32": {"eos_token_id": [1, 5, 4], "do_sample": True, "temperature": 0.6, "top_p": 0.9},
    "smollm3": {"eos_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.95},
    "phi4mini": {"eos_token_id": [1, 0]},
    "qwen25": {"eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True, "temperature": 0.7, "top_k": 20},
    "qwen3": {"eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True, "temperature": 0.6, "top_k": 20},
    "qwen3moe": {"eos_token_id": [2, 0], "pad_token_id": 0},
    # The end of a turn is the template's alone: neither the tokenizer nor this names it.
    "gemma2": {"eos_token_id": 1},
    "gemma3": {"eos_token_id": [1, 4], "do_sample": True, "top_k": 64, "top_p": 0.95},
    "mistral": {"eos_token_id": 2},
    "olmo2": {"eos_token_id": 0},
    "gptoss": {"eos_token_id": [2, 1, 7], "pad_token_id": 1},
}
