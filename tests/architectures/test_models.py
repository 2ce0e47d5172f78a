"""Every architecture: what is trained, scored and exported is what the model itself computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from actors.engine.weights import adapter_tensors, full_tensors
from raft_ray import models
from raft_ray.config import Dtype, LoraConfig, ModelConfig
from raft_ray.distill.order import SampleId
from raft_ray.distill.student import Student, answer_logprobs, make_micro_batches, sharing_error
from raft_ray.distill.teacher import score
from raft_ray.distill.trajectory import Sample, Trajectory
from raft_ray.models.adapters import adapter_files, add_adapter
from raft_ray.models.head import Head
from raft_ray.models.prompts import EncodedRow

from .models import CONFIGS, SHARING, make_model, write_model

FLOAT32 = ModelConfig(dtype=Dtype.float32)
CPU = torch.device("cpu")
T = 1.5


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """Name, model as the system loads it, and folder."""
    name = str(request.param)
    folder = write_model(name, tmp_path_factory.mktemp(name))
    return name, models.load_model(str(folder), FLOAT32).eval(), folder


def rows(long: bool = False) -> tuple[list[EncodedRow], list[np.ndarray]]:
    """Two rows and their responses."""
    drawn = torch.Generator().manual_seed(5)
    ids = lambda count: torch.randint(3, 500, (count,), generator=drawn).tolist()  # noqa: E731
    sizes = [(30, 12, 18), (9, 6, 11)] if long else [(5, 4, 6), (4, 3, 2)]
    found = [EncodedRow(i, ids(prompt), ids(answer), []) for i, (prompt, answer, _) in enumerate(sizes)]
    return found, [np.array(ids(size), np.int32) for _, _, size in sizes]


def plain_logits(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """[tokens of the response, V], of the model's own forward over one sequence."""
    logits: torch.Tensor = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0].float()
    return logits[len(prompt) - 1 : -1]


def samples(model: Any, found: list[EncodedRow], responses: list[np.ndarray], top_k: int) -> list[Sample]:
    """Scored by a teacher that reads what the student reads."""
    targets = score(model, [row.prompt for row in found], responses, top_k=top_k, tokens=512)
    made = []
    for row, ids, (teacher_ids, values, _) in zip(found, responses, targets, strict=True):
        made.append(Sample(Trajectory(SampleId(0, row.row), 0, ids, False, "r"), teacher_ids, values))
    return made


def test_the_teachers_targets_are_the_models_own_log_probabilities(named: tuple[str, Any, Path]) -> None:
    _, model, _ = named
    found, responses = rows(long=True)
    for row, ids, sample in zip(found, responses, samples(model, found, responses, 10**6), strict=True):
        with torch.no_grad():
            want = plain_logits(model, row.prompt, ids.tolist()).log_softmax(-1)
        got = torch.zeros_like(want).scatter_(
            1, torch.from_numpy(sample.teacher_ids).long(), torch.from_numpy(sample.teacher_logprobs).float()
        )
        # They travel as float16.
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [True, False])
def test_losses_and_gradients_are_those_of_the_models_own_logits(named: tuple[str, Any, Path], share: bool) -> None:
    name, model, _ = named
    share = share and SHARING[name]
    found, responses = rows(long=True)
    scored = samples(make_model(name, seed=1), found, responses, 32)
    plain = torch.zeros(2)
    for row, ids, sample in zip(found, responses, scored, strict=True):
        sft = torch.nn.functional.cross_entropy(plain_logits(model, row.prompt, row.answer), torch.tensor(row.answer))
        student = (plain_logits(model, row.prompt, ids.tolist()) / T).gather(
            1, torch.from_numpy(sample.teacher_ids).long()
        )
        q = (torch.from_numpy(sample.teacher_logprobs).float() / T).log_softmax(-1)
        kl = torch.nn.functional.kl_div(student.log_softmax(-1), q, reduction="batchmean", log_target=True)
        plain = plain + torch.stack([sft, T * T * kl]) / len(found)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    want = torch.autograd.grad(plain.sum(), parameters, allow_unused=True)
    batches = make_micro_batches(found, scored, total=2, tokens=1000, share_prompt=share)
    losses = sum(Student(model, T)(batch) for batch in batches)[:2]
    got = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
    assert torch.allclose(losses, plain, rtol=1e-4)
    for one, other in zip(got, want, strict=True):
        if one is not None or other is not None:
            assert torch.allclose(one, other, rtol=1e-2, atol=1e-4 * float(other.abs().max()) + 1e-7)


