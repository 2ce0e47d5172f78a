"""What the commands refuse: every mistake in a config, in data or in a model folder, in one clear line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from raft_ray import cli


def raft_ray(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


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
    bad("run smoke learner.lora.rank=-1", "learner.lora.rank=-1", "at least 0"),
    bad("run smoke learner.lora.dropout=1", "learner.lora.dropout=1", "less than 1"),
    bad(
        "run smoke learner.lora.rank=2 learner.lora.dora=true learner.zero_stage=3", "learner.lora.dora", "zero_stage=2"
    ),
    bad("run smoke learner.lora.rank=2 learner.lora.target_modules=[query]", "learner.lora.target_modules", "q_proj"),
    bad("run smoke teacher.place=student", "teacher.place=student", "one of own, learner"),
    bad("run smoke teacher.place=learner", "teacher.place=learner", "learner.lora.rank=0", "set learner.lora.rank=16"),
    bad(
        "run smoke distill.method=sft teacher.place=learner learner.lora.rank=2",
        "teacher.place=learner",
        "distill.method=sft as it is set has no teacher",
    ),
    bad(
        "run smoke teacher.place=learner learner.lora.rank=2 distill.balance=fixed distill.fixed_lambda=0",
        "distill.method=raft as it is set has no teacher",
    ),
    bad(
        "run smoke distill.method=sft teacher.place=learner learner.lora.rank=2 distill.rehearsal.rows=4 "
        "distill.rehearsal.kind=replay",
        "distill.method=sft as it is set has no teacher",
    ),
    bad(
        "run smoke teacher.place=learner learner.lora.rank=2 teacher.path=other",
        "teacher.path=other",
        "leave teacher.path out",
    ),
    bad(
        "run smoke teacher.place=learner learner.lora.rank=2 teacher.actors=2", "teacher.actors=2", "no teacher actors"
    ),
    bad("run smoke teacher.place=learner learner.lora.rank=2 teacher.max_restarts=1", "teacher.max_restarts=1"),
    bad(
        "run smoke teacher.place=learner learner.lora.rank=2 learner.zero_stage=1 model.dtype=float16",
        "teacher.place=learner",
        "set model.dtype=bfloat16",
    ),
    bad(
        "run smoke teacher.place=learner learner.lora.rank=2 run.baselines=[opd] run.overrides.opd.learner.lora.rank=0",
        "baseline opd: teacher.place=learner",
    ),
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
    bad("run smoke sync.adapter=hot", "sync.adapter=hot: learner.lora.rank=0", "sync.adapter=merged"),
    bad("run smoke sync.adapter=hot learner.lora.rank=513", "up to rank 512", "learner.lora.rank=513"),
    bad("run smoke sync.adapter=hot learner.lora.rank=4 learner.lora.dora=true", "no DoRA", "learner.lora.dora=false"),
    bad(
        "run single_gpu data.train=good.jsonl sync.adapter=hot learner.lora.rank=4 sync.backend=ipc",
        "sync.adapter=hot: sync.backend=ipc",
        "sync.adapter=merged",
    ),
    bad(
        "run single_gpu data.train=good.jsonl sync.adapter=hot learner.lora.rank=4 model.dtype=float32",
        "sync.adapter=hot: on GPUs",
        "model.dtype=bfloat16",
    ),
    bad(
        "train opd distill.off_policy=true sync.adapter=hot learner.lora.rank=4 data.train=good.jsonl",
        "sync.adapter=hot: no engine takes up weights",
    ),
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
    bad("train smoke data.train=good.jsonl model.adapter=./none", "model.adapter=./none", "no such folder"),
    bad("train smoke data.train=good.jsonl model.adapter=./pickled", "model.adapter=./pickled", "a peft adapter"),
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
    bad(
        "eval ./empty_folder",
        "./empty_folder",
        "holds no model (config.json), adapter (adapter_config.json) or run",
    ),
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
