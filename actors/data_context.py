"""Ray Data's settings while we use it: quiet, and with time limits of our own. Knows nothing about what it carries."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ray.data import DataContext


@contextmanager
def quiet_data(*, start_timeout: float) -> Iterator[DataContext]:
    """Ray Data without bars and notices for the block. Yields its settings, for those that the caller adds.

    Args:
        start_timeout: longest wait for the first workers, seconds.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.wait_for_min_actors_s = int(start_timeout)
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that its progress bars are off, among the like
    try:
        with DataContext.current(context):
            yield context
    finally:
        logger.setLevel(level)
