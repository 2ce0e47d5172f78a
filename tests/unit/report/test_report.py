"""The report: what it says about a run, what it leaves out, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_fixture import edit_evaluation, open_turn, report, write_open, write_refined, write_run

from raft_ray.errors import RaftError
from raft_ray.report import write_report

HEADINGS = [
    "Verdict",
    "Results",
    "What was gained, what it cost",
    "What was lost, by kind of instruction",
    "Training",
    "Stage 1: refined answers",
    "Time",
    "Who worked when",
    "Weight distance",
    "Answers to domain questions",
    "Answers to general questions",
]


def test_it_says_what_was_trained_on_what(run: Path) -> None:
    page = report(run)
    head = page.sections[""]
    for text in (
        "RAFT: embedded:smollm2-135m-instruct on domain:chemistry",
        "Rows 120",
        "Steps 60",
        "Batch 16",
        "Learning rate 0.0001",
        "Seed 7",
        "T = 1.5, K = 512",
        " UTC",
    ):
        assert text in head
    assert list(page.sections)[1:] == HEADINGS


def test_the_verdict_is_computed_from_the_evaluation(run: Path) -> None:
    text = report(run).sections["Verdict"]
    assert "RAFT learned about as much as SFT and stayed closer to the base model." in text
    assert "Domain accuracy 38% on 320 questions (base 16%, SFT 39%, SDFT 34%, OPD 17%)." in text
    assert "within chance" in text
    assert "Drift 0.061 nats per token, 7.3 times less than SFT (SFT 0.45, SDFT 0.29, OPD 0.015)." in text
    assert "keep 92% of the base's length (SFT 9.0%, SDFT 23%, OPD 99%)." in text
    assert "IFEval, prompt-strict) 18% (base 19%, SFT 16%, SDFT 13%, OPD 19%)." in text
    assert "It keeps 97% [83% to 112%] of the base's on 160 prompts, 4 answers each (within chance, p = 0.69)." in text


def test_the_table_holds_every_number_of_every_method(run: Path) -> None:
    text = report(run).sections["Results"]
    sft = "SFT 60 steps, lr 0.0001 39.1% 34% to 45% 0.447 1.34 72.1% 15.6% 11% to 21% 83% [71% to 98%] of base 17.6%"
    raft = (
        "RAFT 60 steps, lr 0.0001 37.8% 33% to 43% 0.0613 0.184 96.2% 18.1% 13% to 23% 97% [83% to 112%] of base 20.1%"
    )
    assert sft in text
    assert f"{raft} 29.1% 31.1% 94.8 85 31.6% 0.0458" in text
    assert "160 IFEval prompts, 4 answers each;" in text
    assert "Base untouched 15.9%" in text
    assert "8,123 tokens" in text


def test_what_was_followed_is_told_by_kind_beside_the_base(run: Path) -> None:
    text = report(run).sections["What was lost, by kind of instruction"]
    assert "Base SFT SDFT OPD RAFT Form and layout 39% 96 of 248 35% 88 of 248, -3 points" in text
    assert "Case 18% 11 of 60 15% 9 of 60, -3 points" in text

    def single(methods: dict[str, Any]) -> None:
        for method in methods.values():
            method["ifeval"] |= {"samples": 1}
        methods["sft"]["ifeval"]["kinds"] = {"new:kind": {"followed": 1, "n": 2, "share": 0.5}}

    edit_evaluation(run, single)
    page = report(run)
    assert "new:kind – – – –" not in page.sections["What was lost, by kind of instruction"]
    assert "new:kind – 50% 1 of 2 –" in page.sections["What was lost, by kind of instruction"]
    assert "of the base's on 160 prompts (within chance" in page.sections["Verdict"]
    assert "160 IFEval prompts;" in page.sections["Results"]


def test_an_evaluation_from_before_there_were_kinds_and_intervals_is_shown(run: Path) -> None:
    def change(methods: dict[str, Any]) -> None:
        for method in methods.values():
            figures = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose", "n")
            method["ifeval"] = {key: method["ifeval"][key] for key in figures}

    edit_evaluation(run, change)
    page = report(run)
    assert "What was lost, by kind of instruction" not in page.sections
    assert "IFEval, prompt-strict) 18% (base 19%, SFT 16%, SDFT 13%, OPD 19%)." in page.sections["Verdict"]
    assert "It keeps" not in page.sections["Verdict"]
    assert "96.2% 18.1% 20.1% 29.1%" in page.sections["Results"]


def test_the_curves_stage_1_time_and_weights_are_there(run: Path) -> None:
    page = report(run)
    training = page.sections["Training"]
    titles = ("SFT loss", "KL loss", "CE/KL ratio", "Weight λ", "Response length", "Truncated", "Mass on", "Staleness")
    for title in titles:
        assert title in training
    assert (
        "960 samples of 120 rows were trained on, none twice in an epoch; none was more than 1 version old" in training
    )
    assert "refused: similarity 47 39% refused: key facts 12 10%" in page.sections["Stage 1: refined answers"]
    assert "τ = 0.8" in page.sections["Stage 1: refined answers"]
    assert "RAFT 60 7 min" in page.sections["Time"]
    assert "RAFT 0.0458" in page.sections["Weight distance"]


def test_what_evaluations_found_while_it_trained_is_drawn_and_the_weights_taken_are_named(run: Path) -> None:
    title = "Gained and lost while it trained"
    assert title not in report(run).sections
    lines = [
        {
            "step": step,
            "accuracy": 0.3 + step / 100,
            "drift": step / 100,
            "words": 40 - step,
            "of_base": {"accuracy": 1 + step / 30, "ifeval": None if step else 1.0, "words": (40 - step) / 40},
        }
        for step in (0, 10, 20)
    ]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    edit_evaluation(run, lambda methods: methods["raft"].update(weights_of=10, why="the most accurate"))
    page = report(run)
    for name in ("Validation accuracy", "Drift", "Words of general answers", "Instruction following"):
        assert name in page.sections[title]
    assert "RAFT has the weights of step 10: the most accurate." in page.sections[title]
    assert "60 steps, weights of step 10" in page.sections["Results"]
    (run / "evaluations.jsonl").write_text(json.dumps(lines[0] | {"drift": "much"}) + "\n")
    with pytest.raises(RaftError, match=r"evaluations\.jsonl line 1: `drift` must be a number, found 'much'"):
        report(run)


def test_five_domain_questions_are_shown_with_gold_and_marks(run: Path) -> None:
    text = report(run).sections["Answers to domain questions"]
    assert text.count("Gold answer:") == 5
    assert text.count("✓ right") + text.count("✗ wrong") == 25
    assert "✓ right" in text
    assert "✗ wrong" in text


def test_a_mark_follows_the_evaluation_and_not_the_text(run: Path) -> None:
    def change(methods: dict[str, Any]) -> None:
        for method in methods.values():
            method["answers"] = [{"prompt": "p", "gold": "H", "answer": "H", "correct": False}]

    edit_evaluation(run, change)
    text = report(run).sections["Answers to domain questions"]
    assert text.count("✗ wrong") == 5
    assert "✓ right" not in text


def test_a_method_without_an_answer_to_a_question_says_so(run: Path) -> None:
    edit_evaluation(run, lambda methods: methods["sft"]["answers"].pop(0))
    assert report(run).sections["Answers to domain questions"].count("not among its samples") == 1


def test_texts_of_users_and_models_are_escaped_everywhere(run: Path) -> None:
    bad = '<script>alert("x")</script>&\'"<img src=x onerror=alert(1)>'

    def change(methods: dict[str, Any]) -> None:
        methods[bad] = methods.pop("sdft")
        turn = open_turn(bad, bad, 0.5) | {"reference": bad, "judges": {bad: {"score": 0.5, "reason": bad}}}
        for method in methods.values():
            method["open_answers"] = [{"score": 0.5, "turns": [turn]}]
            method["answers"] = [{"prompt": bad, "gold": bad, "answer": bad, "correct": True}]
            method["general_answers"] = [{"prompt": bad, "answer": bad}]

    edit_evaluation(write_open(run), change)
    config = (run / "config.yaml").read_text().replace('"domain:chemistry"', json.dumps(bad))
    (run / "config.yaml").write_text(config)
    row = {"row": 0, "prompt": bad, "answer": bad, "rewrite": bad, "similarity": 0.5, "accepted": False, "fused": bad}
    write_refined(run / "refined" / "part-00000.parquet", [{**row, "refused": bad, "rounds": 0}])
    page = report(run)
    assert "script" not in page.tags
    assert "img" not in page.tags
    for heading in HEADINGS[:2] + HEADINGS[3:4] + HEADINGS[5:6] + HEADINGS[9:] + ["Answers to open questions"]:
        assert bad in page.sections[heading], heading
    assert page.sections["Answers to open questions"].count(bad) == 3 + 3 * 5


def test_a_lone_surrogate_in_an_answer_does_not_stop_the_report(run: Path) -> None:
    answer = {"prompt": "p", "answer": "half an emoji \ud83d"}
    edit_evaluation(run, lambda methods: methods["raft"].update(general_answers=[answer]))
    assert "half an emoji ?" in report(run).sections["Answers to general questions"]


def test_the_page_loads_nothing(run: Path) -> None:
    page = report(run)
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)
    assert "script" not in page.tags
    html = (run / "report.html").read_text()
    assert "url(" not in html
    assert "@import" not in html


def test_a_run_without_evaluation_says_which_sections_it_leaves_out(run: Path) -> None:
    (run / "eval.json").unlink()
    page = report(run)
    assert "No verdict" in page.sections["Verdict"]
    for heading in ("Results", "What was gained, what it cost", "Weight distance", "Answers to domain questions"):
        assert "Left out: this run has no eval.json" in page.sections[heading]
    assert "SFT loss" in page.sections["Training"]
    assert "refused: similarity" in page.sections["Stage 1: refined answers"]


def test_a_run_of_sft_alone_has_no_curves_of_distillation(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ("base", "sft"))
    (folder / "refined" / "part-00000.parquet").unlink()
    page = report(folder)
    assert "SFT learned the domain, measured against the base model" in page.sections["Verdict"]
    assert "No method of this run distils" in page.sections["Training"]
    assert "KL loss" not in page.sections["Training"]
    assert "Left out: this run has no refined/*.parquet" in page.sections["Stage 1: refined answers"]
    assert "RAFT" not in "".join(page.sections.values())


def test_a_run_that_only_refined_has_a_report(run: Path) -> None:
    for path in [run / "eval.json", *run.glob("**/metrics.jsonl"), *run.glob("**/trace.jsonl")]:
        path.unlink()
    page = report(run)
    assert "no metrics.jsonl" in page.sections["Training"]
    assert "Left out" in page.sections["Time"]
    assert "refused: similarity" in page.sections["Stage 1: refined answers"]


def test_a_run_whose_rows_were_taken_as_they_are_says_so(run: Path) -> None:
    row = {"row": 0, "prompt": "p", "answer": "a", "accepted": False, "refused": "off", "rounds": 0, "fused": "a"}
    write_refined(run / "refined" / "part-00000.parquet", [row])
    assert "taken as they are, without rewriting" in report(run).sections["Stage 1: refined answers"]


def test_parts_that_were_not_measured_are_named_and_left_blank(run: Path) -> None:
    def change(methods: dict[str, Any]) -> None:
        for method in methods.values():
            method.update(domain=None, ifeval=None, weight_distance=None)

    edit_evaluation(run, change)
    page = report(run)
    assert "Not measured: domain accuracy, IFEval, weight distance." in page.sections["Verdict"]
    assert "RAFT stayed closer to the base model." in page.sections["Verdict"]
    assert "Left out: domain accuracy was not measured" in page.sections["What was gained, what it cost"]
    assert "RAFT 60 steps, lr 0.0001 – 0.0613" in page.sections["Results"]


def test_scores_of_open_questions_are_shown_where_judges_gave_them(run: Path) -> None:
    page = report(run)
    assert "open questions" not in " ".join([*page.sections, *page.sections.values()]).lower()

    page = report(write_open(run))
    assert "Open questions judged; higher is better Base 60%" in page.sections["Verdict"]
    assert "6 open questions" in page.sections["Results"]
    assert "Accuracy against open questions" in page.sections["What was gained, what it cost"]


def test_the_table_has_a_column_of_open_questions_with_what_is_left_of_the_base(run: Path) -> None:
    text = report(write_open(run)).sections["Results"]
    assert "IFEval Open questions General answers" in text
    assert "instruct. loose score words, mean" in text
    assert "29.8% 31.8% 60.0% 103" in text
    assert "29.1% 31.1% 20.0% 33% of base 94.8" in text
    assert "Below a score of open questions: its share of the base's." in text

    edit_evaluation(run, lambda methods: methods["sft"].update(open=None, open_answers=[]))
    assert "26.6% 28.6% – 9.3" in report(run).sections["Results"]
    edit_evaluation(run, lambda methods: methods["base"]["open"].update(score=0.0))
    assert "29.1% 31.1% 20.0% base 0 94.8" in report(run).sections["Results"]
    edit_evaluation(run, lambda methods: methods.pop("base"))
    assert "29.1% 31.1% 20.0% 94.8" in report(run).sections["Results"]


def test_five_open_questions_are_shown_with_what_the_judges_say_of_each_answer(run: Path) -> None:
    page = report(write_open(run))
    assert list(page.sections)[-3:] == [HEADINGS[-2], "Answers to open questions", HEADINGS[-1]]
    text = page.sections["Answers to open questions"]
    hint = "Beside a method's name: the mean of all judges' scores of all turns. Below an answer: what each judge says"
    first = f"{hint} of it. Question 0? And then? Reference: Answer to Question 0? Base 60% base on 0."
    assert text.startswith(f"{first} strong, 80%: short, and it says: base on 0. self, 60%: fine base goes on.")
    # The second judge gave the second turn no score.
    assert "goes on. self, no verdict SFT 50% sft on 0." in text
    assert "raft on 4." in text
    assert "Question 5?" not in text
    assert text.count("strong, 80%") == 6 * 5

    edit_evaluation(run, lambda methods: methods["sft"]["open_answers"].pop(0))
    assert report(run).sections["Answers to open questions"].count("not among its samples") == 1
    edit_evaluation(run, lambda methods: [method.update(open_answers=[]) for method in methods.values()])
    assert "Left out: the evaluation kept no answers" in report(run).sections["Answers to open questions"]


def test_diverged_losses_leave_a_gap_and_not_an_error(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows[20:]:
        row["kl_loss"] = row["lambda"] = float("nan")
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert "nan" not in (write_report(run).read_text().split('aria-label="KL loss"')[1].split("</svg>")[0])


def test_rehearsal_has_a_curve_and_its_prompts_are_no_rows_of_the_training_set(run: Path) -> None:
    assert "Rehearsal" not in report(run).sections[""] + report(run).sections["Training"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps({**row, "rehearsal_kl": 0.01}) + "\n" for row in rows))
    trace = {"epoch": 0, "step": 0, "version": 0, "rehearsal": True}
    with (run / "trace.jsonl").open("a") as file:
        file.write(json.dumps({**trace, "row": 10**6}) + "\n")
    for part in (run / "refined").iterdir():
        part.unlink()
    page = report(run)
    assert "Rehearsal KL" in page.sections["Training"]
    assert "Rows 120" in page.sections[""]


def test_a_run_of_one_step_has_a_report(run: Path) -> None:
    for path in run.glob("**/metrics.jsonl"):
        path.write_text(path.read_text().splitlines()[0] + "\n")
    assert "Steps 1 " in report(run).sections[""]


def test_a_long_run_is_drawn_with_a_bounded_number_of_points(run: Path) -> None:
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    (run / "metrics.jsonl").write_text("".join(json.dumps({**first, "step": i}) + "\n" for i in range(20_000)))
    page = report(run)
    assert "Steps 20,000" in page.sections[""]
    assert (run / "report.html").stat().st_size < 2_000_000
