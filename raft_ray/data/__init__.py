"""Rows from any source, read once and refused by line.

`sources` finds files, hub names and embedded domains, `slices` cuts them, `rows` makes a `Row` of each record.
"""

from raft_ray.data.rows import (
    BadRow,
    BadRows,
    Check,
    Row,
    check_any,
    check_rows,
    iterate,
    length_check,
    read_rows,
    write_bad_rows,
)

__all__ = [
    "BadRow",
    "BadRows",
    "Check",
    "Row",
    "check_any",
    "check_rows",
    "iterate",
    "length_check",
    "read_rows",
    "write_bad_rows",
]
