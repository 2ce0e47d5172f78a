"""A process with the trackers' packages: writes a run's steps as the pipeline actor does, or reads a tracker's store.

    PYTHONPATH=.venv/trackers:tests python -m tracker_stores write TRACKER RUN FIRST LAST close|kill
    PYTHONPATH=.venv/trackers:tests python -m tracker_stores evaluate TRACKER RUN
    PYTHONPATH=.venv/trackers:tests python -m tracker_stores read TRACKER RUN

`read` prints `{"points": [[key, step, value], ...], "config": {...}, "names": [of the runs that are there]}`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from raft_ray.config import Config, Tracker
from raft_ray.distill.order import RowOrder
from raft_ray.distill.trajectory import SampleInfo
from raft_ray.runs.records import RunRecords
from raft_ray.runs.trackers import Trackers, track_evaluation

BLOCKS: list[dict[str, Any]] = [
    {"domain": {"accuracy": 0.75, "n": 4}, "mmlu": {"5-shot": {"accuracy": 1 / 3}}, "drift": None},
    {"domain": {"accuracy": 0.25, "n": 4}, "ifeval": {"prompt_strict": 0.5, "prompt_loose": None}},
]


def config_of(tracker: str, run: Path) -> Config:
    config = Config()
    config.run.dir, config.run.seed, config.learner.lr = str(run), 3, 1e-5
    config.run.trackers = [Tracker(tracker)]
    return config


def write(tracker: str, run: Path, first: int, last: int, end: str) -> None:
    """Steps `first` to `last`, as after a resumption from `first`'s checkpoint."""
    order = RowOrder(40, 2, 1, 0)
    trackers = Trackers(config_of(tracker, run), run)
    records = RunRecords(run, order, trackers)
    records.rewind(first)
    for step in range(first, last + 1):
        ids = list(order.batch_of(step))
        infos = [
            SampleInfo(
                sample_id=each,
                version=0,
                length=step + 2,
                truncated=False,
                teacher_mass=0.9,
                target_bytes=60,
                rollout="rollout-0",
            )
            for each in ids
        ]
        learned = {"loss": 1 / (step + 3), "kl_loss": None if step < 2 else 0.1, "lr": 1e-5, "tokens": 2**25 + step}
        records.add(step, infos, {**learned, "seconds": {"wait": 0.25 * step}})
        if (step + 1) % 3 == 0:
            shares = {"accuracy": 0.5, "ifeval": None}
            records.add_evaluation({"step": step + 1, "accuracy": 1 / (step + 2), "metric": "exact", "of_base": shares})
    state = run / "trackers" / f"{tracker}.json"
    while end == "kill":  # by then the tracker says that it has all
        assert trackers.failures() == []
        if state.exists() and json.loads(state.read_text())["last"] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
    records.close()
    assert trackers.failures() == []


def evaluate(tracker: str, run: Path) -> None:
    assert track_evaluation(config_of(tracker, run), run, *BLOCKS) == []


def read_tensorboard(run: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "tensors": 0}).Reload()
    tags = events.Tags()["scalars"]
    (text,) = events.Tensors("config/text_summary")
    (written,) = text.tensor_proto.string_val
    config = dict(line.strip().split(": ", 1) for line in written.decode().splitlines() if ": " in line)
    return {"points": [[tag, e.step, e.value] for tag in tags for e in events.Scalars(tag)], "config": config}


def read_wandb(run: Path) -> dict[str, Any]:
    from swanlab.converter.wb.wbdatastore import WBDataStoreReader
    from wandb.proto import wandb_internal_pb2

    points, config, names = [], {}, []
    for path in run.glob("wandb/offline-run-*/*.wandb"):
        step = 0
        with WBDataStoreReader() as store:
            store.open(path)
            while (data := store.scan()) is not None:
                record = wandb_internal_pb2.Record.FromString(data)
                for item in record.run.config.update:
                    config[item.key] = json.loads(item.value_json)
                if record.HasField("run"):
                    names.append([record.run.display_name, record.run.run_group])
                values = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                step = values.get("_step", step)
                points += [[key, step, value] for key, value in values.items() if key[0] != "_"]
                points += [
                    [item.key, step, json.loads(item.value_json)]
                    for item in record.summary.update
                    if item.key.startswith("eval/")
                ]
    return {"points": points, "config": config, "names": names}


def read_mlflow(run: Path) -> dict[str, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (found,) = client.search_runs([client.get_experiment_by_name("raft-ray").experiment_id])
    points = [
        [key, metric.step, metric.value]
        for key in found.data.metrics
        for metric in client.get_metric_history(found.info.run_id, key)
    ]
    names = [[found.info.run_name, found.data.tags["group"]]]
    return {"points": points, "config": found.data.params, "names": names}


def read_trackio(run: Path) -> dict[str, Any]:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("raft-ray")
    config = SQLiteStorage.get_run_config("raft-ray", name)
    points = [
        [key, line["step"], value]
        for line in SQLiteStorage.get_logs("raft-ray", name)
        for key, value in line.items()
        if key not in ("step", "timestamp")
    ]
    return {"points": points, "config": config, "names": [[name.rpartition("-")[0], config["_Group"]]]}


def read_swanlab(run: Path) -> dict[str, Any]:
    import yaml
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (path,) = run.glob("swanlab/run-*/*.swanlab")
    store = DataStoreReader()
    store.open(path)
    points, names = [], []
    while (data := store.scan()) is not None:
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        assert kind not in ("log", "media"), "something of the terminal's"
        if kind == "scalar":
            points.append([record.scalar.key, record.scalar.step, record.scalar.value.number])
        elif kind == "start":
            names.append([record.start.name, record.start.group])
    saved = yaml.safe_load((path.parent / "files" / "config.yaml").read_text())
    return {"points": points, "config": {key: value["value"] for key, value in saved.items()}, "names": names}


if __name__ == "__main__":
    what, tracker, folder, *rest = sys.argv[1:]
    if what == "read":
        print(json.dumps(globals()[f"read_{tracker}"](Path(folder))))
    elif what == "evaluate":
        evaluate(tracker, Path(folder))
    else:
        write(tracker, Path(folder), int(rest[0]), int(rest[1]), rest[2])
