"""The run folder: new, in use, resumed with what may change and what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft_ray.checks import check
from raft_ray.config import Config, resume, settings
from raft_ray.config.keys import keys
from raft_ray.config.resume import check_same_run
from raft_ray.errors import ConfigError
from raft_ray.runs.folders import check_run_dir


def fine(*overrides: str) -> Config:
    config = settings.load("raft", ["data.train=train.jsonl", "data.test=test.jsonl", *overrides])
    check(config)
    return config


def started(folder: Path, *overrides: str) -> Config:
    """A config with a run in its folder."""
    config = fine(f"run.dir={folder}", *overrides)
    folder.mkdir()
    settings.save(config, folder / "config.yaml")
    return config


def check_folder(config: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        check_run_dir(config)
    return str(caught.value)


def test_a_new_or_empty_run_folder_is_fine(tmp_path: Path) -> None:
    check_run_dir(fine(f"run.dir={tmp_path}"))
    check_run_dir(fine(f"run.dir={tmp_path}/a/b"))

    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_in_use_needs_resume(tmp_path: Path) -> None:
    config = started(tmp_path / "run")

    assert "--resume" in check_folder(config)
    config.run.resume = True
    check_run_dir(config)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    assert "no run to resume" in check_folder(fine(f"run.dir={tmp_path}/none", "run.resume=true"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run.seed", "3"),
        ("run.storage", "elsewhere"),
        ("model.date", "2020-02-29"),
        ("learner.global_batch_size", "4"),
        ("data.train", "b.jsonl"),
        ("distill.method", "opd"),
        ("learner.lora.rank", "4"),
        ("model.adapter", "./other"),
    ],
)
def test_resume_refuses_what_its_checkpoint_depends_on(tmp_path: Path, key: str, value: str) -> None:
    started(tmp_path / "run")

    message = check_folder(fine(f"run.dir={tmp_path}/run", "run.resume=true", f"{key}={value}"))

    assert message.startswith(f"{key}={value}: the run in")


def test_resume_takes_more_steps_and_other_resources(tmp_path: Path) -> None:
    started(tmp_path / "run", "learner.max_steps=4")

    check_run_dir(fine(f"run.dir={tmp_path}/run", "run.resume=true", "learner.max_steps=9", "rollout.actors=2"))


@pytest.mark.parametrize("key", ["learner.lr=0.5", "distill.top_k=9", "rollout.top_p=0.5", "refine.tau=0.1"])
def test_resume_refuses_what_made_a_model_that_is_there(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "run"
    config = started(folder)
    baseline = settings.for_method(config, "sft")
    (folder / "methods/sft/model").mkdir(parents=True)
    settings.save(baseline, folder / "methods/sft/config.yaml")
    resumed = fine(f"run.dir={folder}", "run.resume=true", key)
    check_run_dir(resumed)

    resumed.run.baselines = ["sft"]
    message = check_folder(resumed)
    assert message.startswith(f"{key}: the model in {folder}/methods/sft was trained with ")
    assert "remove that folder" in message
    (folder / "model").mkdir()
    message = check_folder(resumed)
    assert message.startswith(f"{key}: the model in {folder} was trained with ")
    assert "start a new run with --run-dir" in message


def test_resume_refuses_to_mix_evaluations(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started(folder)
    (folder / "model").mkdir()
    longer = fine(f"run.dir={folder}", "run.resume=true", "learner.epochs=7")
    fewer = fine(f"run.dir={folder}", "run.resume=true", "eval.ifeval_rows=7")
    for config in (longer, fewer):
        check_run_dir(config)

    (folder / "eval.json").touch()
    assert check_folder(longer).startswith(f"learner.epochs=7: {folder}/eval.json was measured with 3;")
    assert check_folder(fewer).startswith(f"eval.ifeval_rows=7: {folder}/eval.json was measured with None;")


def test_a_row_that_is_half_trained_goes_on_as_it_began(tmp_path: Path) -> None:
    folder = tmp_path / "row"
    started(folder)
    for key in ("learner.lr=0.5", "learner.max_steps=7"):
        with pytest.raises(ConfigError, match=f"^{key}: the model in"):
            check_same_run(fine(f"run.dir={folder}", key), folder, longer=False)
    check_same_run(fine(f"run.dir={folder}", "learner.num_workers=2", "eval.samples=1"), folder, longer=False)


def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert "a file of that name is in the way" in check_folder(fine(f"run.dir={tmp_path}/file"))
    assert "cannot write there" in check_folder(fine(f"run.dir={tmp_path}/file/run"))
    assert "cannot write there" in check_folder(fine("run.dir=/proc/run"))


@pytest.mark.parametrize("storage", ["s3://bucket/raft?region=eu-west-1", "gs://bucket", "file:///tmp/a%20b", "here"])
def test_a_storage_that_may_work_is_not_asked_before_the_run(storage: str, tmp_path: Path) -> None:
    check_run_dir(fine(f"run.dir={tmp_path}", f"run.storage={storage}"))

    assert not Path("here").exists()


def test_the_keys_of_an_adapter_decide_the_model_of_a_run_that_has_one() -> None:
    assert not [key for key in resume.deciding(fine()) if "lora" in key]
    assert resume.deciding(fine("learner.lora.rank=4"))["learner.lora.alpha"] == 32
    hot = fine("learner.lora.rank=4", "sync.adapter=hot")
    changes = resume.changes(resume.deciding(fine("learner.lora.rank=4")), resume.deciding(hot))
    assert changes == ["sync.adapter=hot (was None)"]
    assert "model.adapter" not in resume.deciding(fine())
    assert resume.deciding(fine("model.adapter=./a"))["model.adapter"] == "./a"


def test_the_place_of_the_teacher_decides_no_model() -> None:
    placed = resume.deciding(fine("learner.lora.rank=4", "teacher.place=learner"))
    assert placed == resume.deciding(fine("learner.lora.rank=4"))


def test_what_a_resumed_run_may_change_is_named_as_the_keys_are() -> None:
    known = set(keys())
    without_effect = {f"{section}.{name}" for section, names in resume._WITHOUT_EFFECT.items() for name in names}
    assert {key.partition(".")[2] for key in known} >= resume._RESOURCES
    assert known >= resume._CHECKPOINT | without_effect | resume._LENGTH | resume._MEASURED
