"""Ray Data while we use it: quiet, with time limits of our own, and failing in one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext
from ray.data.exceptions import UserCodeException

from actors.runtime.remote import last_line, understood, written
from raft_ray.errors import RaftError


@contextmanager
def quiet_data(what: str, logs: str, *, start_timeout: float) -> Iterator[DataContext]:
    """Ray Data without bars and notices for the block. Yields its settings, for those that the caller adds. `what`:
    opens the message of a failure, which ends with where the workers' `logs` are. `start_timeout`: longest wait for the
    first workers, seconds. Raises a worker's own error if that was written for the user, else `RaftError` with the
    reason."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.wait_for_min_actors_s = int(start_timeout)
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that its progress bars are off, among the like
    try:
        with DataContext.current(context), warnings.catch_warnings():
            # Where there are fewer slices than it may take at a time.
            warnings.filterwarnings("ignore", "The (minimum|maximum) number of concurrent", UserWarning)
            yield context
    except (UserCodeException, ray.exceptions.RayError, TimeoutError) as error:
        reason = understood(error) or last_line(error)
        raise written(str(error)) or RaftError(f"{what}: {reason}; see {logs}") from error
    finally:
        logger.setLevel(level)
