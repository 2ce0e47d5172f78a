"""The command line: reads the config, refuses what cannot work, hands over to `actors`, and ends with an exit code.

Every error that a user can mend is one line on stderr; only defects show a traceback. Exit codes: 0 done,
1 the run failed (or `doctor` found a fault), 2 config, data or model cannot be used, 130 interrupted.
Ray, vLLM and torch are imported inside the commands that need them, so that `--help` answers at once.
"""

from raft_ray.cli import stages, evaluate, view, prompts, doctor, watch  # isort: skip - commands in the order of --help
from raft_ray.cli.app import app

__all__ = ["app", "doctor", "evaluate", "prompts", "stages", "view", "watch"]
