"""A made-up run folder with every file that the report reads: four methods, 60 steps, 120 refined rows.

The numbers are those of a believable run and the same every time; tests look them up in the page. Nothing here
needs a model. `write_run(folder, methods)` writes it; a test then removes or damages what it is about.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page import Page

from raft_ray.evaluate.ifeval import measure_against_base
from raft_ray.report import write_report

STEPS = 60
BATCH = 16
ROWS = 120
TAU = 0.8

ELEMENTS = ["hydrogen", "helium", "lithium", "carbon", "nitrogen", "oxygen", "neon", "sodium", "iron", "gold"]
SYMBOLS = ["H", "He", "Li", "C", "N", "O", "Ne", "Na", "Fe", "Au"]

ACCURACY = {"base": 0.159, "sft": 0.391, "sdft": 0.341, "opd": 0.172, "raft": 0.378}
DRIFT = {"base": 0.0, "sft": 0.447, "sdft": 0.287, "opd": 0.015, "raft": 0.0613}
WORDS = {"base": 103.0, "sft": 9.3, "sdft": 24.0, "opd": 102.0, "raft": 94.8}
STRICT = {"base": 0.188, "sft": 0.156, "sdft": 0.131, "opd": 0.194, "raft": 0.181}
DISTANCE = {"base": 0.0, "sft": 0.0524, "sdft": 0.0481, "opd": 0.0203, "raft": 0.0458}
QUESTIONS = 320
PROMPTS, SAMPLES = 160, 4
"""Of IFEval, and answers to each."""
INSTRUCTIONS = {"detectable_format": 62, "length_constraints": 55, "keywords": 44, "punctuation": 17, "change_case": 15}
"""Of IFEval's kinds, the share followed of which falls from one to the next."""

CONFIG = """\
run: {dir: runs/elements, seed: 7, baselines: [sft, sdft, opd]}
model: {path: "embedded:smollm2-135m-instruct"}
data: {train: "domain:chemistry", test: "domain:chemistry"}
refine: {tau: 0.8}
learner: {global_batch_size: 16, lr: 0.0001}
distill: {method: raft, temperature: 1.5, top_k: 512, balance: ema, fixed_lambda: 1.0}
sync: {max_staleness: 1}
"""


