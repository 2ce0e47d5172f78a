"""Which trainings a comparison consists of, and what it refuses before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raft_ray.compare.plan import at_points, by_seeds, left_out, main_row, plan
from raft_ray.config import Config, Method, Target, settings
from raft_ray.errors import ConfigError

RUN = Path("runs/all")


def _config(*overrides: str) -> Config:
    return settings.load("raft", ["data.train=train.jsonl", "data.test=test.jsonl", *overrides])


def test_every_method_with_every_seed_and_fapm_after_what_it_prunes() -> None:
    trainings = plan(_config("compare.methods=[fapm,sft,raft]", "compare.seeds=[3,4]"), RUN)
    assert [one.name for one in trainings] == [
        "sft/seed3",
        "raft/seed3",
        "fapm/seed3",
        "sft/seed4",
        "raft/seed4",
        "fapm/seed4",
    ]
    assert trainings[1].folder == RUN / "methods" / "raft" / "seed3"
    made = trainings[1].config
    assert made is not None
    assert (made.distill.method, made.run.seed, made.run.dir) == (Method.raft, 3, str(trainings[1].folder))
    assert trainings[2].config is None


def test_a_row_may_be_a_method_with_other_settings() -> None:
    config = _config(
        "compare.methods=[sft,refined,fixed]",
        "compare.overrides={sft: {learner: {lr: 1e-4}}, refined: {distill: {method: sft, target: fused}}, "
        "fixed: {distill: {method: raft, balance: fixed, fixed_lambda: 0.1}}}",
    )
    sft, refined, fixed = (one.config for one in plan(config, RUN))
    assert sft is not None
    assert refined is not None
    assert fixed is not None
    assert (sft.distill.method, sft.learner.lr, sft.distill.target) == (Method.sft, 1e-4, Target.auto)
    assert (refined.distill.method, refined.distill.target, refined.learner.lr) == (Method.sft, Target.fused, 5e-6)
    assert (fixed.distill.balance.value, fixed.distill.fixed_lambda) == ("fixed", 0.1)
    # The plan leaves the config as it was, so that it can be made again.
    assert plan(config, RUN) == plan(config, RUN)


def test_a_grid_trains_every_row_at_every_point() -> None:
    config = _config(
        "compare.methods=[sft,fapm]",
        "compare.seeds=[0,1]",
        "compare.grid={learner.lr: [1e-4, 0.0002], learner.max_steps: [5, 10]}",
    )
    trainings = plan(config, RUN)
    assert len(trainings) == 2 * 4 * 2
    first = trainings[0]
    assert first.name == "sft/lr=0.0001,max_steps=5/seed0"
    assert first.folder == RUN / "methods" / "sft" / "lr=0.0001,max_steps=5" / "seed0"
    assert first.config is not None
    assert (first.config.learner.lr, first.config.learner.max_steps) == (1e-4, 5)
    points = [one.point for one in trainings if one.row == "fapm" and one.seed == 1]
    assert points == [f"lr={lr},max_steps={steps}" for lr in ("0.0001", "0.0002") for steps in (5, 10)]
    for place, one in enumerate(trainings):
        if one.row == "fapm":
            assert ("sft", one.point, one.seed) in [(t.row, t.point, t.seed) for t in trainings[:place]]


def test_wise_makes_a_point_of_every_alpha_at_every_point_of_the_grid() -> None:
    keys = ["compare.methods=[wise,sft]", "compare.alphas=[0,0.5]", "compare.seeds=[0,1]"]
    plain = plan(_config(*keys, "compare.seeds=[0]"), RUN)
    assert [one.name for one in plain] == ["sft/seed0", "wise/alpha=0/seed0", "wise/alpha=0.5/seed0"]
    assert [one.alpha for one in plain] == [None, 0, 0.5]
    assert plain[1].source == plain[2].source == plain[0]

    config = _config(*keys, "compare.grid={learner.lr: [1, 2]}", "compare.grid_seeds=1")
    trainings = plan(config, RUN)
    points = {f"lr={lr},alpha={alpha}" for lr in (1, 2) for alpha in (0, 0.5)}
    assert {one.point for one in trainings if one.row == "wise"} == points
    _, others = by_seeds(trainings, config.compare)
    further = at_points(others, {"base": "", "sft": "lr=1", "wise": "lr=2,alpha=0.5"})
    assert [one.name for one in further] == ["sft/lr=1/seed1", "sft/lr=2/seed1", "wise/lr=2,alpha=0.5/seed1"]


def test_the_preset_of_baselines_makes_the_rows_that_its_comments_name() -> None:
    made = {one.row: one.config for one in plan(settings.load("baselines", []), RUN) if one.config}
    used = {
        name: (config.uses_distillation, config.uses_rollouts, config.uses_given_trajectories, config.keeps_answers)
        for name, config in made.items()
    }
    assert used == {
        "sft": (False, False, False, False),
        "sdft": (False, False, False, False),
        "opd": (True, True, False, False),
        "dft": (False, False, False, False),
        "asft": (True, True, True, False),
        "eaft": (False, False, False, False),
        "replay": (False, False, False, True),
        "replay_kl": (False, True, True, True),
        "rehearsal": (False, True, False, False),
        "raft": (True, True, False, False),
    }


def test_a_row_may_change_stage_1() -> None:
    config = _config(
        "compare.methods=[raft,strict]", "compare.overrides={strict: {refine: {tau: 0.9}, distill: {method: raft}}}"
    )
    plain, strict = plan(config, RUN)
    assert (plain.refines, strict.refines) == (False, True)
    assert strict.config is not None
    assert (strict.config.refine.tau, config.refine.tau) == (0.9, 0.8)


def test_a_described_row_may_be_left_out_and_is_named() -> None:
    config = settings.load("ablations", ["compare.methods=[sft,raft,refined]"])
    assert [training.row for training in plan(config, RUN)] == ["sft", "raft", "refined"]
    assert left_out(config) == ["fixed_0_1", "fixed_1", "capped", "tau_0", "tau_1", "t_1", "t_1_8", "k_64", "k_256"]


def test_the_ablations_differ_from_raft_in_what_their_names_say() -> None:
    trainings = {training.row: training for training in plan(settings.load("ablations", []), RUN)}
    assert {name for name, one in trainings.items() if one.refines} == {"tau_0", "tau_1"}
    made = {name: one.config for name, one in trainings.items() if one.config}
    main = made["raft"]
    assert (made["refined"].distill.method, made["refined"].distill.target) == (Method.sft, Target.fused)
    changed = {
        name: [
            (section, key, value)
            for section in ("refine", "distill", "learner", "rollout", "teacher")
            for key, value in vars(getattr(config, section)).items()
            if value != getattr(getattr(main, section), key)
        ]
        for name, config in made.items()
        if name not in ("sft", "refined")
    }
    assert changed == {
        "raft": [],
        "fixed_0_1": [("distill", "balance", "fixed"), ("distill", "fixed_lambda", 0.1)],
        "fixed_1": [("distill", "balance", "fixed")],
        "capped": [("distill", "max_lambda", 1.0)],
        "tau_0": [("refine", "tau", 0.0)],
        "tau_1": [("refine", "tau", 1.0)],
        "t_1": [("distill", "temperature", 1.0)],
        "t_1_8": [("distill", "temperature", 1.8)],
        "k_64": [("distill", "top_k", 64)],
        "k_256": [("distill", "top_k", 256)],
    }
    assert made["fixed_1"].distill.fixed_lambda == 1.0


def test_the_seeds_beyond_the_grids_train_chosen_points_and_what_fapm_prunes_there() -> None:
    config = _config(
        "compare.methods=[sft,fapm,raft]",
        "compare.seeds=[3,1,2]",
        "compare.grid={learner.lr: [1, 2]}",
        "compare.grid_seeds=1",
    )
    trainings = plan(config, RUN)
    whole, others = by_seeds(trainings, config.compare)
    assert {one.seed for one in whole} == {3}
    assert len(whole) == 6
    further = at_points(others, {"base": "", "sft": "lr=1", "fapm": "lr=2", "raft": "lr=2"})
    assert [one.name for one in further] == [
        f"{row}/seed{seed}" for seed in (1, 2) for row in ("sft/lr=1", "sft/lr=2", "raft/lr=2", "fapm/lr=2")
    ]
    everything = replace(config.compare, grid_seeds=None)
    assert by_seeds(trainings, everything) == (trainings, [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compare.methods=[]"], "compare.methods is empty"),
        (["compare.seeds=[]"], "compare.seeds is empty"),
        (["compare.seeds=[1,1]"], "compare.seeds=[1, 1]: names one twice"),
        (["compare.seeds=[-1]"], "must be at least 0"),
        (["compare.methods=[fapm,raft]"], "fapm prunes the model of sft; name sft as well"),
        (["eval.enabled=false"], "eval.enabled=false: there is nothing to compare"),
        (["compare.methods=[sft,../out]"], "compare.methods: '../out' cannot be the name of a row (it names a folder"),
        (["compare.methods=[sft,'a/b']"], "compare.methods: 'a/b' cannot be the name of a row"),
        (["compare.methods=[sft,'..']"], "compare.methods: '..' cannot be the name of a row"),
        (["compare.methods=[sft,'=1+1']"], "compare.methods: '=1+1' cannot be the name of a row"),
        (["compare.methods=[sft,base]"], "compare.methods: 'base' cannot be the name of a row (the base is a row"),
        (["compare.overrides={../out: {distill: {method: sft}}}"], "compare.overrides: '../out' cannot be the name"),
        (
            ["compare.grid={teacher.template: [../../a.txt, b.txt]}"],
            "compare.grid.teacher.template: '../../a.txt' cannot",
        ),
        (["compare.methods=[sft,raftt]"], "raftt is no method (sft, sdft, opd, raft, fapm, wise); say what it trains"),
        (["compare.models={sft: [a]}"], "compare.models.sft: is the name of a row that trains; choose another"),
        (["compare.models={theirs: []}"], "compare.models.theirs: is empty; name a folder per seed"),
        (["compare.models={'a/b': [c]}"], "compare.models: 'a/b' cannot be the name of a row"),
        (["compare.overrides={opt: {}}"], "compare.overrides.opt: no such row"),
        (["compare.overrides={own: {distill: 3}}"], "compare.overrides.own: no such row"),
        (["compare.overrides={own: {distill: {method: raft, top_kk: 3}}}"], "compare.overrides.own: unknown key"),
        (["compare.overrides={fapm: {learner: {lr: 1}}}"], "fapm trains nothing; set compare.sparsity"),
        (
            ["compare.methods=[sft,wise]", "compare.overrides={wise: {learner: {lr: 1}}}"],
            "wise trains nothing; set compare.alphas",
        ),
        (["compare.methods=[wise,raft]"], "wise interpolates the model of sft; name sft as well"),
        (["compare.methods=[sft,wise]", "compare.alphas=[]"], "compare.alphas is empty; name at least one"),
        (["compare.alphas=[0.5,0.5]"], "compare.alphas=[0.5, 0.5]: names one twice"),
        (["compare.overrides={sft: 3}"], "compare.overrides.sft: must hold sections"),
        (["compare.overrides={sft: {data: {limit: 3}}}"], "compare.overrides.sft.data: cannot differ"),
        (["compare.overrides={sft: {learner: {lrr: 1}}}"], "compare.overrides.sft: unknown key learner.lrr"),
        (["compare.overrides={sft: {learner: {lr: -1}}}"], "compare.overrides.sft: learner.lr=-1.0: must be"),
        (
            ["compare.overrides={raft: {teacher: {template: absent.txt}}}"],
            "compare.overrides.raft: teacher.template=absent.txt: no such prompt file",
        ),
        (["compare.overrides={sft: {distill: {method: raft}}}"], "give the row another name than that of a method"),
        (["compare.grid={lr: [1]}"], "compare.grid.lr: name a key that methods are trained with, such as learner.lr"),
        (["compare.grid={run.seed: [1]}"], "compare.grid.run.seed: name a key"),
        (["compare.grid={learner.lr: 1e-4}"], "compare.grid.learner.lr=0.0001: must be a list of values"),
        (["compare.grid={learner.lr: []}"], "must be a list of values"),
        (["compare.grid={learner.lr: [1, 1.0]}"], "compare.grid.learner.lr=[1, 1.0]: names one twice"),
        (["compare.grid={learner.lrr: [1]}"], "unknown key learner.lrr"),
        (["compare.grid={learner.lr: [-1]}"], "learner.lr=-1.0: must be greater than 0"),
        (
            ["compare.grid={learner.lr: [1]}", "compare.overrides={sft: {learner: {lr: 1}}}"],
            "compare.overrides.sft.learner.lr: compare.grid names its values",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(_config(*overrides), RUN)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "main"),
    [
        ([], "raft"),
        (["compare.methods=[sft,opd]"], "sft"),
        (["compare.methods=[sft,opd]", "distill.method=opd"], "opd"),
        (["compare.methods=[opd,sft]"], "opd"),
        (["compare.methods=[mine]", "compare.overrides={mine: {distill: {method: sft}}}"], "mine"),
    ],
)
def test_the_main_row_is_the_configs_method_or_the_first(overrides: list[str], main: str) -> None:
    assert main_row(_config(*overrides)) == main
