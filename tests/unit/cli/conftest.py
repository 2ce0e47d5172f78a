"""Files for the commands, good and bad."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

GOOD = {"prompt": "What is the symbol of iron?", "answer": "Fe"}


@pytest.fixture
def files(workspace: Path, tiny_model: Path) -> Path:
    """Data, configs and model folders, good and bad, in the current folder."""
    write_rows("good.jsonl", [GOOD] * 4)
    write_rows("other.jsonl", [{"prompt": "And of gold?", "answer": "Au"}])
    write_rows("empty.jsonl", [])
    write_rows("wrong_field.jsonl", [GOOD, {"query": "?", "answer": "Fe"}])
    write_rows("blank_answer.jsonl", [GOOD, GOOD, {"prompt": "?", "answer": " "}])
    write_rows("long.jsonl", [GOOD, {"prompt": "iron " * 3000, "answer": "Fe"}])
    Path("broken.jsonl").write_text(json.dumps(GOOD) + "\n{not json\n")
    Path("rows.csv").write_text("prompt,answer\na,b,c\n")
    Path("rows.xlsx").touch()
    Path("syntax.yaml").write_text("learner:\n  lr: [1\n")
    Path("list.yaml").write_text("- a\n")
    Path("unknown.yaml").write_text("extends: smoke\nlearner:\n  learning_rate: 1\n")
    model = "{base_url: http://localhost, model: m, api_key_env: NO_SUCH_KEY}"
    Path("judged.yaml").write_text(f"extends: smoke\nrefine: {{models: {{big: {model}}}}}\neval: {{judges: [big]}}\n")
    Path("judged_here.yaml").write_text(
        "extends: smoke\nrefine: {models: {near: {path: ./none}}}\neval: {judges: [near]}\n"
    )
    Path("orphan.yaml").write_text("extends: smok\n")
    Path("twice.yaml").write_text("learner:\n  lr: 1\n  lr: 2\n")
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")
    Path("empty_folder").mkdir()
    for name, broken in {
        "no_tokenizer": without_tokenizer,
        "no_template": without_template,
        "pickled": pickled,
        "broken_generation": broken_generation,
        "torn": torn,
    }.items():
        shutil.copytree(tiny_model, name)
        broken(Path(name))
    shutil.copytree(tiny_model, "other_vocabulary")
    config = json.loads(Path("other_vocabulary/config.json").read_text())
    Path("other_vocabulary/config.json").write_text(json.dumps(config | {"vocab_size": 600}))
    return workspace


def write_rows(name: str, rows: list[dict[str, str]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings_file = folder / "tokenizer_config.json"
    kept = json.loads(settings_file.read_text())
    kept.pop("chat_template", None)
    settings_file.write_text(json.dumps(kept))


def broken_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"temperature": ')


def torn(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\0" * 100)


def pickled(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.rename(folder / "pytorch_model.bin")
