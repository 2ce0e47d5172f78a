from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from own_config import OWN_DATA, fine, refused

from raft_ray.checks import check
from raft_ray.config import Dtype, Method, Target, settings
from raft_ray.config.checks import required_resources
from raft_ray.config.explain import explained
from raft_ray.config.keys import keys
from raft_ray.errors import ConfigError

PRESETS = [
    *("ablations", "baselines", "cluster", "demo", "gpu_24gb", "gpu_80gb", "opd", "raft", "sdft", "sft"),
    *("single_gpu", "smoke"),
]
NUMBERS = [key for key, kind in keys().items() if re.match(r"(?!list).*(int|float)", str(kind))]
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers")


def test_the_presets_are_those_that_the_documentation_names() -> None:
    assert settings.presets() == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_its_own_checks(preset: str) -> None:
    config = settings.load(preset, [] if preset in ("demo", "smoke") else OWN_DATA)

    check(config)

    assert config.run.dir.endswith(f"runs/{preset}") or preset == "cluster"


@pytest.mark.parametrize("method", list(Method))
def test_the_preset_named_after_a_method_trains_it(method: Method) -> None:
    assert settings.load(method.value).distill.method is method


def test_the_raft_preset_has_the_papers_values() -> None:
    config = settings.load("raft")

    assert (config.distill.temperature, config.distill.top_k, config.distill.ema_beta) == (1.5, 512, 0.9)
    assert (config.refine.tau, config.learner.lr, config.learner.global_batch_size, config.learner.epochs) == (
        0.8,
        5e-6,
        16,
        3,
    )
    assert config.sync.max_staleness == 0


def test_overrides_win_over_the_file_and_later_ones_over_earlier() -> None:
    config = settings.load("demo", ["learner.lr=1e-3", "learner.global_batch_size=8", "learner.global_batch_size=4"])

    assert config.learner.lr == 1e-3
    assert config.learner.global_batch_size == 4
    assert config.learner.max_steps == settings.load("demo").learner.max_steps


def test_an_override_may_hold_a_list_a_mapping_null_or_an_equals_sign() -> None:
    config = settings.load(
        "raft",
        [
            "run.baselines=[sft,opd]",
            "run.overrides={sft: {learner: {lr: 1e-4}}}",
            "data.test=null",
            "model.path=a=b",
        ],
    )

    assert config.run.baselines == ["sft", "opd"]
    assert config.run.overrides == {"sft": {"learner": {"lr": 1e-4}}}
    assert config.data.test is None
    assert config.model.path == "a=b"


@pytest.mark.parametrize(
    ("flags", "overrides", "dtype"),
    [
        ({"avx2": True, "avx512_bw": False, "amx_bf16": False}, [], Dtype.float32),
        ({"avx2": True, "avx512_bw": True}, [], Dtype.bfloat16),
        ({"bf16": True, "neon": True}, [], Dtype.bfloat16),
        ({"avx2": True}, ["teacher.num_gpus=1"], Dtype.bfloat16),
        ({"avx2": True}, ["model.dtype=bfloat16"], Dtype.bfloat16),
        ({"avx512_bw": True}, ["model.dtype=float32"], Dtype.float32),
    ],
)
def test_the_precision_is_the_machines_unless_it_is_said(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], overrides: list[str], dtype: Dtype
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: flags)
    config = settings.load("raft", [*OWN_DATA, *overrides])
    assert config.model.dtype is dtype
    assert f"dtype: {dtype.value}" in settings.to_yaml(config)


def test_a_file_sets_what_it_names_on_top_of_what_it_extends(workspace: Path) -> None:
    Path("base.yaml").write_text("extends: demo\nlearner:\n  lr: 1e-3\n  global_batch_size: 8\n")
    Path("mine.yaml").write_text("extends: base.yaml\nlearner:\n  global_batch_size: 4\n")

    config = settings.load("mine.yaml")

    assert (config.learner.global_batch_size, config.learner.lr) == (4, 1e-3)
    assert config.model.path == "embedded:smollm2-135m-instruct"


