"""What is found wrong with rows, templates and methods before anything starts, and what training makes of the rest."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from architectures.tokenizers import GENERATION, TOKENIZERS
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raft_ray import models
from raft_ray.cli.app import load
from raft_ray.cli.prompts import print_prompts
from raft_ray.config import Config, Method, ModelConfig, settings
from raft_ray.errors import ConfigError, DataError, ModelError
from raft_ray.preflight import encode, preflight
from raft_ray.runs.folders import check_run_dir

GOOD = {"prompt": "What is iron?", "answer": "A metal."}
WITH_SYSTEM = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is ice?"},
        {"role": "assistant", "content": "Water."},
    ]
}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder whose tokenizer, template and generation config `shaped` changes."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(tiny_model / name)
    return shaped(folder, "plain")


def shaped(folder: Path, name: str) -> Path:
    TOKENIZERS[name]().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION[name]))
    return folder


def config(tmp_path: Path, rows: list[dict[str, object]], *overrides: str) -> Config:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [
        f"data.train={tmp_path}/train.jsonl",
        "data.test=null",
        "distill.target=gold",
        "refine.enabled=false",
    ]
    return settings.load("smoke", [*keys, f"model.path={tmp_path}/model", *overrides])


def test_a_row_that_the_template_refuses_is_named_or_left_out(model: Path, tmp_path: Path) -> None:
    shaped(model, "gemma2")
    rows: list[dict[str, object]] = [GOOD, WITH_SYSTEM]
    with pytest.raises(DataError, match=r"line 2: .*refuses a chat of system, user \(There is no system role\)"):
        preflight(config(tmp_path, rows))
    left = preflight(config(tmp_path, rows, "data.on_bad_row=skip"))
    assert [row.line for row in left.train] == [1]
    assert [row.line for row in left.train.bad] == [2]


def test_a_row_that_the_rewriters_template_refuses_is_named(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).symlink_to(model / name)
    shaped(other, "mistral")
    keys = ("refine.enabled=true", f"refine.models.big.path={other}")
    rows: list[dict[str, object]] = [GOOD, WITH_SYSTEM]
    assert len(preflight(config(tmp_path, rows, *keys)).train) == 2
    with pytest.raises(DataError, match=r"line 2: .*refuses a chat of system, user"):
        preflight(config(tmp_path, rows, *keys, "refine.rewriter=big"))


def test_where_generation_config_and_template_differ_is_a_note_before_training(model: Path, tmp_path: Path) -> None:
    assert preflight(config(tmp_path, [GOOD])).notes == []
    shaped(model, "gemma2")
    (note,) = preflight(config(tmp_path, [GOOD])).notes
    assert "ends a turn with <end_of_turn>" in note


def test_a_refine_models_template_is_refused_under_its_own_key(model: Path, tmp_path: Path) -> None:
    thinks = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    (model / "chat_template.jinja").write_text(thinks)
    keys = ("refine.enabled=true", "model.path=random:tiny", f"refine.models.big.path={model}", "refine.rewriter=big")
    with pytest.raises(ModelError, match=rf"refine.models.big.path={model}: .*set refine.models.big.thinking=true"):
        preflight(config(tmp_path, [GOOD], *keys))
    assert preflight(config(tmp_path, [GOOD], *keys, "refine.models.big.thinking=true")).train


@pytest.mark.parametrize(("method", "fits"), [("sft", True), ("opd", True), ("raft", False)])
def test_a_baseline_whose_teachers_prompt_does_not_fit_is_refused_before_anything_starts(
    model: Path, tmp_path: Path, method: str, fits: bool
) -> None:
    long = {"prompt": "Why?", "answer": "Because. " * 25}
    main = config(tmp_path, [GOOD, long], "distill.method=sdft", "model.context=230")
    other = replace(main, distill=replace(main.distill, method=Method(method)))
    assert len(preflight(main).train) == 2
    if fits:
        preflight(main, others=[other])
    else:
        with pytest.raises(DataError, match="line 2: the teacher's prompt has"):
            preflight(main, others=[other])


def test_a_fused_answer_that_does_not_fit_follows_on_bad_row(model: Path, tmp_path: Path) -> None:
    made = config(tmp_path, [GOOD, GOOD], "refine.enabled=true", "distill.target=fused", "distill.method=sft")
    first, second = preflight(made).train
    rows = [replace(first, fused="Iron is a metal."), replace(second, fused="long " * 600)]
    with pytest.raises(DataError, match=r"row 2: .*do not fit.*data.on_bad_row=skip"):
        encode(made, str(model), rows)
    made = config(
        tmp_path,
        [GOOD, GOOD],
        "refine.enabled=true",
        "distill.target=fused",
        "distill.method=sft",
        "data.on_bad_row=skip",
    )
    encoded, unfit = encode(made, str(model), rows)
    chat = models.load_chat(str(model), made.model)
    assert [chat.text(encoded[row].answer) for row in (0, 1)] == ["Iron is a metal.", "A metal."]
    ((line, reason),) = [(row.line, row.reason) for row in unfit]
    assert line == 2
    assert reason.startswith("fused answer: ")
    assert reason.endswith("trained on its gold answer")


def test_a_fused_answer_that_cannot_be_encoded_is_named_with_its_row(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tmp_path, [GOOD], "refine.enabled=true", "distill.target=fused", "distill.method=sft")
    rows = [replace(preflight(made).train[0], fused="<|im_end|> ends a turn.")]
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(DataError, match=r"train.jsonl: row 1: the text names the marker <\|im_end\|>"):
        encode(made, str(model), rows)


def test_a_gold_answer_that_does_not_fit_is_refused_whatever_on_bad_row_says(model: Path, tmp_path: Path) -> None:
    made = config(tmp_path, [GOOD], "distill.method=sft", "data.on_bad_row=skip")
    rows = [replace(preflight(made).train[0], answer="long " * 600)]
    with pytest.raises(DataError, match=r"row 1: .*do not fit"):
        encode(made, str(model), rows)


@pytest.mark.parametrize("thinking", [False, True])
def test_the_exported_tokenizer_thinks_by_default_as_the_run_did(model: Path, tmp_path: Path, thinking: bool) -> None:
    shaped(model, "qwen3")
    chat = [{"role": "user", "content": "Hi"}]
    given = ModelConfig(path=str(model), thinking=thinking)
    models.load_tokenizer(str(model), given).save_pretrained(tmp_path / "exported")
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    text = exported.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("assistant\n" if thinking else "assistant\n<think>\n\n</think>\n\n")
    assert models.load_chat(str(model), given).prompt(chat) == exported.encode(text, add_special_tokens=False)


def test_show_prompts_shows_what_the_rewriter_reads_and_where_generation_stops(model: Path, tmp_path: Path) -> None:
    shaped(model, "qwen3")
    console = Console(file=io.StringIO(), width=200)
    print_prompts(config(tmp_path, [GOOD], "refine.enabled=true"), 0, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rewriter = text[text.index("rewriter (self) reads") :]
    assert "What is iron?" in rewriter
    assert "A metal." in rewriter
    assert rewriter.rstrip().endswith("</think>")
    assert "Generation stops on <|endoftext|> (0), <|im_end|> (2). Thinking: off." in text


def test_show_prompts_shows_the_chat_that_an_endpoint_is_sent(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), width=200)
    far = ("refine.models.far.base_url=http://localhost:1/v1", "refine.models.far.model=m", "refine.rewriter=far")
    print_prompts(config(tmp_path, [GOOD], "refine.enabled=true", *far), 0, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "user: " in text[text.index("rewriter (far, by its own chat template)") :]


def test_the_day_is_fixed_when_a_config_is_read_and_kept_by_a_resumed_run(tmp_path: Path) -> None:
    keys = ["data.train=train.jsonl", "data.test=null"]
    run = str(tmp_path / "run")
    first = load("raft", [*keys, "model.date=2026-01-31"], run_dir=run)
    assert first.model.date == "2026-01-31"
    assert load("raft", keys, run_dir=run).model.date == date.today().isoformat()
    Path(run).mkdir()
    settings.save(first, Path(run) / "config.yaml")
    for resumed in (load("raft", keys, resume=True, run_dir=run), load(run, [], resume=True)):
        assert resumed.model.date == "2026-01-31"
        check_run_dir(resumed)
    another = load(run, ["model.date=2026-02-01"], resume=True)
    with pytest.raises(ConfigError, match=r"model.date=2026-02-01: .*2026-01-31"):
        check_run_dir(another)