def test_sharing_is_shown_or_refused_by_what_it_does_to_a_long_row(named: tuple[str, Any, Path]) -> None:
    name, model, _ = named
    (row, _), (response, _) = rows(long=True)
    error = sharing_error(Student(model, T).eval(), row, response.tolist(), CPU)
    assert error < 1e-4 if SHARING[name] else error > 1e-2


def test_the_kl_of_a_teacher_that_reads_what_the_student_reads_is_0_at_the_first_step(
    named: tuple[str, Any, Path],
) -> None:
    name, model, _ = named
    found, responses = rows(long=True)
    scored = samples(model, found, responses, 64)
    student = Student(model, T)
    # As the learner trains it: in training mode, with nothing at random.
    student.train()
    with torch.no_grad():
        for batch in make_micro_batches(found, scored, total=2, tokens=1000, share_prompt=SHARING[name]):
            assert float(student(batch)[1]) <= 1e-5
    student.eval()


def test_an_exported_model_has_the_original_names_and_loads_to_equal_logits(
    named: tuple[str, Any, Path], tmp_path: Path
) -> None:
    from huggingface_hub import save_torch_state_dict

    name, _, folder = named
    trained = make_model(name, seed=2)
    save_torch_state_dict(models.checkpoint_tensors(str(folder), FLOAT32, dict(full_tensors(trained, 0))), tmp_path)
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with safe_open(folder / "model.safetensors", "pt") as one, safe_open(tmp_path / "model.safetensors", "pt") as two:
        assert set(one.keys()) == set(two.keys())
    loaded = models.load_model(str(tmp_path), FLOAT32)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(
            loaded(input_ids=ids).logits, models.load_model(str(tmp_path), FLOAT32)(input_ids=ids).logits
        )
        assert torch.allclose(loaded(input_ids=ids).logits, trained(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_an_answers_log_probabilities_are_the_models_own(named: tuple[str, Any, Path]) -> None:
    _, model, _ = named
    (row, _), _ = rows(long=True)
    with torch.no_grad():
        want = plain_logits(model, row.prompt, row.answer).log_softmax(-1)
    found = torch.tensor(answer_logprobs(Student(model, T).eval(), row, CPU))
    assert torch.allclose(found, want.gather(1, torch.tensor(row.answer)[:, None])[:, 0], atol=1e-4)
    assert Head.of(model).rows == want.shape[1]


def with_adapter(model: Any) -> Any:
    """A copy with an adapter whose parameters are none of its first."""
    learner = copy.deepcopy(model)
    add_adapter(learner, LoraConfig(rank=2, alpha=4), seed=0)
    drawn = torch.Generator().manual_seed(0)
    for parameter in learner.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=drawn))
    return learner


def test_merged_adapters_compute_what_the_learner_computes_under_the_models_names(named: tuple[str, Any, Path]) -> None:
    _, model, _ = named
    engine, learner, ids = copy.deepcopy(model), copy.deepcopy(model), torch.arange(3, 60)[None]
    add_adapter(learner, LoraConfig(rank=2, alpha=4), seed=0)
    with torch.no_grad():
        assert torch.equal(learner(input_ids=ids).logits, model(input_ids=ids).logits)
        learner = with_adapter(model)
        sent = dict(full_tensors(learner, 0))
        assert list(sent) == [name for name, _ in full_tensors(model, 0)]
        assert not engine.load_state_dict(sent, strict=False).unexpected_keys
        assert torch.allclose(engine(input_ids=ids).logits, learner(input_ids=ids).logits, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(engine(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-2)


def test_an_adapter_that_was_written_is_the_learners_model_on_its_base(
    named: tuple[str, Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFT_RAY_CACHE", str(tmp_path))
    _, model, folder = named
    learner, adapter = with_adapter(model), tmp_path / "adapter"
    adapter.mkdir()
    for file, content in adapter_files(learner, dict(adapter_tensors(learner, 0)), str(folder)).items():
        (adapter / file).write_bytes(content)
    name = f"{folder} + {adapter}"
    models.check_weights(name, FLOAT32)
    sent, loaded = dict(full_tensors(learner, 0)), dict(full_tensors(models.load_model(name, FLOAT32), 0))
    assert loaded.keys() == sent.keys()
    assert all(torch.equal(loaded[name], sent[name]) for name in sent)
