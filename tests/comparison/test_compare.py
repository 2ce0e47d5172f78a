"""The whole comparison on a tiny model: every method, one that fails, and a resumed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from adapter_fixture import save_adapter

from actors.compare import compare
from raft_ray.compare.fapm import fapm
from raft_ray.config import Config
from raft_ray.errors import ConfigError
from raft_ray.refine.cache import CompletionStore
from raft_ray.refine.schema import read_summary

STRICT = "strict: {distill: {method: sft, target: fused}, refine: {tau: 1.0}}"
"""A row whose stage 1 accepts no rewrite."""
GOLD = "sdft: {distill: {target: gold}}"
"""Random weights write no rewrite that is accepted, without which SDFT is refused."""
BROKEN = "broken: {distill: {method: raft}, rollout: {timeout: 0.01}}"
REPLAY = "rehearsal: {rows: 1, count: 3, kind: replay, max_new_tokens: 8}"
LOSSES = ", ".join(f"{loss}: {{distill: {{method: sft, loss: {loss}, {REPLAY}}}}}" for loss in ("dft", "eaft"))


def _state(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.timeout(1800)
def test_all_methods_are_compared_and_a_failed_one_loses_none(
    ray_cluster: None, make_config: Callable[..., Config], tmp_path: Path, tiny_model: Path
) -> None:
    import torch

    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps({"prompt": f"What is {n}?", "answer": "x"}) + "\n" for n in range(6)))
    run = tmp_path / "run"
    keys = [
        f"data.test={test}",
        "eval.enabled=true",
        "eval.ifeval_rows=2",
        "eval.general_rows=2",
        "refine.enabled=true",
        "distill.target=auto",
        "learner.max_steps=2",
        "compare.methods=[sft,sdft,opd,fapm,wise,raft,strict,dft,eaft,broken]",
        "compare.alphas=[0.5]",
        # A model from elsewhere: the original itself, which has drifted nowhere.
        f"compare.models={{theirs: [{tiny_model}]}}",
        # A row with refined rows of its own; and one whose engines have no time to start.
        f"compare.overrides={{{STRICT}, {GOLD}, {LOSSES}, {BROKEN}}}",
    ]
    page = compare(make_config(run, *keys))

    result = json.loads((run / "compare.json").read_text())
    assert list(result["methods"]) == [
        *("base", "theirs", "sft", "sdft", "opd", "raft", "strict", "dft", "eaft", "fapm", "wise")
    ]
    assert result["main"] == json.loads((run / "eval.json").read_text())["main"] == "raft"
    assert list(result["failed"]) == ["broken/seed0"]
    assert "rollout-0" in result["failed"]["broken/seed0"]
    assert any("broken/seed0 failed: " in line for line in result["verdict"])
    assert page.is_file()
    for name, method in result["methods"].items():
        assert method["seeds"] == 1
        assert method["scores"]["domain"] is not None
        assert (method["drift"]["mean"] > 0) == (name not in ("base", "theirs"))

    strict = read_summary(run / "refined-strict")
    assert strict["accepted"] == 0
    assert strict["cache"]["misses"] == 0, "another tau asked a model"
    prompts, others = (run / "methods" / name / "seed0" / "rehearsal.jsonl" for name in ("dft", "eaft"))
    assert prompts.read_bytes() == others.read_bytes()
    counts = CompletionStore(run / "refine_cache.sqlite").counts()
    assert counts["rehearsal", "hits"] == counts["rehearsal", "misses"] > 3, "the second row asked the model anew"
    html = page.read_text()
    assert "CE/KL ratio" in html
    assert "Weight distance by layer" in html

    assert not list(run.rglob("checkpoint_*")), "a finished training needs none"
    models = {name: run / "methods" / name / "seed0" / "model" for name in ("sft", "fapm")}
    expected = fapm(_state(tiny_model), _state(models["sft"]), 0.9)
    pruned = _state(models["fapm"])
    assert all(torch.equal(pruned[name], expected[name]) for name in expected)
    between = _state(run / "methods/wise/alpha=0.5/seed0/model")
    base, tuned = _state(tiny_model), _state(models["sft"])
    assert all(torch.equal(between[name], 0.5 * base[name] + 0.5 * tuned[name]) for name in between)
    first = {
        name: json.loads((run / f"methods/{name}/seed0/metrics.jsonl").read_text().splitlines()[0])["sft_loss"]
        for name in ("sft", "dft", "eaft")
    }
    # Random weights: every token is unlikely, and their entropy is nearly the largest.
    assert first["dft"] < 0.1 * first["sft"] < 0.9 * first["sft"] < first["eaft"] < first["sft"]
    assert not torch.equal(pruned["model.norm.weight"], _state(models["sft"])["model.norm.weight"])

    # What is done is taken as it is: only the row that failed is tried again.
    before = {path: path.stat().st_mtime_ns for path in run.glob("methods/*/seed0/model/model.safetensors")}
    keys[-1] = f"compare.overrides={{{STRICT}, {GOLD}, {LOSSES}, broken: {{distill: {{method: sft}}}}}}"
    compare(make_config(run, *keys, "run.resume=true"))
    again = json.loads((run / "compare.json").read_text())
    assert again["failed"] == {}
    assert set(again["methods"]) == {*result["methods"], "broken"}
    for name, method in result["methods"].items():
        assert again["methods"][name]["scores"] == method["scores"]
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())

    # Models that were trained otherwise are not compared with those to come.
    with pytest.raises(ConfigError, match=r"learner\.weight_decay=0\.5: the model in .*methods/sft/seed0 was trained"):
        compare(make_config(run, *keys, "learner.weight_decay=0.5", "run.resume=true"))


@pytest.mark.timeout(1800)
def test_a_grid_is_trained_and_each_method_gets_its_point(
    ray_cluster: None, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps({"prompt": f"What is {n}?", "answer": "x"}) + "\n" for n in range(6)))
    run = tmp_path / "run"
    keys = [
        f"data.test={test}",
        "eval.enabled=true",
        "eval.ifeval_rows=0",
        "eval.general_rows=2",
        "learner.max_steps=2",
        "compare.seeds=[0,1]",
        "compare.grid_seeds=1",
        "compare.grid={learner.lr: [1e-4, 1e-2]}",
    ]
    compare(make_config(run, *keys, "compare.methods=[sft,fapm]"))
    result = json.loads((run / "compare.json").read_text())
    assert set(result["chosen"]) == {"sft", "fapm"}
    assert result["validation_questions"] == 3
    drifts = {(one["method"], one["point"]): one["drift"]["mean"] for one in result["points"]}
    assert drifts["sft", "lr=0.01"] > drifts["sft", "lr=0.0001"] > 0
    assert drifts["sft", "lr=0.01"] > drifts["fapm", "lr=0.01"] > 0
    evaluated = json.loads((run / "eval.json").read_text())["methods"]
    chosen = result["chosen"]
    whole = {f"{row}/lr={lr}/seed0" for row in ("sft", "fapm") for lr in ("0.0001", "0.01")}
    # The second seed has each row's point alone, and the model that FAPM prunes at its own.
    further = {f"{row}/{chosen[row]}/seed1" for row in ("sft", "fapm")} | {f"sft/{chosen['fapm']}/seed1"}
    assert set(evaluated) == {"base", *whole, *further}
    assert {result["methods"][row]["seeds"] for row in ("sft", "fapm")} == {2}
    assert "0, 1 (0 for the whole grid)" in result["facts"]["seeds"]

    # A comparison of fewer rows in the same folder loses nothing that was measured.
    keys[-1] = "compare.grid={learner.lr: [1e-2, 1e-3]}"
    compare(make_config(run, *keys, "compare.methods=[sft]", "compare.seeds=[0]", "run.resume=true"))
    assert set(json.loads((run / "compare.json").read_text())["methods"]) == {"base", "sft"}
    later = json.loads((run / "eval.json").read_text())["methods"]
    assert {name: later[name]["domain"] for name in evaluated} == {
        name: block["domain"] for name, block in evaluated.items()
    }
    assert set(later) - set(evaluated) == {"sft/lr=0.001/seed0"}


def test_models_from_elsewhere_are_compared_alone_without_any_training(
    ray_cluster: None, make_config: Callable[..., Config], tmp_path: Path, tiny_model: Path
) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"prompt": "What is 1?", "answer": "x"}) + "\n")
    run = tmp_path / "run"
    keys = [f"data.test={test}", "eval.enabled=true", "eval.ifeval_rows=0", "eval.general_rows=2"]
    keys += ["compare.methods=[]", f"compare.models={{theirs: [{tiny_model}, {tiny_model}]}}"]
    compare(make_config(run, *keys))
    result = json.loads((run / "compare.json").read_text())
    assert {name: method["seeds"] for name, method in result["methods"].items()} == {"base": 1, "theirs": 2}
    assert result["main"] == "theirs"
    assert result["methods"]["theirs"]["drift"]["mean"] == 0
    assert not (run / "methods").exists()
    assert not (run / "refined").exists()
    # What was measured is taken as it is.
    written = (run / "eval.json").stat().st_mtime_ns
    compare(make_config(run, *keys, "run.resume=true"))
    assert (run / "eval.json").stat().st_mtime_ns == written


def test_rows_of_adapters_go_on_from_one_and_fapm_prunes_what_they_changed(
    ray_cluster: None, make_config: Callable[..., Config], tmp_path: Path, tiny_model: Path
) -> None:
    import torch

    from raft_ray.models import resolve

    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"prompt": "What is 1?", "answer": "x"}) + "\n")
    run, given = tmp_path / "run", save_adapter(tiny_model, tmp_path / "given")
    keys = [f"data.test={test}", "eval.enabled=true", "eval.ifeval_rows=0", "eval.general_rows=2"]
    keys += [f"model.path={tiny_model}", f"model.adapter={given}", "learner.lora.rank=4", "learner.lr=0.01"]
    keys += ["compare.methods=[sft,fapm]", f"compare.models={{theirs: [{given}]}}", "learner.max_steps=2"]
    compare(make_config(run, *keys))
    result = json.loads((run / "compare.json").read_text())
    assert not result["failed"]
    # The base of all is base and adapter, which the given row is as well.
    assert result["methods"]["theirs"]["drift"]["mean"] == 0
    assert result["methods"]["sft"]["drift"]["mean"] > result["methods"]["fapm"]["drift"]["mean"] > 0
    start, tuned = _state(Path(resolve(f"{tiny_model} + {given}"))), _state(run / "methods/sft/seed0/model")
    expected, pruned = fapm(start, tuned, 0.9), _state(run / "methods/fapm/seed0/model")
    assert all(torch.equal(pruned[name], expected[name]) for name in expected)
    changed = {name.split(".")[-2] for name in start if not torch.equal(start[name], pruned[name])}
    assert changed == {"q_proj", "v_proj", "down_proj"}
