"""The reports of a run, each one page that needs nothing else, made from the files of the run folder.

`report.html` is about the run; `refine_report.html` about stage 1, also of a run that only refined.

    files.py    reads and checks the run folder; refine_facts.py the refined rows, in one pass
    verdict.py  what eval.json says, in words
    figures.py  values -> charts, drawn by charts.py; timing.py and timeline.py likewise, stage1.py for stage 1
    page.py, refine_page.py        what each section shows; answers.py the samples of answers, side by side
    frame.html.j2, parts.html.j2, report.css   how a page looks; report.html.j2, refine_report.html.j2   its sections

Knows nothing about models, Ray or training: whatever wrote the files, the reports read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_ray.errors import RaftError
from raft_ray.files import write_whole

if TYPE_CHECKING:
    from raft_ray.report.files import Run

REPORT = "report.html"
REFINE_REPORT = "refine_report.html"


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path; and stage 1's report, where there are refined rows. The pages
    hold their own style and charts and load nothing. Sections whose files are missing say so. Raises `RaftError` for a
    folder without a run, or naming file and line (or key) of a malformed file."""
    from raft_ray.report.files import read_run
    from raft_ray.report.page import page

    run = read_run(Path(run_dir))
    if run.refined is not None:
        _write_refine_report(run)
    return write_page(run.folder / REPORT, "report/report.html.j2", page(run))


def write_refine_report(run_dir: Path) -> Path:
    """Write `run_dir/refine_report.html` alone and return its path. Raises `RaftError` as `write_report` does."""
    from raft_ray.report.files import read_run

    return _write_refine_report(read_run(Path(run_dir)))


def _write_refine_report(run: Run) -> Path:
    from raft_ray.report.refine_page import page

    if run.refined is None:
        raise RaftError(f"{run.folder}: no refined/part-*.parquet there; run `raft-ray refine` first")
    return write_page(run.folder / REFINE_REPORT, "report/refine_report.html.j2", page(run, run.refined))


def write_page(path: Path, template: str, values: dict[str, Any]) -> Path:
    """Write a template of this package, filled, to `path`; returns it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from raft_ray.report import words

    environment = Environment(
        loader=PackageLoader("raft_ray", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        format_percent=words.format_percent,
        format_number=words.format_number,
        format_duration=words.format_duration,
        label=words.method_label,
        css=words.method_css,
    )
    # A model can emit lone surrogates.
    write_whole(path, environment.get_template(template).render(values), errors="replace")
    return path
