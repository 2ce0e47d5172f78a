"""Stage 1 on rows: rewriting (Eq. 1), semantic filter and guards (Eqs. 2-3), fusion with judges (Eq. 4).

    row (x, y) ── rewrite ──> ỹ ── filter, guards ──> accepted ── fuse, judge, r rounds ──> ŷ = best candidate
                                       └──────────── refused ─────────────────────────────> ŷ = y

Engine-free: text comes from a `Generate` a role. Knows nothing about Ray, tokens or files. What it returns for
a batch depends on the rows, the config and `run.seed`, never on who runs it or when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raft_ray.config import RefineConfig
from raft_ray.data import Row
from raft_ray.models.templates import fill
from raft_ray.models.thinking import without_thinking
from raft_ray.refine.embed import Embedder, semantic_filter
from raft_ray.refine.generation import Completion, Generate, Request
from raft_ray.refine.guards import Draft, refusal
from raft_ray.refine.judges import Case, Judge, embedded_text
from raft_ray.refine.roles import RefinePrompts, asking, rewrite_chat
from raft_ray.refine.schema import FAILED, OFF, Candidate, RefinedRow


@dataclass(frozen=True)
class Refiner:
    """Refines batches of rows."""

    config: RefineConfig
    seed: int
    """`run.seed`."""
    rewriter: Generate
    fuser: Generate | None
    """None with `refine.fuser=none`."""
    embedder: Embedder
    """φ."""
    judges: Sequence[Judge]
    """Who scores candidates."""
    prompts: RefinePrompts

    def refine(self, rows: Sequence[Row]) -> list[RefinedRow]:
        """One refined row for each row, in order. The batch is generated together, so its texts depend on its rows."""
        refined = self.rewrite(rows)
        self.fuse(refined)
        return refined

    def rewrite(self, rows: Sequence[Row]) -> list[RefinedRow]:
        """Eqs. 1-3 for all rows, `refine.attempts` times at most; what is accepted is `fused` until `fuse`."""
        refined = [unrefined(row) for row in rows]
        pending = refined
        for attempt in range(self.config.attempts):
            if pending:
                self._rewrite_once(pending, attempt)
                pending = [row for row in pending if not row["accepted"]]
        return refined

    def fuse(self, refined: list[RefinedRow]) -> None:
        """Eq. 4 in place, for the accepted ones of rewritten rows; without a fuser their rewrites stay."""
        if self.fuser is not None:
            self._fuse([row for row in refined if row["accepted"]], self.fuser)

    def _rewrite_once(self, rows: list[RefinedRow], attempt: int) -> None:
        """One rewrite of each of `rows`, generated together, with its similarity and whether it is accepted."""
        template = self.prompts.rewrite
        completions = self.rewriter(
            [
                Request(rewrite_chat(template, row["messages"], row["prompt"], row["answer"]), sample_index=attempt)
                for row in rows
            ],
            temperature=self.config.temperature,
            max_new_tokens=self.config.max_new_tokens,
            seed=self.seed,
        )
        texts = [without_thinking(completion.text) for completion in completions]
        prompts, on = [row["prompt"] for row in rows], self.config.similarity_on
        gold_ND, rewrite_ND = (
            self.embedder.embed([embedded_text(*pair, on) for pair in zip(prompts, answers, strict=True)])
            for answers in ([row["answer"] for row in rows], texts)
        )
        similarity_N, passed_N = semantic_filter(gold_ND, rewrite_ND, self.config.tau)
        for i, row in enumerate(rows):
            reason = self._refusal(row, completions[i], template)
            row["rewrite"] = texts[i]
            row["similarity"] = float(similarity_N[i])
            row["refused"] = reason or (None if passed_N[i] else "similarity")
            row["accepted"] = row["refused"] is None
            row["fused"] = texts[i] if row["accepted"] else row["answer"]

    def _fuse(self, rows: list[RefinedRow], fuser: Generate) -> None:
        """Eq. 4 in place: rounds of fused candidates, judged; a row leaves once its best reaches `stop_score`."""
        for row in rows:
            if self.config.candidate_rewrite:
                row["candidates"].append(_candidate(row["rewrite"] or "", "rewrite", 0))
            if self.config.candidate_gold:
                row["candidates"].append(_candidate(row["answer"], "gold", 0))
        self._judge([(row, candidate) for row in rows for candidate in row["candidates"]])
        active = rows
        for number in range(1, self.config.rounds + 1):
            if active:
                self._fusion_round(active, number, fuser)
                active = [row for row in active if not self._good_enough(row)]
        for row in rows:
            judged = [candidate for candidate in row["candidates"] if is_judged(candidate)]
            best = max(judged, key=lambda candidate: candidate["score"], default=None)
            if best:  # else all were refused or no judge answered: the rewrite, which passed the guards, stays
                row["fused"] = best["text"]

    def _fusion_round(self, rows: list[RefinedRow], number: int, fuser: Generate) -> None:
        """One round for all of `rows`, generated together."""
        count = self.config.candidates
        requests = []
        for row in rows:
            said = {"prompt": row["prompt"], "answer": row["answer"], "rewrite": row["rewrite"] or ""}
            chat = asking(row["messages"], fill(self.prompts.fuse, **said))
            requests += [Request(chat, sample_index=number * count + one) for one in range(count)]
        completions = fuser(
            requests,
            temperature=self.config.fuse_temperature,
            max_new_tokens=self.config.max_new_tokens,
            seed=self.seed,
        )
        usable = []
        for i, row in enumerate(rows):
            row["rounds"] = number
            for completion in completions[i * count : (i + 1) * count]:
                candidate = _candidate(without_thinking(completion.text), "fuse", number)
                row["candidates"].append(candidate)
                if self._refusal(row, completion, self.prompts.fuse) is None:
                    usable.append((row, candidate))
        self._judge(usable)

    def _judge(self, judged: list[tuple[RefinedRow, Candidate]]) -> None:
        """Fill in the candidates' scores in place; each judge sees all of them at once. Their mean leaves out judges
        that failed on a candidate, whose score in the trail is null."""
        cases = [
            Case(row["prompt"], row["answer"], candidate["text"], right_answers(row["answer"], row["answers"]))
            for row, candidate in judged
        ]
        for judge in self.judges if cases else ():
            for (_, candidate), value in zip(judged, judge.score(cases), strict=True):
                candidate["scores"].append({"judge": judge.name, "score": value})
        for _, candidate in judged:
            given = [score["score"] for score in candidate["scores"] if score["score"] is not None]
            candidate["score"] = sum(given) / len(given) if given else 0.0

    def _good_enough(self, row: RefinedRow) -> bool:
        return any(is_judged(c) and c["score"] >= self.config.stop_score for c in row["candidates"])

    def _refusal(self, row: RefinedRow, completion: Completion, template: str) -> str | None:
        if completion.failed is not None:
            return FAILED
        draft = Draft(
            prompt=row["prompt"],
            answer=row["answer"],
            text=completion.text,
            right=right_answers(row["answer"], row["answers"]),
            context="\n".join(message["content"] for message in row["messages"][:-1]),
            truncated=completion.truncated,
            too_long=completion.too_long,
            template=template,
        )
        switches = {"key_facts": self.config.require_key_facts, "invented": self.config.refuse_invented}
        off = [name for name, on in switches.items() if not on]
        return refusal(draft, off=off, limits=self.config.guards)


def unrefined(row: Row) -> RefinedRow:
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


def is_judged(candidate: Candidate) -> bool:
    """At least one judge gave it a score."""
    return any(score["score"] is not None for score in candidate["scores"])


def _candidate(text: str, source: str, number: int) -> Candidate:
    return {"text": text, "source": source, "round": number, "scores": [], "score": 0.0}
