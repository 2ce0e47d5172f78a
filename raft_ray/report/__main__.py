"""`python -m raft_ray.report RUN`: write the report of a run folder."""

from __future__ import annotations

import sys
from pathlib import Path

from raft_ray.errors import RaftError
from raft_ray.printable import one_line
from raft_ray.report import write_report

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m raft_ray.report RUN")
    try:
        print(write_report(Path(sys.argv[1])))
    except RaftError as error:
        print(one_line(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
