"""The comparison of evaluations, and what it says in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from plain_comparison import compare

from raft_ray.compare.verdict import summary, verdict

QUESTIONS = 200


def _block(right: int, drift: float, ifeval: int = 20, first: int = 0) -> dict[str, Any]:
    """An evaluation with `right` questions answered right, from question `first` on."""
    correct = [first <= place < first + right for place in range(QUESTIONS)]
    followed = [place < ifeval for place in range(100)]
    mmlu = [place < 30 for place in range(60)]
    return {
        "domain": {"accuracy": right / QUESTIONS, "n": QUESTIONS, "correct": correct},
        "ifeval": {"prompt_strict": ifeval / 100, "n": 100, "correct": followed},
        "mmlu": {"5-shot": {"accuracy": 0.5, "n": 60, "correct": mmlu}},
        "length": {"words_mean": 80.0},
        "drift": {"kl": drift, "kl_first": 2 * drift, "top1_agreement": 0.9},
        "weight_distance": {"total": 0.02},
    }


def _methods(**others: Any) -> dict[str, Any]:
    return {"base": [_block(20, 0.0)], "sft": [_block(100, 0.5, ifeval=15)], **others}


def test_a_comparison_holds_means_retention_tests_and_the_front() -> None:
    result = compare(_methods(raft=[_block(90, 0.1, ifeval=20), _block(110, 0.2, ifeval=18)]))
    json.dumps(result)
    raft = result["methods"]["raft"]
    assert raft["seeds"] == 2
    assert raft["scores"]["domain"]["mean"] == pytest.approx(0.5)
    assert raft["scores"]["domain"]["base"] == pytest.approx(0.1)
    assert raft["scores"]["domain"]["retention"] == pytest.approx(5.0)
    assert raft["scores"]["ifeval"]["retention"] == pytest.approx(0.19 / 0.2)
    assert raft["scores"]["ifeval"]["retention_low"] < 0.19 / 0.2 <= raft["scores"]["ifeval"]["retention_high"]
    mmlu = raft["scores"]["mmlu 5-shot"]
    assert mmlu["retention"] == mmlu["retention_low"] == mmlu["retention_high"] == 1.0
    assert result["methods"]["base"]["scores"]["ifeval"]["retention"] is None
    assert raft["scores"]["domain"]["against"]["difference"]["mean"] == pytest.approx(0.0)
    assert raft["drift"]["mean"] == pytest.approx(0.15)
    assert raft["dominated_by"] == []
    assert result["methods"]["sft"]["dominated_by"] == ["raft"]
    assert result["methods"]["sft"]["scores"]["domain"]["against"] is None
    assert result["front"] == ["raft", "base"]


def test_what_was_not_measured_is_none_and_not_0() -> None:
    bare: dict[str, Any] = {"domain": None, "ifeval": None, "mmlu": None, "length": None, "drift": None}
    result = compare(_methods(raft=[bare]))
    raft = result["methods"]["raft"]
    assert raft["scores"] == {"domain": None, "ifeval": None, "mmlu 5-shot": None}
    assert (raft["drift"], raft["weight_distance"], raft["dominated_by"]) == (None, None, None)
    assert result["front"] == ["sft", "base"]
    assert summary(result) == "Nothing can be said of RAFT's promise: domain accuracy was not measured for it and SFT."
    assert "RAFT: domain accuracy not measured." in verdict(result)


@pytest.mark.parametrize(
    ("right", "drift", "words"),
    [
        (150, 0.1, "RAFT kept its promise on this data: more accurate than SFT, with less drift."),
        (98, 0.1, "RAFT kept its promise on this data: as accurate as SFT within chance, with less drift."),
        (60, 0.1, "RAFT kept half of its promise on this data: less accurate than SFT, though with less drift."),
        (150, 0.5, "RAFT did not keep its promise on this data: more accurate than SFT, with about the same drift."),
        (60, 0.9, "RAFT did not keep its promise on this data: less accurate than SFT, with more drift."),
    ],
)
def test_the_promise(right: int, drift: float, words: str) -> None:
    assert summary(compare(_methods(raft=[_block(right, drift)]))) == words


@pytest.mark.parametrize(
    ("sft", "raft", "words"),
    [
        (
            24,
            22,
            "did not learn the domain as far as these questions show (11% right, within chance of the base's 10%); "
            "nor did SFT (12%).",
        ),
        (
            100,
            24,
            "did not learn the domain as far as these questions show (12% right, within chance of the base's "
            "10%); SFT did (50%).",
        ),
        (
            24,
            4,
            "did not learn the domain as far as these questions show (2.0% right, less than the base's 10%); nor did "
            "SFT (12%).",
        ),
    ],
)
def test_who_learned_nothing_keeps_no_promise(sft: int, raft: int, words: str) -> None:
    result = compare(_methods(sft=[_block(sft, 0.5)], raft=[_block(raft, 0.1)]))
    assert summary(result) == f"RAFT {words}"


def test_a_difference_to_the_base_within_chance_is_called_so() -> None:
    result = compare(_methods(raft=[_block(24, 0.1, ifeval=22)]))
    line = next(line for line in verdict(result) if line.startswith("RAFT:"))
    assert "+2.0 points on the base (p = 0.12, within chance), -38.0 points on SFT (p < 0.001)" in line
    assert "keeps 110% [100% to 129%] of IFEval (prompt-strict), a difference within chance" in line
    assert "keeps 100% of MMLU 5-shot;" in line


def test_a_promise_that_another_method_keeps_better_is_told() -> None:
    result = compare(_methods(raft=[_block(100, 0.2)], opd=[_block(120, 0.1)]))
    assert summary(result) == (
        "RAFT kept its promise against SFT (as accurate as SFT within chance, with less drift), "
        "but OPD did at least as well in both."
    )


def test_the_lines_of_a_verdict() -> None:
    result = compare(_methods(raft=[_block(150, 0.1, ifeval=19)]))
    lines = verdict(result, {"fapm": "no room on the disk"})
    assert len(lines) == 4
    assert lines[1].startswith("SFT: domain accuracy 50% [")
    assert (
        "+40.0 points on the base (p < 0.001); keeps 75% [55% to 93%] of IFEval (prompt-strict), "
        "a difference within chance; keeps 100% of MMLU 5-shot; " in lines[1]
    )
    assert lines[1].endswith("drift 0.5 nats per token.")
    assert (
        "+65.0 points on the base (p < 0.001), +25.0 points on SFT (p < 0.001); keeps 95% [83% to 100%] of IFEval"
        in lines[2]
    )
    assert lines[2].endswith("drift 0.1 nats per token, 5 times less than SFT.")
    assert lines[3] == "FAPM failed: no room on the disk"


def test_a_base_that_scored_0_is_said() -> None:
    methods = _methods(raft=[_block(150, 0.1)])
    methods["base"][0]["ifeval"]["correct"] = [False] * 100
    result = compare(methods)
    ifeval = result["methods"]["raft"]["scores"]["ifeval"]
    assert (ifeval["base"], ifeval["retention"]) == (0.0, None)
    line = next(line for line in verdict(result) if line.startswith("RAFT:"))
    assert "IFEval (prompt-strict) 20%, of which the base had none" in line


def test_a_missing_method_is_named() -> None:
    assert "RAFT was not evaluated" in summary(compare(_methods()))
    assert "SFT was not evaluated" in summary(compare({"base": [_block(20, 0.0)], "raft": [_block(90, 0.1)]}))
    with pytest.raises(ValueError, match="needs methods"):
        compare({"raft": []})


def test_a_comparison_without_raft_is_about_its_own_main_method() -> None:
    result = compare(_methods(opd=[_block(110, 0.1)]), main="opd")
    assert result["main"] == "opd"
    lines = verdict(result)
    assert lines[0].startswith("OPD kept its promise on this data")
    assert not any("RAFT" in line for line in lines)


def test_a_comparison_about_the_reference_itself_says_so() -> None:
    lines = verdict(compare(_methods(opd=[_block(110, 0.1)]), main="sft"))
    assert lines[0] == "SFT is what this comparison is about, and what its other methods are tested against."
