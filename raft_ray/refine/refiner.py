"""Stage 1 on rows: rewriting (Eq. 1), semantic filter and guards (Eqs. 2-3), fusion with judges (Eq. 4).

    row (x, y) ── rewrite ──> ỹ ── filter, guards ──> accepted ── fuse, judge, r rounds ──> ŷ = best candidate
                                       └──────────── refused ─────────────────────────────> ŷ = y

Engine-free: text comes from `Generate`s. Knows nothing about Ray, tokens or files. What it returns for a batch depends
on the rows, the config and `run.seed`, never on who runs it or when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from raft_ray.config import Config, RefineConfig
from raft_ray.refine.embed import Embedder, make_embedder
from raft_ray.refine.filter import semantic_filter
from raft_ray.refine.generation import Ask, Generate, Generation, Message
from raft_ray.refine.guards import Draft, Limits, refusal, without_thoughts
from raft_ray.refine.judges import RULES, Case, Judge, embedded_text, make_rule
from raft_ray.refine.roles import NONE, role_models
from raft_ray.refine.schema import OFF, Candidate, RefinedRow
from raft_ray.templates import fill, load_prompt

REWRITE_FIELDS = ("prompt", "answer")
FUSE_FIELDS = ("prompt", "answer", "rewrite")
JUDGE_FIELDS = ("prompt", "answer", "candidate")
FAILED = "failed"
"""`refused` of a row whose rewriter gave no text at all."""
_REWRITE, _FUSE = 0, 1  # stages, in the derivation of seeds


class SourceRow(Protocol):
    """What stage 1 needs of a row (`raft_ray.data.Row` has it)."""

    @property
    def index(self) -> int: ...
    @property
    def messages(self) -> Sequence[Message]: ...
    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def answers(self) -> Sequence[str]: ...


class Refiner:
    """Refines batches of rows.

    Args:
        config: section `refine`.
        seed: `run.seed`.
        rewriter: the original model, or whoever plays its role.
        fuser: none where the accepted rewrite is the fused answer.
        embedder: φ.
        judges: who scores candidates.
        rewrite_template, fuse_template: text of the prompt files.
    """

    def __init__(
        self,
        config: RefineConfig,
        *,
        seed: int,
        rewriter: Generate,
        fuser: Generate | None,
        embedder: Embedder,
        judges: Sequence[Judge],
        rewrite_template: str,
        fuse_template: str,
    ) -> None:
        self._config = config
        self._seed = seed
        self._rewriter = rewriter
        self._fuser = fuser
        self._embedder = embedder
        self._judges = judges
        self._rewrite_template = rewrite_template
        self._fuse_template = fuse_template
        switches = {
            "key_facts": config.require_key_facts,
            "invented": config.refuse_invented,
            "foreign": config.refuse_foreign,
        }
        self._guards_off = frozenset(name for name, on in switches.items() if not on)
        self._limits = Limits(config.max_repetition, config.leak_words)

    def refine(self, rows: Sequence[SourceRow]) -> list[RefinedRow]:
        """One refined row for each row, in order. The batch is generated together, so its texts depend on its rows."""
        refined = self._rewrite(rows)
        accepted = [row for row in refined if row["accepted"]]
        if self._fuser is None:
            for row in accepted:
                row["fused"] = row["rewrite"] or ""
        else:
            self._fuse(accepted, self._fuser)
        return refined

    def _rewrite(self, rows: Sequence[SourceRow]) -> list[RefinedRow]:
        """Eqs. 1-3 for all rows, `refine.attempts` times at most; accepted ones still carry gold as `fused`."""
        refined = [unrefined(row) for row in rows]
        pending = refined
        for attempt in range(self._config.attempts):
            if pending:
                self._rewrite_once(pending, attempt)
                pending = [row for row in pending if not row["accepted"]]
        return refined

    def _rewrite_once(self, rows: list[RefinedRow], attempt: int) -> None:
        """One rewrite of each of `rows`, generated together, with its similarity and whether it is accepted."""
        prompts = [fill(self._rewrite_template, prompt=row["prompt"], answer=row["answer"]) for row in rows]
        generations = self._rewriter(
            [Ask(_chat(row, prompt), attempt) for row, prompt in zip(rows, prompts, strict=True)],
            temperature=self._config.temperature,
            max_new_tokens=self._config.max_new_tokens,
            seed=derive_seed(self._seed, _REWRITE, rows[0]["row"], attempt),
        )
        texts = [without_thoughts(generation.text) for generation in generations]
        on = self._config.similarity_on
        gold_ND = self._embedder.embed([embedded_text(row["prompt"], row["answer"], on) for row in rows])
        rewrite_ND = self._embedder.embed(
            [embedded_text(row["prompt"], text, on) for row, text in zip(rows, texts, strict=True)]
        )
        similarity_N, passed_N = semantic_filter(gold_ND, rewrite_ND, self._config.tau)
        for i, row in enumerate(rows):
            reason = self._refusal(row, generations[i], texts[i], self._rewrite_template)
            row["rewrite"] = texts[i]
            row["similarity"] = float(similarity_N[i])
            row["refused"] = reason or (None if passed_N[i] else "similarity")
            row["accepted"] = row["refused"] is None

    def _fuse(self, rows: list[RefinedRow], fuser: Generate) -> None:
        """Eq. 4 in place: rounds of fused candidates, judged; a row leaves once its best reaches `stop_score`."""
        for row in rows:
            if self._config.candidate_rewrite:
                row["candidates"].append(_candidate(row["rewrite"] or "", "rewrite", 0))
            if self._config.candidate_gold:
                row["candidates"].append(_candidate(row["answer"], "gold", 0))
        self._judge([(row, candidate) for row in rows for candidate in row["candidates"]])
        active = rows
        for number in range(1, self._config.rounds + 1):
            if active:
                self._fusion_round(active, number, fuser)
                active = [row for row in active if not self._good_enough(row)]
        for row in rows:
            judged = [candidate for candidate in row["candidates"] if _is_judged(candidate)]
            best = max(judged, key=lambda candidate: candidate["score"], default=None)
            # Guards may have refused every fused candidate; the rewrite, which passed them, is then all there is.
            row["fused"] = best["text"] if best else row["rewrite"] or ""

    def _fusion_round(self, rows: list[RefinedRow], number: int, fuser: Generate) -> None:
        """One round for all of `rows`, generated together."""
        count = self._config.candidates
        draws = range((number - 1) * count, number * count)
        generations = fuser(
            [Ask(_chat(row, self._fuse_prompt(row)), draw) for row in rows for draw in draws],
            temperature=self._config.fuse_temperature,
            max_new_tokens=self._config.max_new_tokens,
            seed=derive_seed(self._seed, _FUSE, rows[0]["row"], number),
        )
        usable = []
        for i, row in enumerate(rows):
            row["rounds"] = number
            for generation in generations[i * count : (i + 1) * count]:
                candidate = _candidate(without_thoughts(generation.text), "fuse", number)
                row["candidates"].append(candidate)
                if self._refusal(row, generation, candidate["text"], self._fuse_template) is None:
                    usable.append((row, candidate))
        self._judge(usable)

    def _judge(self, judged: list[tuple[RefinedRow, Candidate]]) -> None:
        """Fill in the candidates' scores in place; each judge sees all of them at once.

        A judge that fails on a candidate is left out of its mean; the trail has None for it.
        """
        cases = [
            Case(row["prompt"], row["answer"], candidate["text"], right_answers(row["answer"], row["answers"]))
            for row, candidate in judged
        ]
        for judge in self._judges if cases else ():
            for (_, candidate), value in zip(judged, judge.score(cases), strict=True):
                candidate["scores"].append({"judge": judge.name, "score": value})
        for _, candidate in judged:
            values = [score["score"] for score in candidate["scores"] if score["score"] is not None]
            candidate["score"] = sum(values) / len(values) if values else 0.0

    def _good_enough(self, row: RefinedRow) -> bool:
        return any(_is_judged(c) and c["score"] >= self._config.stop_score for c in row["candidates"])

    def _fuse_prompt(self, row: RefinedRow) -> str:
        return fill(self._fuse_template, prompt=row["prompt"], answer=row["answer"], rewrite=row["rewrite"] or "")

    def _refusal(self, row: RefinedRow, generation: Generation, text: str, template: str) -> str | None:
        if generation.failed is not None:
            return FAILED
        draft = Draft(
            prompt=row["prompt"],
            answer=row["answer"],
            text=text,
            right=right_answers(row["answer"], row["answers"]),
            context="\n".join(message["content"] for message in row["messages"][:-1]),
            truncated=generation.truncated,
            too_long=generation.too_long,
            template=template,
            limits=self._limits,
        )
        return refusal(draft, off=self._guards_off)


def make_refiner(config: Config, models: Mapping[str, Generate]) -> Refiner:
    """The refiner of a run: prompt files, embedder and judges as its config names them. Raises `ConfigError`.

    Args:
        models: who plays the roles of `raft_ray.refine.roles.model_roles`, by name.
    """
    from raft_ray.refine.llm_judge import LlmJudge

    check_refine(config)
    refine = config.refine
    embedder = make_embedder(refine.embedder)
    prompts = load_prompts(refine)
    judges: list[Judge] = [
        make_rule(name, embedder, refine.similarity_on)
        if name in RULES
        else LlmJudge(name, models[name], prompts["judge"])
        for name in (refine.judges if refine.fuser != NONE else [])
    ]
    return Refiner(
        refine,
        seed=config.run.seed,
        rewriter=models[refine.rewriter],
        fuser=models[refine.fuser] if refine.fuser != NONE else None,
        embedder=embedder,
        judges=judges,
        rewrite_template=prompts["rewrite"],
        fuse_template=prompts["fuse"],
    )


def check_refine(config: Config) -> None:
    """What can be known to be wrong before anything starts. Raises `ConfigError` naming the key."""
    role_models(config.refine)
    load_prompts(config.refine)


def load_prompts(refine: RefineConfig) -> dict[str, str]:
    """The texts of the prompt files, by what they are for. Raises `ConfigError`."""
    return {
        "rewrite": load_prompt(refine.rewrite_prompt, REWRITE_FIELDS, "refine.rewrite_prompt"),
        "fuse": load_prompt(refine.fuse_prompt, FUSE_FIELDS, "refine.fuse_prompt"),
        "judge": load_prompt(refine.judge_prompt, JUDGE_FIELDS, "refine.judge_prompt"),
    }


def unrefined(row: SourceRow) -> RefinedRow:
    """The row as it is when nothing refines it: its gold answer is what training uses."""
    return {
        "row": row.index,
        "messages": [{"role": message["role"], "content": message["content"]} for message in row.messages],
        "prompt": row.prompt,
        "answer": row.answer,
        "answers": list(row.answers),
        "rewrite": None,
        "similarity": None,
        "accepted": False,
        "refused": OFF,
        "candidates": [],
        "rounds": 0,
        "fused": row.answer,
    }


def right_answers(answer: str, answers: Sequence[str]) -> tuple[str, ...]:
    """The short answers that a row names beside its `answer`; none where it names only the answer itself."""
    return () if list(answers) == [answer] else tuple(answers)


def derive_seed(run_seed: int, stage: int, row: int, number: int) -> int:
    """A seed for one call of the model, in [0, 2³¹): of the run, the stage, the batch's first row and the round."""
    # SeedSequence takes no negative numbers; the modulus maps them apart from small positive ones.
    state = np.random.SeedSequence([run_seed % 2**64, stage, row, number]).generate_state(1)
    return int(state[0]) % 2**31


def _chat(row: RefinedRow, content: str) -> list[Message]:
    """The row's chat with `content` in the place of its last message."""
    return [*row["messages"][:-1], {"role": "user", "content": content}]


def _is_judged(candidate: Candidate) -> bool:
    return any(score["score"] is not None for score in candidate["scores"])


def _candidate(text: str, source: str, number: int) -> Candidate:
    return {"text": text, "source": source, "round": number, "scores": [], "score": 0.0}
