"""WiSE-FT lies where α says between two models, and is one of them at either end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raft_ray.compare.wise import interpolate_folder, interpolate_tensor
from raft_ray.errors import ConfigError, ModelError

BASE = torch.tensor([-0.0, 1.0, -2.0, 3e-5])
TUNED = torch.tensor([1.0, -1.0, -2.0, 7e-5])


def _bits(tensor: torch.Tensor) -> list[int]:
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32).tolist()


def test_a_worked_example() -> None:
    assert interpolate_tensor(BASE, TUNED, alpha=0.25).tolist() == pytest.approx([0.25, 0.5, -2.0, 4e-5], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_are_base_and_tuned_model_bit_for_bit(dtype: torch.dtype) -> None:
    base, tuned = BASE.to(dtype), TUNED.to(dtype)
    assert _bits(interpolate_tensor(base, tuned, alpha=0)) == _bits(base)
    assert _bits(interpolate_tensor(base, tuned, alpha=1)) == _bits(tuned)


def test_half_precision_is_interpolated_in_float32_and_rounded_once() -> None:
    torch.manual_seed(0)
    base, tuned = torch.randn(2, 1000).bfloat16()
    found = interpolate_tensor(base, tuned, alpha=0.3)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, (0.7 * base.float() + 0.3 * tuned.float()).bfloat16())
    assert not torch.equal(found, 0.7 * base + 0.3 * tuned)
    # Another precision of the base changes nothing but its rounding.
    assert interpolate_tensor(base.float(), tuned, alpha=0.3).dtype is torch.bfloat16


def test_buffers_of_integers_stay_the_tuned_models() -> None:
    assert interpolate_tensor(torch.tensor([1]), torch.tensor([3]), alpha=0.5).tolist() == [3]


def test_what_cannot_be_interpolated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"WiSE-FT: w is .* in the tuned model"):
        interpolate_tensor(BASE, TUNED[:2], "w", alpha=0.5)
    with pytest.raises(ModelError, match="WiSE-FT: w has weights that are not finite"):
        interpolate_tensor(BASE / 0, TUNED, "w", alpha=0.5)
    with pytest.raises(ConfigError, match=re.escape("alpha=1.5: must be between 0 and 1")):
        interpolate_folder(tmp_path, tmp_path, tmp_path / "out", 1.5)


def test_a_folder_keeps_its_files_and_holds_the_interpolated_weights(tmp_path: Path) -> None:
    for name, tensor in (("base", BASE), ("tuned", TUNED)):
        (tmp_path / name).mkdir()
        save_file({"w": tensor}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(f'{{"of": "{name}"}}')
    interpolate_folder(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.5)
    assert (tmp_path / "out/config.json").read_text() == '{"of": "tuned"}'
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")["w"], 0.5 * BASE + 0.5 * TUNED)
    with pytest.raises(ModelError, match="out: exists already"):
        interpolate_folder(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.5)