def test_extends_in_a_circle_is_refused_and_shown(workspace: Path) -> None:
    Path("a.yaml").write_text("extends: b.yaml\n")
    Path("b.yaml").write_text("extends: a.yaml\n")

    with pytest.raises(ConfigError, match=r"extends goes round in a circle \(a.yaml -> b.yaml -> a.yaml\)"):
        settings.load("a.yaml")


def test_a_section_with_all_its_keys_commented_out_sets_nothing(workspace: Path) -> None:
    Path("mine.yaml").write_text("extends: raft\nlearner:\n  # lr: 1\n")

    assert settings.load("mine.yaml") == settings.load("raft")


def test_data_train_stays_missing_until_it_is_set() -> None:
    config = settings.load("raft")

    assert config.data.train == settings.MISSING
    with pytest.raises(ConfigError, match=r"data\.train is missing: set data\.train=FILE"):
        check(config)


def test_a_saved_config_is_read_back_the_same(tmp_path: Path) -> None:
    config = settings.load("demo", ["run.overrides.sft.learner.lr=3e-4", "run.seed=7", "distill.target=gold"])

    settings.save(config, tmp_path / "config.yaml")

    assert settings.load(str(tmp_path / "config.yaml")) == config


def test_a_saved_config_holds_every_key_with_all_but_references_to_the_environment_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "elsewhere")
    config = settings.load("demo", ["run.dir=runs/${oc.env:WHERE}", "data.test=test-${run.seed}.jsonl"])

    settings.save(config, tmp_path / "config.yaml")

    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config.run.dir == "runs/elsewhere"
    assert saved["run"]["dir"] == "runs/${oc.env:WHERE}"
    assert saved["data"]["test"] == "test-0.jsonl"
    known = set(keys())

    def leaves(value: Any, key: str) -> set[str]:
        if key in known or not isinstance(value, dict):
            return {key}
        return {leaf for name, inner in value.items() for leaf in leaves(inner, f"{key}.{name}".lstrip("."))}

    assert leaves(saved, "") == known


def test_a_run_folder_is_a_config(tmp_path: Path) -> None:
    config = settings.load("demo", ["run.seed=7"])
    settings.save(config, tmp_path / "config.yaml")

    assert settings.load(str(tmp_path)) == config


