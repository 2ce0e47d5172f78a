"""Weight distance: relative l2 per layer, from safetensors folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raft_ray.errors import ModelError
from raft_ray.evaluate.drift import weight_distance

State = dict[str, torch.Tensor]


def _folder(path: Path, state: State, tied: bool = False, shards: int = 1) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    names = sorted(state)
    if shards == 1:
        save_file(state, path / "model.safetensors")
        return str(path)
    weight_map = {name: f"model-{index % shards + 1:05}.safetensors" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: state[name] for name in names if weight_map[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return str(path)


def _state() -> State:
    return {
        "model.embed_tokens.weight": torch.tensor([[3.0, 4.0]]),
        "model.layers.0.mlp.up_proj.weight": torch.tensor([[3.0, 0.0]]),
        "model.layers.0.self_attn.q_proj.weight": torch.tensor([[4.0]]),
        "model.layers.10.mlp.up_proj.weight": torch.tensor([[2.0]]),
        "model.layers.2.mlp.up_proj.weight": torch.tensor([[1.0]]),
        "model.norm.weight": torch.tensor([1.0]),
    }


def _moved() -> State:
    state = {name: tensor.clone() for name, tensor in _state().items()}
    state["model.layers.0.self_attn.q_proj.weight"] += 1.0
    state["model.layers.2.mlp.up_proj.weight"] += 0.5
    return state


def test_a_hand_worked_distance(tmp_path: Path) -> None:
    result = weight_distance(_folder(tmp_path / "base", _state()), _folder(tmp_path / "tuned", _moved()))
    # Layer 0: moved by 1 from a norm of sqrt(9 + 16); all: sqrt(1 + 0.25) of sqrt(25 + 25 + 4 + 1 + 1).
    assert result["layers"] == {"0": pytest.approx(0.2), "2": 0.5, "10": 0.0, "embed": 0.0, "other": 0.0}
    assert list(result["layers"]) == ["0", "2", "10", "embed", "other"]
    assert result["total"] == pytest.approx((1.25 / 56) ** 0.5)


def test_a_model_is_at_distance_0_from_itself(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "base", _state())
    result = weight_distance(folder, folder)
    assert result["total"] == 0.0
    assert set(result["layers"].values()) == {0.0}


def test_shards_and_data_types_do_not_change_the_distance(tmp_path: Path) -> None:
    whole = weight_distance(_folder(tmp_path / "base", _state()), _folder(tmp_path / "tuned", _moved()))
    half = {name: tensor.bfloat16() for name, tensor in _moved().items()}
    assert weight_distance(str(tmp_path / "base"), _folder(tmp_path / "sharded", half, shards=3)) == whole


def test_a_tied_head_counts_once_even_where_it_is_stored(tmp_path: Path) -> None:
    base = _folder(tmp_path / "base", _state(), tied=True)
    moved = _moved()
    moved["lm_head.weight"] = moved["model.embed_tokens.weight"].clone()
    tuned = _folder(tmp_path / "tuned", moved, tied=True)
    assert weight_distance(base, tuned)["total"] == pytest.approx((1.25 / 56) ** 0.5)


def test_an_untied_head_counts(tmp_path: Path) -> None:
    base, tuned = _state(), _state()
    base["lm_head.weight"], tuned["lm_head.weight"] = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    result = weight_distance(_folder(tmp_path / "base", base), _folder(tmp_path / "tuned", tuned))
    assert result["layers"]["other"] == pytest.approx((1 / 2) ** 0.5)


def test_other_names_or_shapes_are_an_error(tmp_path: Path) -> None:
    base = _folder(tmp_path / "base", _state())
    fewer = {name: tensor for name, tensor in _state().items() if "norm" not in name}
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        weight_distance(base, _folder(tmp_path / "fewer", fewer))
    wider = {**_state(), "model.norm.weight": torch.ones(2)}
    with pytest.raises(ModelError, match=r"model\.norm\.weight is \(2,\).*\(1,\)"):
        weight_distance(base, _folder(tmp_path / "wider", wider))


def test_missing_and_broken_files_are_an_error(tmp_path: Path) -> None:
    base = _folder(tmp_path / "base", _state())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        weight_distance(base, str(tmp_path / "empty"))
    sharded = Path(_folder(tmp_path / "sharded", _state(), shards=3))
    (sharded / "model-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00002"):
        weight_distance(base, str(sharded))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not a file")
    with pytest.raises(ModelError, match="not a readable"):
        weight_distance(base, str(tmp_path / "broken"))
