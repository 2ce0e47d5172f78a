"""Stage 1's report: what it counts, what it shows, what it leaves out; and that it keeps little of many rows."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq
import pytest
from page import Page
from refine_fixture import ROWS, SUMMARY, TAU, read_refined, refined_row, write_refine_run

from raft_ray.errors import RaftError
from raft_ray.refine.gap import GAP, VALUES
from raft_ray.refine.schema import SUMMARY as SUMMARY_FILE
from raft_ray.refine.schema import refined_table, write_summary
from raft_ray.report import REFINE_REPORT, write_refine_report, write_report
from raft_ray.report.counts import Counts, Reservoir, used_range
from raft_ray.report.refine_facts import NEAREST, SAMPLES, Facts, read_facts
from raft_ray.report.refine_style import Style


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_refine_run(tmp_path / "run")


def report(run: Path) -> Page:
    return Page(write_refine_report(run).read_text(encoding="utf-8"))


def test_the_funnel_counts_every_row_once_at_each_step(run: Path) -> None:
    rows = read_refined(run / "refined")
    refused = Counter(row["refused"] for row in rows if row["refused"])
    accepted = sum(row["accepted"] for row in rows)
    guards = sum(count for reason, count in refused.items() if reason != "similarity")
    text = report(run).sections["From rows to answers"]
    assert f"rows {ROWS} 100% rewritten {ROWS} 100%" in text
    for reason, count in refused.items():
        shown = "below τ" if reason == "similarity" else reason.replace("_", " ")
        assert f"refused: {shown} {count} " in text
    assert f"past the guards {ROWS - guards} " in text
    assert f"past τ: accepted {accepted} " in text
    assert f"the gold answer {ROWS - accepted} " in text
    by_fusion = sum("With " in row["fused"] for row in rows)
    assert f"a fusion of both {by_fusion} " in text
    assert f"{4 * accepted:,} candidates; {accepted:,} of them went unjudged" in text


def test_the_first_lines_say_what_came_of_it(run: Path) -> None:
    text = report(run).sections["At a glance"]
    accepted = sum(row["accepted"] for row in read_refined(run / "refined"))
    assert f"{accepted} of 400 rows have a refined answer (41.0%)." in text
    assert "The compatibility gap shrank; fused answers against gold ones over the same 400 rows: +1.5" in text
    assert "Shown the fused answer, the teacher finds it likelier: a token's probability goes from 0.0" in text
    assert "The commonest reason to refuse a rewrite: below τ (" in text
    assert "Krippendorff's alpha 0.7" in text


def test_the_rows_nearest_to_tau_can_be_read(run: Path) -> None:
    rows = read_refined(run / "refined")
    page = report(run)
    text = page.sections["Similarity and the threshold"]
    below = sorted((r for r in rows if r["similarity"] < TAU), key=lambda r: -r["similarity"])[:NEAREST]
    above = sorted((r for r in rows if r["similarity"] >= TAU), key=lambda r: r["similarity"])[:NEAREST]
    before, after = text.split("Rows at τ and just above")
    assert [f"row {r['row']} " in before for r in below] == [True] * NEAREST
    assert [f"row {r['row']} " in after for r in above] == [True] * NEAREST


def test_gap_style_time_and_judges_are_told(run: Path) -> None:
    sections = report(run).sections
    gap = json.loads((run / "refined" / GAP).read_text())
    names = {
        "fused_minus_gold": "Fused over gold",
        "conditioned": "Fused answers, shown to the teacher",
        "conditioned_minus_fused": "Fused, shown over unseen",
    }
    for part in ("all", "accepted"):
        for key, name in names.items():
            rise = gap[part][key]
            line = f"{rise['mean']:.3f} {rise['low']:.3f} to {rise['high']:.3f} {rise['n']}"
            assert f"{name} {line}" in sections["Compatibility gap"]
    rows = read_refined(run / "refined")
    words = mean(len((row["rewrite"] or "").replace("-", " ").split()) for row in rows)
    assert f"Rewrites 400 {words:.3g} " in sections["Length and style"]
    assert "Gold answers 400 4.43 4 1 4.43" in sections["Length and style"]
    assert "rewrite 5 min 01 s 1.33" in sections["Time and cost"]
    assert "self 81,234 30,011 0" in sections["Time and cost"]
    assert "Cache: 12 hits, 1,188 misses." in sections["Time and cost"]
    assert f"Prompt fuse: SHA-256 {'01ab' * 16}" in sections["Time and cost"]
    assert "Failures of judges: embedding 0, key_facts 3." in sections["Judges"]
    assert "key_facts" in sections["Judges"]


def test_samples_are_of_every_kind(run: Path) -> None:
    text = report(run).sections["Rows before and after"]
    assert text.count("✓ accepted") == 4
    assert {reason: text.count(f"✗ refused: {reason}") for reason in ("similarity", "key facts", "leak")} == {
        "similarity": 1,
        "key facts": 1,
        "leak": 1,
    }


def test_what_was_not_recorded_is_said(run: Path) -> None:
    refined = run / "refined"
    (refined / GAP).unlink()
    (refined / VALUES).unlink()
    write_summary(refined, {"rows": ROWS, "seconds": 3.0})
    sections = report(run).sections
    assert "Not measured: refine.gap=false" in sections["Compatibility gap"]
    assert "Not measured" in sections["At a glance"]
    for text in ("Time by stage: not", "Tokens and cost by model: not", "Cache: not", "Hashes of the prompts: not"):
        assert f"{text} recorded." in sections["Time and cost"]
    assert "Failures of judges: not recorded." in sections["Judges"]
    (refined / SUMMARY_FILE).unlink()
    assert "stage 1 has not finished" in report(run).sections["Time and cost"]


def test_rows_that_nobody_rewrote_or_judged_leave_their_sections_out(run: Path) -> None:
    for part in (run / "refined").glob("part-*"):
        part.unlink()
    off: Any = {**refined_row(0), "rewrite": None, "similarity": None, "accepted": False, "refused": "off"}
    off |= {"candidates": [], "fused": off["answer"]}
    pq.write_table(refined_table([off]), run / "refined" / "part-00000000.parquet")
    sections = report(run).sections
    assert "The 1 rows were taken as they are, without rewriting." in sections["At a glance"]
    assert "Left out" in sections["From rows to answers"]
    alone: Any = {**refined_row(1), "accepted": True, "refused": None, "candidates": [], "rounds": 0}
    pq.write_table(refined_table([alone]), run / "refined" / "part-00000000.parquet")
    sections = report(run).sections
    assert "no candidate was judged (refine.fuser=none" in sections["Judges"]
    assert "Judges' agreement: needs two judges." in sections["At a glance"]


def test_rows_without_a_rewrite_are_counted_apart(run: Path) -> None:
    failed: Any = {**refined_row(0), "rewrite": None, "similarity": None, "accepted": False, "refused": "failed"}
    failed |= {"candidates": [], "fused": failed["answer"]}
    part = run / "refined" / "part-00000400-x.parquet"
    pq.write_table(refined_table([failed]), part)
    assert "rows 401 100% no rewrite: failed 1 0% rewritten 400 100%" in report(run).sections["From rows to answers"]
    for other in (run / "refined").glob("part-*"):
        if other != part:
            other.unlink()
    assert "None of the 1 rows could be rewritten (failed)." in report(run).sections["At a glance"]


def test_a_judge_that_gave_no_score_is_counted_and_left_out() -> None:
    facts = Facts(TAU)
    row: Any = {**refined_row(1), "accepted": True, "refused": None}
    scores = [{"judge": "a", "score": 0.5}, {"judge": "b", "score": None}]
    nobody = [{"judge": "a", "score": None}, {"judge": "b", "score": None}]
    both = [{"judge": "a", "score": 0.5}, {"judge": "b", "score": 1.0}]
    row["candidates"] = [
        {"text": "t", "source": "fuse", "round": 1, "scores": given, "score": 0.0} for given in (scores, nobody, both)
    ]
    facts.add(row)
    assert facts.candidates == {"judged": 2, "refused": 1}
    assert {judge: counts.total for judge, counts in facts.scores.items()} == {"a": 2, "b": 1}
    assert (facts.unscored("a"), facts.unscored("b")) == (0, 1)
    assert facts.agreement.candidates == 1


def test_texts_are_escaped_and_nothing_is_loaded(run: Path) -> None:
    bad = '<script>alert("x")</script>&\'"<img src=x onerror=alert(1)>'
    row: Any = refined_row(1)
    row |= {"prompt": bad, "answer": bad, "rewrite": bad, "fused": bad, "accepted": False, "refused": bad}
    pq.write_table(refined_table([row]), run / "refined" / "part-00000000.parquet")
    write_summary(run / "refined", {**SUMMARY, "prompts": {bad: bad}, "judge_failures": {bad: 1}, "models": {bad: {}}})
    config = (run / "config.yaml").read_text().replace('"train.jsonl"', json.dumps(bad))
    (run / "config.yaml").write_text(config)
    page = report(run)
    assert "script" not in page.tags
    assert "img" not in page.tags
    for heading in ("", "From rows to answers", "Judges", "Time and cost", "Rows before and after"):
        assert bad in page.sections[heading], heading
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)
    html = (run / REFINE_REPORT).read_text()
    assert "url(" not in html
    assert "@import" not in html


def test_the_runs_report_brings_it_along_only_where_rows_were_refined(run: Path) -> None:
    write_report(run)
    assert (run / REFINE_REPORT).exists()
    (run / REFINE_REPORT).unlink()
    for part in (run / "refined").glob("part-*"):
        part.unlink()
    write_report(run)
    assert not (run / REFINE_REPORT).exists()
    with pytest.raises(RaftError, match=r"no refined/part-\*\.parquet there"):
        write_refine_report(run)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    refined = tmp_path / "refined"
    refined.mkdir()
    rows = [refined_row(number) for number in range(500)]
    table = refined_table(rows)

    def peak(parts: int) -> int:
        for part in range(parts):
            pq.write_table(table, refined / f"part-{part:08d}.parquet")
        tracemalloc.start()
        facts = read_facts(refined, TAU)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert facts is not None
        assert facts.rows == 500 * parts
        return most

    # The first reading also fills the sample of candidates (2,000 at most).
    few = peak(4)
    assert peak(16) < 1.3 * few


def test_facts_keep_a_few_rows_of_each_kind() -> None:
    facts = Facts(TAU)
    for number in range(3000):
        facts.add(dict(refined_row(number)))
    assert len(facts.samples(accepted=100, refused=100)) <= (3 + 5) * SAMPLES
    assert len(facts.nearest[0]) == len(facts.nearest[1]) == NEAREST
    assert facts.agreement.candidates <= 2000


def test_counts_put_a_value_on_an_edge_into_the_bin_that_begins_there() -> None:
    counts = Counts(-1, 1, 100)
    for value in (0.8, 0.8199, 1.0, 7.0, -9.0, float("nan"), None):
        counts.add(value)
    assert counts.bins[90] == 2
    assert counts.bins[99] == 2
    assert counts.bins[0] == 1
    assert counts.total == 5
    assert used_range([counts]) == slice(0, 100)
    assert used_range([Counts(0, 1, 10)]) == slice(0, 0)


def test_a_reservoir_is_a_uniform_sample_in_order() -> None:
    seen: Counter[int] = Counter()
    for seed in range(2000):
        reservoir: Reservoir[int] = Reservoir(3, seed)
        for item in range(12):
            reservoir.offer(item)
        assert reservoir.items == sorted(reservoir.items)
        assert len(set(reservoir.items)) == 3
        seen.update(reservoir.items)
    assert all(400 < seen[item] < 600 for item in range(12))


@pytest.mark.parametrize(
    ("text", "words", "sentences", "unfinished"),
    [
        ("Paris", 1, 1, 1.0),
        ("It is 3.5 metres. Yes!", 5, 2, 0.0),
        ('He said "no." And then he', 6, 2, 1.0),
        ("Really?! (Yes.)", 2, 2, 0.0),
        ("東京です。はい", 6, 2, 1.0),
        ("", 0, 0, 0.0),
    ],
)
def test_style_of_one_text(text: str, words: float, sentences: float, unfinished: float) -> None:
    style = Style()
    style.add(text)
    assert (style.words_mean, style.sentences_mean, style.unfinished) == (words, sentences, unfinished)


def test_variety_is_taken_over_equal_numbers_of_words() -> None:
    style, long = Style(), Style()
    for _ in range(40):
        style.add("one two three four five")
    assert style.variety == pytest.approx(0.05)
    long.add(" ".join(["one two three four five"] * 40))
    assert long.variety == style.variety
    assert Style().variety is None
    assert style.words_median == 5
    assert style.words_per_sentence == 5