def test_the_explained_config_is_the_same_config_with_a_comment_for_each_documented_key(tmp_path: Path) -> None:
    config = settings.load("demo")
    text = explained(config)
    (tmp_path / "explained.yaml").write_text(text)

    assert settings.load(str(tmp_path / "explained.yaml")) == config
    assert "# T of Eqs. 8-10.\n  temperature: 1.5" in text
    assert "opd: On-policy distillation: as `raft`, but the teacher does not see the answer." in text


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_range_and_nan_is_in_none(key: str) -> None:
    for value in ("-1", ".nan", ".inf"):
        assert re.match(rf"{key}=\S+: (must be|takes a whole number)", refused(f"{key}={value}"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("refine.tau=1.01", "between 0 and 1"),
        ("distill.temperature=0", "greater than 0"),
        ("distill.temperature=.nan", "greater than 0"),
        ("distill.top_k=0", "at least 1"),
        ("distill.ema_beta=1", "less than 1"),
        ("distill.fixed_lambda=-0.1", "at least 0"),
        ("learner.zero_stage=4", "0, 1, 2 or 3"),
        ("learner.lr=.inf", "greater than 0"),
        ("rollout.top_p=0", "greater than 0 and at most 1"),
        ("rollout.num_gpus=1.5", "whole if above 1"),
        ("sync.max_staleness=-1", "at least 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused_with_the_range(override: str, words: str) -> None:
    message = refused(override)

    assert message.startswith(override.split("=")[0])
    assert words in message


@pytest.mark.parametrize(
    "override",
    ["refine.tau=0", "refine.tau=1", "distill.top_k=100000000", "distill.fixed_lambda=0", "run.local_cpus=4"],
)
def test_the_ends_of_a_range_belong_to_it(override: str) -> None:
    fine(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["learner.global_batch_size=10", "learner.num_workers=4"],
            "learner.global_batch_size=10: not divisible by learner.num_workers=4; 12 is",
        ),
        (["learner.max_steps=5", "learner.warmup_steps=5"], "learner.warmup_steps=5: the warm-up would never end"),
        (["model.context=128", "rollout.max_new_tokens=128", "eval.enabled=false", "refine.enabled=false"], "no room"),
        (["rollout.tensor_parallel=2"], "set rollout.num_gpus=2"),
        (["distill.balance=fixed", "distill.fixed_lambda=2", "distill.max_lambda=1"], "distill.max_lambda=1.0: below"),
        (["data.test=train.jsonl"], "data.test=train.jsonl: these are the training rows"),
        (["data.columns.answer=q", "data.columns.prompt=q"], "data.columns.prompt is the same"),
        (["run.dir="], "run.dir"),
        (["refine.judges=[keyfacts]"], "key_facts"),
        (["refine.fuser=other"], "refine.fuser=other"),
        (["run.local_cpus=4", "run.ray_address=auto"], "leave one of them out"),
        (["run.local_cpus=2"], "run.local_cpus=2: the roles ask for 4 CPUs"),
        (["run.baselines=[sftt]"], "there is no method sftt; did you mean sft?"),
        (["run.baselines=[sft,sft]"], "sft is named twice"),
        (["run.baselines=[raft]"], "raft is distill.method already"),
        (["eval.mmlu=folder", "eval.mmlu_shots=[]"], "eval.mmlu_shots=[]: must be different numbers from 0 on"),
        (["eval.mmlu=folder", "eval.mmlu_shots=[5,5]"], "eval.mmlu_shots=[5, 5]: must be different"),
        (["eval.mmlu=folder", "eval.mmlu_shots=[-1]"], "eval.mmlu_shots=[-1]: must be different"),
        (["run.overrides.sftt.learner.lr=1"], "run.overrides.sftt: there is no such method; did you mean sft?"),
        (["run.overrides.raft.learner.lr=1"], "run.overrides.raft: is distill.method, whose keys are set directly"),
        (["run.overrides.opd.learner.lrr=1"], "run.overrides.opd: unknown key learner.lrr;"),
        (
            ["run.baselines=[sft]", "run.overrides.sft.learner.lrr=1"],
            "run.overrides.sft: unknown key learner.lrr;",
        ),
        (["run.baselines=[sft]", "run.overrides.sft.learner.lr=x"], "learner.lr=x: takes a number"),
        (["run.baselines=[sft]", "run.overrides.sft.learner.lr=-1"], "learner.lr=-1.0: must be greater than 0"),
        (
            ["run.baselines=[sft]", "run.overrides.sft.learner.num_workers=3"],
            "baseline sft: learner.global_batch_size=16: not",
        ),
        (["run.baselines=[sft]", "run.overrides.sft.data.limit=3"], "run.overrides.sft.data: cannot differ"),
        (["run.baselines=[sft]", "run.overrides.sft.distill.method=opd"], "distill.method: cannot differ"),
        (["run.baselines=[sft]", "run.overrides.sft=5"], "must hold sections"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(overrides: list[str], message: str) -> None:
    assert message in refused(*overrides)


def test_keys_that_a_method_does_not_use_cannot_contradict_it() -> None:
    fine("distill.method=sft", "rollout.tensor_parallel=2", "distill.balance=fixed", "distill.max_lambda=0.1")


def test_a_preset_with_overrides_for_a_baseline_runs_without_that_baseline() -> None:
    check(settings.load("demo", ["run.baselines=[]"]))


def test_a_baseline_has_its_overrides_its_method_and_its_own_target() -> None:
    config = fine("run.baselines=[sft]", "run.overrides.sft.learner.lr=3e-4", "distill.target=fused", "run.seed=5")

    baseline = settings.for_method(config, "sft")

    assert (baseline.distill.method, baseline.distill.target) == (Method.sft, Target.auto)
    assert (baseline.learner.lr, baseline.run.seed, baseline.run.baselines) == (3e-4, 5, [])
    assert config.learner.lr == 5e-6


def test_a_baseline_without_a_teacher_has_none_in_its_learners_and_one_with_it_has() -> None:
    config = fine("teacher.place=learner", "learner.lora.rank=4", "run.baselines=[sft,opd]")
    places = {name: settings.for_method(config, name).teacher.place for name in ("sft", "opd", "raft")}
    assert places == {"sft": "own", "opd": "learner", "raft": "learner"}
    given = fine("distill.method=opd", "distill.off_policy=true", "teacher.place=learner", "learner.lora.rank=4")
    assert (given.learners_score, given.uses_teachers) == (True, False)
    rehearses = ["distill.method=sft", "distill.rehearsal.rows=4", "learner.lora.rank=4", "teacher.place=learner"]
    assert fine(*rehearses).learners_score
    refused("run.baselines=[opd]", "run.overrides.opd.teacher.place=learner")


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ([], (4, 0)),
        (["distill.method=sft", "learner.num_workers=2"], (2, 0)),
        (["rollout.actors=3", "rollout.num_gpus=1", "teacher.num_gpus=0.5", "learner.num_gpus=1"], (6, 4.5)),
        (["distill.method=sft", "run.baselines=[opd]"], (4, 0)),
        (["teacher.place=learner", "learner.lora.rank=4", "teacher.num_gpus=0.5", "teacher.num_cpus=9"], (3, 0)),
        (["distill.method=sft", "run.baselines=[sdft]", "run.overrides.sdft.learner.num_workers=4"], (4, 0)),
    ],
)
def test_required_resources_are_those_of_the_roles_that_run_at_once(
    overrides: list[str], needed: tuple[float, float]
) -> None:
    assert required_resources(fine(*overrides)) == needed


@pytest.mark.parametrize("module", ["raft_ray.config.settings", "raft_ray.cli", "raft_ray.cli.doctor"])
def test_importing_it_loads_no_heavy_package(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("actors.run", "transformers"),
        # The pipeline actor's process imports the classes of the actors that it makes.
        ("actors.distill.pipeline", "torch"),
        ("actors.distill.rollout", "torch"),
        ("actors.distill.teacher", "torch"),
    ],
)
def test_a_process_that_holds_no_model_does_not_wait_for(module: str, package: str) -> None:
    code = f"import sys, {module}; print({package!r} in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_a_value_that_is_refused_is_told_with_the_file_that_set_it(workspace: Path) -> None:
    Path("base.yaml").write_text("extends: raft\nlearner:\n  lr: -1\nrollout:\n  top_p: high\n")
    Path("mine.yaml").write_text("extends: base.yaml\nlearner:\n  epochs: 3\n")
    for overrides, message in (
        ([], "base.yaml: rollout.top_p=high: takes a number"),
        (["rollout.top_p=1"], "base.yaml: learner.lr=-1.0: must be greater than 0"),
        (["rollout.top_p=2"], "rollout.top_p=2.0: must be greater than 0 and at most 1"),
        (["rollout.top_p=1", "learner.lr=1e-4", "learner.dropot=1"], "unknown key learner.dropot; did you mean"),
    ):
        with pytest.raises(ConfigError) as caught:
            settings.load("mine.yaml", overrides)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "override", ["learner.dropout=1", "learner.share_prompt=0", "learner.epochs=true", "eval.mmlu_shots=[true]"]
)
def test_a_number_is_not_taken_for_true_or_false_nor_the_other_way_round(override: str) -> None:
    assert re.match(rf"{override.partition('=')[0]}=\S+: takes ", refused(override))


def test_a_text_from_the_environment_is_a_number_where_the_key_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "3e-4")
    assert fine("learner.lr=${oc.env:RATE}").learner.lr == 3e-4
    monkeypatch.setenv("RATE", "-3")
    assert refused("learner.lr=${oc.env:RATE}") == "learner.lr=${oc.env:RATE}: must be greater than 0"


def test_values_that_were_assigned_are_checked_as_those_that_were_read() -> None:
    config = fine()
    config.learner.zero_stage = 2
    check(config)
    config.learner.zero_stage = 4
    with pytest.raises(ConfigError, match=r"learner\.zero_stage=4: must be 0, 1, 2 or 3"):
        check(config)
