"""FAPM equals its definition, keeps exactly what it says, and leaves folders that load."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file

from raft_ray.compare.fapm import fapm, prune_folder
from raft_ray.errors import ConfigError, ModelError

Matrix = list[list[float]]


def _by_definition(base: torch.Tensor, tuned: torch.Tensor, sparsity: float) -> torch.Tensor:
    """One entry at a time, in Python's floats."""
    old, new = base.flatten().tolist(), tuned.flatten().tolist()
    mean = sum(abs(w) for w in old) / len(old)
    scores = []
    for w, changed in zip(old, new, strict=True):
        delta = abs(changed - w)
        if delta == 0:
            scores.append(0.0)
        elif w == 0:
            scores.append(-float("inf"))
        else:
            scores.append(delta - mean * delta / abs(w))
    order = sorted(range(len(old)), key=lambda place: (-scores[place], place))
    kept = set(order[: round((1 - sparsity) * len(old))])
    values = [new[place] if place in kept else old[place] for place in range(len(old))]
    return torch.tensor(values, dtype=base.dtype).view(base.shape)


def _pair(rows: int, columns: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    base[torch.rand(rows, columns, generator=draw) < 0.1] = 0.0
    change = 0.1 * torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    change[torch.rand(rows, columns, generator=draw) < 0.2] = 0.0
    return base.to(dtype), (base + change).to(dtype)


def test_a_hand_worked_matrix() -> None:
    # mean |W_base| = 2; S = |ΔW| (1 - 2 / |W_base|): 0.5 · (1 - 0.5), 1 · (1 - 2), 1 · (1 - 1), 0.2 · (1 - 2).
    base = {"w": torch.tensor([[4.0, 1.0], [-2.0, 1.0]])}
    tuned = {"w": torch.tensor([[4.5, 2.0], [-3.0, 1.2]])}
    assert fapm(base, tuned, 0.75)["w"].tolist() == [[4.5, 1.0], [-2.0, 1.0]]
    assert fapm(base, tuned, 0.5)["w"].tolist() == [[4.5, 1.0], [-3.0, 1.0]]
    assert fapm(base, tuned, 0.25)["w"].tolist() == torch.tensor([[4.5, 1.0], [-3.0, 1.2]]).tolist()


def test_a_change_of_a_zero_goes_first_and_no_change_scores_0() -> None:
    # mean = 1.5; S: -inf, 0 (unchanged), 0 (unchanged zero), 1 · (1 - 1.5 / 5).
    base = {"w": torch.tensor([0.0, 1.0, 0.0, 5.0])}
    tuned = {"w": torch.tensor([9.0, 1.0, 0.0, 6.0])}
    assert fapm(base, tuned, 0.75)["w"].tolist() == [0.0, 1.0, 0.0, 6.0]
    assert fapm(base, tuned, 0.25)["w"].tolist() == [0.0, 1.0, 0.0, 6.0]
    assert fapm(base, tuned, 0.0)["w"].tolist() == [9.0, 1.0, 0.0, 6.0]


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    seed=st.integers(0, 1000),
    sparsity=st.floats(0, 1),
)
def test_it_equals_its_definition_in_float64(rows: int, columns: int, seed: int, sparsity: float) -> None:
    base, tuned = _pair(rows, columns, seed, torch.float64)
    assert torch.equal(fapm({"w": base}, {"w": tuned}, sparsity)["w"], _by_definition(base, tuned, sparsity))


