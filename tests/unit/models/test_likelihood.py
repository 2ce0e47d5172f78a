"""Log-likelihoods equal their definition, whatever the batch, and choices are made as lm-eval makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from raft_ray.models import likelihood as module
from raft_ray.models.head import Pair
from raft_ray.models.likelihood import Choices, choose, cut, encode_pair, log_likelihoods

VOCABULARY = 61


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.5,
        )
    ).eval()


def _by_definition(model: PreTrainedModel, context: list[int], continuation: list[int]) -> float:
    """One token at a time, softmax in float64."""
    total = 0.0
    for place, token in enumerate(continuation):
        with torch.no_grad():
            logits = model(torch.tensor([context + continuation[:place]])).logits[0, -1].double()
        total += float(logits.softmax(-1)[token].log())
    return total


PAIRS: list[Pair] = [
    ([1, 2, 3], [4]),
    ([1, 2, 3], [5]),
    ([1, 2, 3], [5, 6, 7]),
    ([1, 2, 3], [5, 6, 8]),
    # The same tokens, cut elsewhere.
    ([1, 2, 3, 5], [6, 7]),
    ([9], [9, 9, 9, 9, 9, 9]),
    ([1, 2, 3], [4]),
]


@pytest.mark.parametrize(("tokens", "chunk_size"), [(1, 1), (8, 3), (4096, 256)])
def test_they_equal_their_definition(model: PreTrainedModel, tokens: int, chunk_size: int) -> None:
    found = log_likelihoods(model, PAIRS, tokens=tokens, chunk_size=chunk_size)
    assert found == pytest.approx([_by_definition(model, *pair) for pair in PAIRS], abs=1e-4)


def test_continuations_of_one_token_share_a_pass(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    own = module.response_hidden
    monkeypatch.setattr(
        module, "response_hidden", lambda model, pairs, **kw: seen.extend(pairs) or own(model, pairs, **kw)
    )
    log_likelihoods(model, [([1, 2], [token]) for token in range(4)])
    assert len(seen) == 1


def test_the_most_likely_choice_and_the_most_likely_a_character(model: PreTrainedModel) -> None:
    context = [3, 1]
    ids = [[4], [5, 6, 7, 8, 9]]
    short, long = (_by_definition(model, context, one) for one in ids)
    assert short > long
    # Long enough that a character of the second is likelier.
    characters = [1, int(2 * long / short) + 1]
    (chosen,) = choose(model, [Choices(context, ids, characters, right=1)], limit=100)
    assert chosen.logprobs == pytest.approx([short, long], abs=1e-4)
    assert (chosen.by_sum, chosen.by_length) == (0, 1)


def test_equal_choices_are_decided_for_the_first(model: PreTrainedModel) -> None:
    (chosen,) = choose(model, [Choices([1], [[2], [2]], [1, 1], right=1)], limit=100)
    assert (chosen.by_sum, chosen.by_length) == (0, 0)


def test_a_long_context_loses_its_left(model: PreTrainedModel) -> None:
    (chosen,) = choose(model, [Choices([1, 2, 3, 4, 5], [[6], [7, 8]], [1, 2], right=0)], limit=3)
    expected = [_by_definition(model, [3, 4, 5], [6]), _by_definition(model, [4, 5], [7, 8])]
    assert chosen.logprobs == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="4 tokens leaves no context within 3"):
        cut([1, 2], [1, 2, 3, 4], 3)


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    context, continuation = encode_pair(tokenizer, "Answer:  ", "A")
    assert tokenizer.decode(context) == "Answer:"
    assert tokenizer.decode(continuation) == "  A"
