"""Roles that a model's chat template leaves out or refuses make a bad row, named before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raft_ray import models
from raft_ray.config import settings
from raft_ray.errors import DataError
from raft_ray.preflight import preflight

TEMPLATE = (
    "{%% for m in messages %%}%s<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n%s{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
ANY_ROLE = TEMPLATE % ("", "")
KNOWN_ROLES = TEMPLATE % ("{% if m.role in ['system', 'user', 'assistant'] %}", "{% endif %}")
STRICT = TEMPLATE % ("{% if m.role == 'developer' %}{{ raise_exception('unknown role') }}{% endif %}", "")


def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, split: str) -> None:
    load = models.load_tokenizer

    def with_template(*args: Any) -> Any:
        tokenizer = load(*args)
        tokenizer.chat_template = template
        return tokenizer

    monkeypatch.setattr(models.loading, "load_tokenizer", with_template)
    chat = [("developer", "Be brief, please."), ("user", "What?"), ("assistant", "This.")]
    row = {"messages": [{"role": role, "content": content} for role, content in chat]}
    plain = {"prompt": "What?", "answer": "This."}
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row if name == split else plain) + "\n")
    files = [f"data.train={tmp_path}/train.jsonl", f"data.test={tmp_path}/test.jsonl"]
    preflight(settings.load("smoke", [*files, "refine.enabled=false", "distill.target=gold"]))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_developer_message_is_read_where_the_template_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    read(tmp_path, monkeypatch, ANY_ROLE, split)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (KNOWN_ROLES, "message 1 has role 'developer', which the model's chat template leaves out; call it system"),
        (STRICT, r"the model's chat template refuses a chat of .*\(unknown role\)"),
    ],
)
def test_a_developer_message_that_the_template_does_not_read_is_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, template: str, reason: str
) -> None:
    with pytest.raises(DataError, match=rf"data\.{split}=.*{reason}"):
        read(tmp_path, monkeypatch, template, split)
