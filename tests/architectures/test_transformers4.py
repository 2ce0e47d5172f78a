"""What an exported model says to transformers 4, which `make env` installs beside (`.venv/transformers4`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft_ray.models.transformers4 import add_old_keys

from .models import CONFIGS, write_model

LIBRARY = Path(sys.prefix) / "transformers4"
TEXT = "What is the chemical symbol of iron? <|im_end|>"
IDS = torch.arange(3, 60)[None]

READ = """
import sys
from pathlib import Path
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
assert __version__.startswith("4."), __version__
found = {}
for folder in map(Path, sys.argv[3:]):
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found[f"{folder.name} logits"] = model(input_ids=torch.arange(3, 60)[None]).logits.numpy()
    found[f"{folder.name} ids"] = np.array(AutoTokenizer.from_pretrained(folder)(sys.argv[2]).input_ids)
np.savez(sys.argv[1], **found)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every architecture in the form in which an export is written."""
    root = tmp_path_factory.mktemp("exports")
    found = {name: write_model(name, root / name) for name in CONFIGS}
    for folder in found.values():
        add_old_keys(folder)
    return found


def test_transformers_4_reads_the_same_logits_and_ids_from_an_export(folders: dict[str, Path], tmp_path: Path) -> None:
    assert (LIBRARY / "transformers").is_dir(), "run make env"
    out = tmp_path / "found.npz"
    environment = os.environ | {"PYTHONPATH": str(LIBRARY)}
    command = [sys.executable, "-c", READ, str(out), TEXT, *map(str, folders.values())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(out)
    for name, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            logits = model(input_ids=IDS).logits.numpy()
        assert np.allclose(found[f"{name} logits"], logits, rtol=1e-4, atol=1e-4), name
        assert found[f"{name} ids"].tolist() == AutoTokenizer.from_pretrained(folder)(TEXT).input_ids, name
