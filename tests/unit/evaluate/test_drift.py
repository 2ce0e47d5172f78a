"""Drift equals its definition in float64, whatever the chunk and the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from raft_ray.errors import ModelError
from raft_ray.evaluate.drift import Drift, Reference
from raft_ray.models.head import Head, Pair


def _llama(seed: int = 0, vocabulary: int = 61, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.5,
            tie_word_embeddings=tied,
        )
    ).eval()


def _gemma(seed: int = 0) -> PreTrainedModel:
    """A model that caps its logits."""
    torch.manual_seed(seed)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=2.0,
            initializer_range=0.5,
            attn_implementation="eager",
        )
    ).eval()


def _pairs() -> list[Pair]:
    draw = torch.Generator().manual_seed(3)
    lengths = ((3, 7), (5, 1), (1, 4), (9, 12))
    return [
        (torch.randint(61, (a,), generator=draw).tolist(), torch.randint(61, (b,), generator=draw).tolist())
        for a, b in lengths
    ]


def _perturbed(model: PreTrainedModel, size: float = 0.05) -> PreTrainedModel:
    tuned = copy.deepcopy(model)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return tuned


def drift(
    base: PreTrainedModel, tuned: PreTrainedModel, pairs: list[Pair], chunk_size: int = 256, tokens: int = 4096
) -> Drift:
    return Reference(base, pairs, tokens=tokens).compare(tuned, chunk_size=chunk_size)


def _by_definition(base: PreTrainedModel, tuned: PreTrainedModel, pairs: list[Pair]) -> tuple[float, float, float, int]:
    """One sequence and one position at a time, softmax and KL in float64."""
    divergences, agreements, first = [], [], []
    for prompt, response in pairs:
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            both = [model(ids).logits[0].double().softmax(-1) for model in (base, tuned)]
        for place in range(len(response)):
            p, q = (probabilities[len(prompt) + place - 1] for probabilities in both)
            divergences.append(float((p * (p / q).log()).sum()))
            agreements.append(bool(p.argmax() == q.argmax()))
            if place == 0:
                first.append(divergences[-1])
    tokens = len(divergences)
    return sum(divergences) / tokens, sum(first) / len(first), sum(agreements) / tokens, tokens


@pytest.mark.parametrize("make", [_llama, _gemma])
def test_drift_equals_its_definition(make: type) -> None:
    base = make()
    tuned = _perturbed(base)
    kl, kl_first, agreement, tokens = _by_definition(base, tuned, _pairs())
    for chunk_size, batch in ((1, 1), (5, 20), (256, 4096)):
        result = drift(base, tuned, _pairs(), chunk_size=chunk_size, tokens=batch)
        assert result.kl == pytest.approx(kl, rel=1e-4)
        assert result.kl_first == pytest.approx(kl_first, rel=1e-4)
        assert result.top1_agreement == agreement
        assert (result.tokens, result.rows) == (tokens, 4) == (24, 4)
    assert kl > 0.01
    assert kl_first != pytest.approx(kl, rel=0.01)
    assert 0 < agreement < 1


def test_an_unchanged_model_has_drift_0() -> None:
    base = _llama()
    result = drift(base, copy.deepcopy(base), _pairs())
    assert result.kl == result.kl_first == 0.0
    assert result.top1_agreement == 1.0
    assert Reference(base, _pairs()).unchanged() == result


def test_drift_grows_with_the_change_and_has_a_direction() -> None:
    base = _llama()
    small, large = (drift(base, _perturbed(base, size), _pairs()).kl for size in (0.01, 0.1))
    assert 0 < small < large
    assert drift(_perturbed(base), base, _pairs()).kl != pytest.approx(
        drift(base, _perturbed(base), _pairs()).kl, rel=1e-3
    )


def test_one_reference_serves_many_models() -> None:
    base = _llama()
    reference = Reference(base, _pairs())
    for size in (0.02, 0.05):
        tuned = _perturbed(base, size)
        assert reference.compare(tuned) == drift(base, tuned, _pairs())


def test_no_logits_of_more_than_a_chunk_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    base = _llama()
    seen: list[int] = []
    own = Head.logits

    def watch(head: Head, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return own(head, hidden)

    reference = Reference(base, _pairs())
    tuned = _perturbed(base)
    monkeypatch.setattr(Head, "logits", watch)
    # The models' own heads must not run at all.
    monkeypatch.setattr(torch.nn.Linear, "forward", _refuse_vocabulary(torch.nn.Linear.forward))
    reference.compare(tuned, chunk_size=5)
    assert seen
    assert max(seen) == 5


def _refuse_vocabulary(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def checked(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        assert layer.out_features != 61, "the model's own head ran"
        return forward(layer, x)

    return checked


def test_empty_answers_are_left_out_and_nothing_at_all_is_an_error() -> None:
    base = _llama()
    pairs = [*_pairs(), ([1, 2], [])]
    assert drift(base, _perturbed(base), pairs) == drift(base, _perturbed(base), _pairs())
    with pytest.raises(ValueError, match="at least one response token"):
        drift(base, base, [([1, 2], [])])


def test_another_vocabulary_is_an_error() -> None:
    with pytest.raises(ModelError, match="62 output tokens, its base 61"):
        drift(_llama(), _llama(vocabulary=62), _pairs())
