"""Refuses a config that cannot work: its values, and the files and models that its keys name, room by room.

`raft_ray.preflight` then reads the model and the rows themselves.
"""

from __future__ import annotations

from raft_ray.config import Config, Method, settings
from raft_ray.config.ranges import check_fits


def check(config: Config, *, trains: bool = True) -> None:
    """Refuse values that cannot work, prompt files that are not there, and judges that cannot be asked.

    Args:
        trains: the training set is needed; an evaluation goes without.

    Raises `ConfigError`.
    """
    # The command line starts without them.
    from raft_ray.evaluate.judged import check_judges
    from raft_ray.refine import check_refine

    settings.check(config, trains=trains)
    if config.refine.enabled:
        check_refine(config)
    if config.eval.enabled:
        check_judges(config)
        if config.eval.open is not None:
            check_fits(config, "eval.open_max_new_tokens", config.eval.open_max_new_tokens)
    if trains:
        _check_teacher(config)


def _check_teacher(config: Config) -> None:
    """Its prompt file is there where the compatibility gap or the training of a method reads it."""
    from raft_ray.models.prompts import load_teacher_template

    if config.refine.enabled and config.refine.gap:
        load_teacher_template(config.teacher)
    for made in (config, *(settings.for_method(config, name) for name in config.run.baselines)):
        if made.distill.method is Method.raft:
            load_teacher_template(made.teacher)
