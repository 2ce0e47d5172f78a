"""The report of a run: one `report.html` that needs nothing else, made from the files of the run folder.

    files.py    reads and checks the run folder
    verdict.py  what eval.json says, in words
    figures.py  values -> charts, drawn by svg.py; timeline.py and lanes.py likewise for spans
    page.py     what each section shows
    report.html.j2, report.css   how it looks

Knows nothing about models, Ray or training: whatever wrote the files, the report reads them.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path.

    The page holds its own style and charts and loads nothing. Sections whose files are missing say so.
    Raises `RaftError` for a folder without a run, or naming file and line (or key) of a malformed file.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from raft_ray.report import figures, words
    from raft_ray.report.files import read_run
    from raft_ray.report.page import page

    run_dir = Path(run_dir)
    values = page(read_run(run_dir))
    environment = Environment(
        loader=PackageLoader("raft_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=words.percent,
        short=words.short,
        duration=words.duration,
        label=words.method_label,
        css=figures.method_css,
    )
    html = environment.get_template("report.html.j2").render(values)
    path = run_dir / "report.html"
    partial = path.with_suffix(".html.partial")
    # A model can emit lone surrogates, which JSON carries and UTF-8 cannot.
    partial.write_text(html, encoding="utf-8", errors="replace")
    os.replace(partial, path)
    return path