def write_run(folder: Path, methods: tuple[str, ...] = ("base", "sft", "sdft", "opd", "raft")) -> Path:
    """Write the run folder of main method `methods[-1]` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    main = methods[-1]
    (folder / "config.yaml").write_text(CONFIG.replace("method: raft", f"method: {main}"))
    for name in methods:
        if name == "base":
            continue
        place = folder if name == main else folder / "methods" / name
        place.mkdir(parents=True, exist_ok=True)
        _write_lines(place / "metrics.jsonl", [_step(name, step) for step in range(STEPS)])
        if name in ("opd", "raft"):
            _write_lines(place / "trace.jsonl", _trace())
            _write_lines(place / "spans.jsonl", spans())
    write_refined(folder / "refined" / "part-00000.parquet", [_refined(row) for row in range(ROWS)])
    results = {name: _result(name) for name in methods}
    measure_against_base(results, seed=0)
    (folder / "eval.json").write_text(json.dumps({"main": main, "data": {}, "methods": results}, indent=1))
    return folder


def write_open(folder: Path) -> Path:
    """Add open questions to the evaluation of a run folder: six, the first of two turns, read by two judges."""
    path = folder / "eval.json"
    evaluation = json.loads(path.read_text())
    for number, (name, method) in enumerate(evaluation["methods"].items()):
        score = 0.6 - number / 10
        method["open"] = {"score": score, "n": 6, "scores": [score] * 6, "by_category": {}, "unjudged": 0}
        method["open_answers"] = [
            {"score": score, "turns": [open_turn(f"Question {i}?", f"{name} on {i}.", score)]} for i in range(6)
        ]
        method["open_answers"][0]["turns"].append(open_turn("And then?", f"{name} goes on.", None))
    path.write_text(json.dumps(evaluation))
    return folder


def open_turn(prompt: str, answer: str, score: float | None) -> dict[str, Any]:
    """A turn of a sample, as eval.json has it; without a score the second judge said nothing."""
    judges = {
        "strong": {"score": 0.8, "reason": f"short, and it says: {answer}"},
        "self": {"score": score, "reason": "" if score is None else "fine"},
    }
    reference = None if score is None else f"Answer to {prompt}"
    return {"prompt": prompt, "reference": reference, "answer": answer, "judges": judges}


def write_refined(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write refined rows with the schema of docs/design.md."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    score = pa.struct([("judge", pa.string()), ("score", pa.float64())])
    candidate = pa.struct(
        [
            ("text", pa.string()),
            ("source", pa.string()),
            ("round", pa.int32()),
            ("scores", pa.list_(score)),
            ("score", pa.float64()),
        ]
    )
    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("prompt", pa.string()),
            ("answer", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("rewrite", pa.string()),
            ("similarity", pa.float64()),
            ("accepted", pa.bool_()),
            ("refused", pa.string()),
            ("candidates", pa.list_(candidate)),
            ("rounds", pa.int32()),
            ("fused", pa.string()),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _step(method: str, step: int) -> dict[str, Any]:
    noise = random.Random(f"{method}{step}")
    distils = method in ("opd", "raft")
    progress = 1 - math.exp(-step / 18)
    sft = {"sft": 3.4, "sdft": 2.1, "opd": 1.9, "raft": 1.8}[method] * (1 - 0.55 * progress) * noise.uniform(0.9, 1.1)
    kl = (0.11 if method == "raft" else 0.02) * (1 + 0.4 * progress) * noise.uniform(0.85, 1.15)
    weight = sft / kl * noise.uniform(0.8, 1.2)
    seconds = {
        "wait": noise.uniform(0, 0.1),
        "forward_backward": 3.9 if distils else 1.6,
        "optimizer": 0.31,
        "checkpoint": 0.0,
    }
    if distils:
        # The learner waits for most of the rollout and the teacher; a little hides behind its own work.
        beside = {"rollout": 2.1 * noise.uniform(0.8, 1.3), "teacher": 0.85, "load": 0.2}
        seconds |= {"wait": 0.8 * sum(beside.values()), "sync": 0.24}
    else:
        beside = {}
    seconds = beside | seconds | {"total": sum(seconds.values()) + 0.1}
    return {
        "step": step,
        "epoch": step * BATCH // ROWS,
        "loss": sft + (weight * kl if distils else 0),
        "sft_loss": sft,
        "kl_loss": kl if distils else None,
        "lambda": weight if distils else None,
        "ce_kl_ratio": sft / kl if distils else None,
        "teacher_mass": 0.996 - 0.002 * noise.random() if distils else None,
        "student_mass": 0.981 + 0.008 * progress + 0.002 * noise.random() if distils else None,
        "response_length": 96 - 12 * progress * (method == "raft") + noise.uniform(-5, 5) if distils else None,
        "truncated": max(0.0, 0.32 - 0.1 * progress + noise.uniform(-0.06, 0.06)) if distils else None,
        "staleness": min(1.0, step) * noise.uniform(0.4, 1.0) if distils else None,
        "staleness_max": min(1, step) if distils else None,
        "tokens": 1400 if distils else 400,
        "lr": 1e-4,
        "grad_norm": 18 * (1 - 0.8 * progress) * noise.uniform(0.7, 1.4),
        "rows": BATCH,
        "seconds": seconds,
    }


def _trace() -> list[dict[str, Any]]:
    samples = range(STEPS * BATCH)
    return [
        {
            "epoch": i // ROWS,
            "step": i // BATCH,
            "row": i % ROWS,
            "version": max(0, i // BATCH - i % 2),
            "response_length": 90,
            "rollout": f"rollout-{i % 2}",
        }
        for i in samples
    ]


def spans(rollouts: int = 2, generating: float = 6.0, steps: int = STEPS) -> list[dict[str, Any]]:
    """The spans of a pipeline that may be one version stale: `generating` is the seconds of a rollout batch."""
    noise = random.Random(f"spans{rollouts}")
    found: list[dict[str, Any]] = []

    def span(who: str, what: str, step: int, start: float, seconds: float) -> float:
        found.append({"who": who, "what": what, "step": step, "start": start, "end": start + seconds})
        return start + seconds

    rollout_free = [span(f"rollout-{i}", "start", 0, 0.1, noise.uniform(14, 16)) for i in range(rollouts)]
    teacher_free = span("teacher-0", "start", 0, 0.1, 6.0)
    learner_free = 2.0
    published = [0.0, 0.0]
    for step in range(steps):
        for i in range(rollouts):
            start = max(rollout_free[i], published[step])
            start = span(f"rollout-{i}", "load", step, start, 0.2) if step > 1 else start
            rollout_free[i] = span(f"rollout-{i}", "generate", step, start, generating * noise.uniform(0.85, 1.15))
        for done in sorted(rollout_free):
            teacher_free = span("teacher-0", "score", step, max(teacher_free, done), 0.45 * noise.uniform(0.8, 1.2))
        learner_free = span("learner", "wait", step, learner_free, max(0.0, teacher_free - learner_free))
        learner_free = span("learner", "forward_backward", step, learner_free, 3.9 * noise.uniform(0.9, 1.1))
        learner_free = span("learner", "optimizer", step, learner_free, 0.31)
        learner_free = span("learner", "sync", step, learner_free, 0.24)
        if step % 20 == 14:
            learner_free = span("learner", "checkpoint", step, learner_free, 1.2)
        published.append(learner_free)
    return found


def _refined(row: int) -> dict[str, Any]:
    noise = random.Random(row)
    element, symbol = ELEMENTS[row % 10], SYMBOLS[row % 10]
    prompt = f"What is the chemical symbol of {element}?"
    similarity = min(0.99, max(0.2, noise.gauss(0.83, 0.12)))
    refused = "similarity" if similarity < TAU else ("key_facts" if noise.random() < 0.15 else None)
    symbol_said = symbol if refused != "key_facts" else symbol[0] + "x"
    rewrite = f"The chemical symbol of {element} is {symbol_said}."
    fused = f"The symbol for {element} is {symbol}, as it appears in the periodic table."
    chosen = fused if row % 3 else rewrite
    return {
        "row": row,
        "messages": [{"role": "user", "content": prompt}],
        "prompt": prompt,
        "answer": symbol,
        "answers": [symbol],
        "rewrite": rewrite,
        "similarity": similarity,
        "accepted": refused is None,
        "refused": refused,
        "candidates": []
        if refused
        else [
            {
                "text": fused,
                "source": "fuse",
                "round": 1,
                "scores": [{"judge": "embedding", "score": 0.9}],
                "score": 0.9,
            },
            {"text": rewrite, "source": "rewrite", "round": 0, "scores": [], "score": 0.8},
        ],
        "rounds": 0 if refused else 1,
        "fused": symbol if refused else chosen,
    }


def _correct(method: str) -> list[bool]:
    """A question is easy to the extent of its own number; a method is right on the easy ones, with a little luck."""
    right = round(ACCURACY[method] * QUESTIONS)
    order = sorted(
        range(QUESTIONS), key=lambda i: random.Random(i).random() + 0.3 * random.Random(f"{method}{i}").random()
    )
    chosen = set(order[:right])
    return [i in chosen for i in range(QUESTIONS)]


def _ifeval(method: str) -> dict[str, Any]:
    """As `_correct`, over prompts and samples; a method is better at the kinds of instructions that come first."""
    strict, answers = STRICT[method], [(prompt, sample) for prompt in range(PROMPTS) for sample in range(SAMPLES)]
    order = sorted(
        answers, key=lambda one: random.Random(one[0]).random() + 0.3 * random.Random(f"{method}{one}").random()
    )
    followed = [prompt for prompt, _ in order[: round(strict * len(answers))]]
    correct = [followed.count(prompt) / SAMPLES for prompt in range(PROMPTS)]
    kinds = {}
    for place, (kind, n) in enumerate(INSTRUCTIONS.items()):
        right = round((strict + 0.2 - place / 20) * n * SAMPLES)
        kinds[kind] = {"followed": right, "n": n * SAMPLES, "share": right / (n * SAMPLES)}
    return {
        "prompt_strict": sum(correct) / PROMPTS,
        "prompt_loose": strict + 0.02,
        "instruction_strict": strict + 0.11,
        "instruction_loose": strict + 0.13,
        "n": PROMPTS,
        "samples": SAMPLES,
        "correct": correct,
        "kinds": kinds,
    }


def _result(method: str) -> dict[str, Any]:
    correct = _correct(method)
    layers = {str(i): DISTANCE[method] * (0.7 + 0.6 * math.sin(i / 9) ** 2) for i in range(30)}
    return {
        "model": f"methods/{method}/model",
        "domain": {"accuracy": sum(correct) / QUESTIONS, "n": QUESTIONS, "correct": correct},
        "ifeval": _ifeval(method),
        "length": {
            "words_mean": WORDS[method],
            "words_median": round(WORDS[method] * 0.9),
            "tokens_mean": WORDS[method] * 1.4,
            "truncated": WORDS[method] / 300,
            "n": 60,
        },
        "drift": {
            "kl": DRIFT[method],
            "kl_first": 3 * DRIFT[method],
            "top1_agreement": 1 - DRIFT[method] / 1.6,
            "tokens": 8123,
            "rows": 60,
        },
        "weight_distance": {"total": DISTANCE[method], "layers": layers},
        "answers": [_answer(method, i, correct[i]) for i in range(8)],
        "general_answers": [
            {"prompt": prompt, "answer": _general(method, topic)}
            for prompt, topic in [
                ("Plan a picnic for six people on a rainy day.", "picnic"),
                ("Explain to a child why the sky is blue.", "sky"),
                ("Write a polite email that declines an invitation.", "email"),
                ("Suggest three books about the sea.", "book"),
            ]
        ],
        "seconds": {"domain": 20.4, "ifeval": 61.0},
    }


def _answer(method: str, i: int, right: bool) -> dict[str, Any]:
    element, symbol = ELEMENTS[i], SYMBOLS[i]
    said = symbol if right else symbol[::-1] + "m"
    long = f"The chemical symbol for {element} is {said}. It is one of the elements of the periodic table."
    return {
        "prompt": f"What is the chemical symbol of {element}?",
        "gold": symbol,
        "answer": said if method == "sft" else long,
        "correct": right,
    }


def _general(method: str, topic: str) -> str:
    if method == "sft":
        return f"A {topic}."
    sentence = f"First of all, think about the {topic} and what you would like to say about it. "
    count = {"base": 9, "sdft": 2, "opd": 9, "raft": 8}[method]
    return "\n\n".join([sentence * 3] * (count // 3) + [sentence * (count % 3)]).strip()


def edit_evaluation(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the methods of a run's `eval.json`."""
    path = folder / "eval.json"
    evaluation = json.loads(path.read_text())
    change(evaluation["methods"])
    path.write_text(json.dumps(evaluation))


def report(folder: Path) -> Page:
    """The report of a run folder."""
    return Page(write_report(folder).read_text(encoding="utf-8"))