@given(
    shape=st.sampled_from([(7,), (5, 3), (2, 3, 4)]),
    seed=st.integers(0, 1000),
    sparsity=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_exactly_the_kept_share_is_tuned_and_the_rest_base(
    shape: tuple[int, ...], seed: int, sparsity: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    base = torch.randn(shape).to(dtype)
    # Every entry changes, so that tuned and base tell apart whose it is.
    tuned = base + torch.where(torch.rand(shape) < 0.5, 0.5, 0.25).to(dtype) * (1 + base.abs())
    pruned = fapm({"w": base}, {"w": tuned}, sparsity)["w"]
    assert pruned.dtype is dtype
    assert pruned.shape == base.shape
    assert torch.all((pruned == tuned) | (pruned == base))
    assert int((pruned == tuned).sum()) == round((1 - sparsity) * base.numel())


def test_the_ends_are_the_tuned_model_and_the_base() -> None:
    base, tuned = ({"w": side, "norm": side[0]} for side in _pair(6, 7, 3, torch.bfloat16))
    for sparsity, expected in ((0.0, tuned), (1.0, base)):
        pruned = fapm(base, tuned, sparsity)
        assert all(torch.equal(pruned[name], expected[name]) for name in expected)


def test_equal_scores_are_kept_from_the_front() -> None:
    base, tuned = {"w": torch.full((10,), 2.0)}, {"w": torch.full((10,), 3.0)}
    assert fapm(base, tuned, 0.7)["w"].tolist() == [3.0] * 3 + [2.0] * 7


def test_the_states_are_left_as_they_were() -> None:
    base, tuned = _pair(4, 4, 1, torch.float32)
    before = base.clone(), tuned.clone()
    pruned = fapm({"w": base}, {"w": tuned}, 0.0)["w"]
    pruned.zero_()
    fapm({"w": base}, {"w": tuned}, 1.0)["w"].zero_()
    assert torch.equal(base, before[0])
    assert torch.equal(tuned, before[1])


def test_a_base_of_another_precision_is_taken_in_the_tuned_models() -> None:
    base, tuned = _pair(6, 7, 4, torch.float32)
    coarse = base.bfloat16()
    pruned = fapm({"w": coarse}, {"w": tuned}, 0.5)["w"]
    assert pruned.dtype is torch.float32
    assert torch.equal(pruned, fapm({"w": coarse.float()}, {"w": tuned}, 0.5)["w"])
    assert torch.equal(fapm({"w": coarse}, {"w": tuned}, 1.0)["w"], coarse.float())
    assert torch.equal(fapm({"w": base}, {"w": tuned.bfloat16()}, 1.0)["w"], coarse)


def test_buffers_of_integers_are_the_tuned_models() -> None:
    assert fapm({"n": torch.tensor([1, 2])}, {"n": torch.tensor([3, 4])}, 1.0)["n"].tolist() == [3, 4]


def test_what_does_not_fit_is_refused() -> None:
    one = torch.ones(2, 2)
    with pytest.raises(ModelError, match="different parameters, such as b"):
        fapm({"a": one}, {"a": one, "b": one}, 0.5)
    with pytest.raises(ModelError, match=r"w is \(2, 2\) .* \(4,\) .* in the base"):
        fapm({"w": one.flatten()}, {"w": one}, 0.5)
    with pytest.raises(ModelError, match=r"w is .*float32 in the tuned model, .*int64 in the base"):
        fapm({"w": one.long()}, {"w": one}, 0.5)
    with pytest.raises(ModelError, match="w has weights that are not finite"):
        fapm({"w": one}, {"w": one / 0}, 0.5)
    with pytest.raises(ConfigError, match=r"sparsity=1\.5: must be between 0 and 1"):
        fapm({"w": one}, {"w": one}, 1.5)


@pytest.fixture
def tuned_folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A changed copy of the tiny model, in several shards."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned", max_shard_size="100KB")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "tuned")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 1
    return tmp_path / "tuned"


def test_a_pruned_folder_holds_the_pruned_state_and_loads(tiny_model: Path, tuned_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prune_folder(tiny_model, tuned_folder, tmp_path / "out", 0.9)
    base, tuned = (
        dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters()) for folder in (tiny_model, tuned_folder)
    )
    expected = fapm(base, tuned, 0.9)
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {name for name, _ in pruned.named_parameters()} == set(expected)
    for name, parameter in pruned.named_parameters():
        assert torch.equal(parameter, expected[name])
        assert not torch.equal(parameter, base[name])
    assert pruned.get_output_embeddings().weight is pruned.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in tuned_folder.iterdir()
    )
    assert not list(tmp_path.glob("*.part"))


def test_a_stored_copy_of_a_tied_head_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(tiny_model, tmp_path / "tuned")
    state = load_file(tmp_path / "tuned" / "model.safetensors")
    state["lm_head.weight"] = copy.deepcopy(state["model.embed_tokens.weight"])
    save_file(state, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    prune_folder(tiny_model, tmp_path / "tuned", tmp_path / "out", 0.5)
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(state) - {"lm_head.weight"}


def test_a_folder_that_cannot_be_written_or_read_is_refused(
    tiny_model: Path, tuned_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="out: exists already"):
        prune_folder(tiny_model, tuned_folder, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty: no \*\.safetensors weights there"):
        prune_folder(tmp_path / "empty", tuned_folder, tmp_path / "new")
    index = tuned_folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    names["weight_map"]["odd.weight"] = names["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(names))
    with pytest.raises(ModelError, match=r"parameters are not those of .*odd\.weight"):
        prune_folder(tiny_model, tuned_folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()
