"""Rows from any source, read once and refused by line or row.

`sources` finds what a source names, `files` reads it, `record` makes a row of each record, `table` keeps rows on disk.
"""

from raft_ray.data.rows import BadRow, Check, Row, check_rows, length_check, read_rows, write_bad_rows
from raft_ray.data.sources import Source
from raft_ray.data.table import RowTable, Slice, read_table

__all__ = [
    "BadRow",
    "Check",
    "Row",
    "RowTable",
    "Slice",
    "Source",
    "check_rows",
    "length_check",
    "read_rows",
    "read_table",
    "write_bad_rows",
]
