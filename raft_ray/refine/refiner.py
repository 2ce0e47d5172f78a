"""Stage 1 on rows: rewriting (Eq. 1), semantic filter and guards (Eqs. 2-3), fusion with judges (Eq. 4).

    row (x, y) ── rewrite ──> ỹ ── filter, guards ──> accepted ── fuse, judge, r rounds ──> ŷ = best candidate
                                       └──────────── refused ─────────────────────────────> ŷ = y

Engine-free: text comes from a `Generate` function. Knows nothing about Ray, tokens or files. What it returns for
a batch depends on the rows, the config and `run.seed`, never on who runs it or when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from raft_ray.config import Config, RefineConfig
from raft_ray.errors import ConfigError
from raft_ray.refine.embed import Embedder, make_embedder
from raft_ray.refine.filter import semantic_filter
from raft_ray.refine.generation import Generation
from raft_ray.refine.guards import Draft, refusal
from raft_ray.refine.judges import Case, Judge, check_judges, embedded_text, make_judges
from raft_ray.refine.schema import OFF, Candidate, Message, RefinedRow
from raft_ray.templates import fill, load_prompt

REWRITE_FIELDS = ("prompt", "answer")
FUSE_FIELDS = ("prompt", "answer", "rewrite")
_REWRITE, _FUSE = 0, 1  # stages, in the derivation of seeds


class Generate(Protocol):
    """The model: one text for each chat, in order. The same chats and seed give the same texts."""

    def __call__(
        self, chats: list[list[Message]], *, temperature: float, max_new_tokens: int, seed: int
    ) -> list[Generation]: ...


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
        generate: the original model.
        embedder: φ.
        judges: who scores candidates.
        rewrite_template, fuse_template: text of the prompt files.
    """

    def __init__(
        self,
        config: RefineConfig,
        *,
        seed: int,
        generate: Generate,
        embedder: Embedder,
        judges: Sequence[Judge],
        rewrite_template: str,
        fuse_template: str,
    ) -> None:
        self._config = config
        self._seed = seed
        self._generate = generate
        self._embedder = embedder
        self._judges = judges
        self._rewrite_template = rewrite_template
        self._fuse_template = fuse_template
        switches = {"key_facts": config.require_key_facts, "invented": config.refuse_invented}
        self._guards_off = frozenset(name for name, on in switches.items() if not on)

    def refine(self, rows: Sequence[SourceRow]) -> list[RefinedRow]:
        """One refined row for each row, in order. The batch is generated together, so its texts depend on its rows."""
        refined = self._rewrite(rows)
        accepted = [row for row in refined if row["accepted"]]
        if self._config.fuser == "none":
            for row in accepted:
                row["fused"] = row["rewrite"] or ""
        else:
            self._fuse(accepted)
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
        generations = self._generate(
            [_chat(row, fill(self._rewrite_template, prompt=row["prompt"], answer=row["answer"])) for row in rows],
            temperature=self._config.temperature,
            max_new_tokens=self._config.max_new_tokens,
            seed=derive_seed(self._seed, _REWRITE, rows[0]["row"], attempt),
        )
        texts = [generation.text.strip() for generation in generations]
        on = self._config.similarity_on
        gold_ND = self._embedder.embed([embedded_text(row["prompt"], row["answer"], on) for row in rows])
        rewrite_ND = self._embedder.embed(
            [embedded_text(row["prompt"], text, on) for row, text in zip(rows, texts, strict=True)]
        )
        similarity_N, passed_N = semantic_filter(gold_ND, rewrite_ND, self._config.tau)
        for i, row in enumerate(rows):
            reason = self._refusal(row, generations[i], self._rewrite_template)
            row["rewrite"] = texts[i]
            row["similarity"] = float(similarity_N[i])
            row["refused"] = reason or (None if passed_N[i] else "similarity")
            row["accepted"] = row["refused"] is None

    def _fuse(self, rows: list[RefinedRow]) -> None:
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
                self._fusion_round(active, number)
                active = [row for row in active if not self._good_enough(row)]
        for row in rows:
            judged = [candidate for candidate in row["candidates"] if candidate["scores"]]
            best = max(judged, key=lambda candidate: candidate["score"], default=None)
            # Guards may have refused every fused candidate; the rewrite, which passed them, is then all there is.
            row["fused"] = best["text"] if best else row["rewrite"] or ""

    def _fusion_round(self, rows: list[RefinedRow], number: int) -> None:
        """One round for all of `rows`, generated together."""
        count = self._config.candidates
        generations = self._generate(
            [_chat(row, self._fuse_prompt(row)) for row in rows for _ in range(count)],
            temperature=self._config.fuse_temperature,
            max_new_tokens=self._config.max_new_tokens,
            seed=derive_seed(self._seed, _FUSE, rows[0]["row"], number),
        )
        usable = []
        for i, row in enumerate(rows):
            row["rounds"] = number
            for generation in generations[i * count : (i + 1) * count]:
                candidate = _candidate(generation.text.strip(), "fuse", number)
                row["candidates"].append(candidate)
                if self._refusal(row, generation, self._fuse_template) is None:
                    usable.append((row, candidate))
        self._judge(usable)

    def _judge(self, judged: list[tuple[RefinedRow, Candidate]]) -> None:
        """Fill in the candidates' scores in place; each judge sees all of them at once."""
        cases = [
            Case(row["prompt"], row["answer"], candidate["text"], right_answers(row["answer"], row["answers"]))
            for row, candidate in judged
        ]
        for judge in self._judges if cases else ():
            for (_, candidate), value in zip(judged, judge.score(cases), strict=True):
                candidate["scores"].append({"judge": judge.name, "score": value})
        for _, candidate in judged:
            candidate["score"] = sum(score["score"] for score in candidate["scores"]) / len(candidate["scores"])

    def _good_enough(self, row: RefinedRow) -> bool:
        return any(c["scores"] and c["score"] >= self._config.stop_score for c in row["candidates"])

    def _fuse_prompt(self, row: RefinedRow) -> str:
        return fill(self._fuse_template, prompt=row["prompt"], answer=row["answer"], rewrite=row["rewrite"] or "")

    def _refusal(self, row: RefinedRow, generation: Generation, template: str) -> str | None:
        draft = Draft(
            prompt=row["prompt"],
            answer=row["answer"],
            text=generation.text,
            right=right_answers(row["answer"], row["answers"]),
            context="\n".join(message["content"] for message in row["messages"][:-1]),
            truncated=generation.truncated,
            too_long=generation.too_long,
            template=template,
        )
        return refusal(draft, off=self._guards_off)


def make_refiner(config: Config, generate: Generate) -> Refiner:
    """The refiner of a run: prompt files, embedder and judges as its config names them. Raises `ConfigError`."""
    check_refine(config)
    embedder = make_embedder(config.refine.embedder)
    rewrite_template, fuse_template = _templates(config.refine)
    return Refiner(
        config.refine,
        seed=config.run.seed,
        generate=generate,
        embedder=embedder,
        judges=make_judges(list(config.refine.judges), embedder, config.refine.similarity_on),
        rewrite_template=rewrite_template,
        fuse_template=fuse_template,
    )


def check_refine(config: Config) -> None:
    """What can be known to be wrong before anything starts. Raises `ConfigError` naming the key."""
    refine = config.refine
    if refine.rewriter != "self":
        raise ConfigError(f"refine.rewriter={refine.rewriter}: only `self` (the original model) rewrites")
    if refine.fuser not in ("self", "none"):
        raise ConfigError(f"refine.fuser={refine.fuser}: must be `self` or `none`")
    if refine.attempts < 1:
        raise ConfigError(f"refine.attempts={refine.attempts}: must be at least 1")
    check_judges(list(refine.judges))
    _templates(refine)


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


def _templates(refine: RefineConfig) -> tuple[str, str]:
    return (
        load_prompt(refine.rewrite_prompt, REWRITE_FIELDS, "refine.rewrite_prompt"),
        load_prompt(refine.fuse_prompt, FUSE_FIELDS, "refine.fuse_prompt"),
    )


def _chat(row: RefinedRow, content: str) -> list[Message]:
    """The row's chat with `content` in the place of its last message."""
    return [*row["messages"][:-1], {"role": "user", "content": content}]


def _candidate(text: str, source: str, number: int) -> Candidate:
    return {"text": text, "source": source, "round": number, "scores": [], "score": 0.0}
