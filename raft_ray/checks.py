"""Refuses a config that cannot work: its values, and the files and models that its keys name, room by room.

`raft_ray.preflight` then reads the model and the rows themselves.
"""

from __future__ import annotations

from raft_ray.config import Config, Method, checks
from raft_ray.config.settings import for_method


def check(config: Config, *, trains: bool = True) -> None:
    """Refuse values that cannot work, prompt files that are not there, and judges that cannot be asked. `trains`: the
    training set is needed; an evaluation goes without. Raises `ConfigError`, or `ModelError` where an adapter's package
    is missing."""
    # The command line starts without them.
    from raft_ray.evaluate.judged import check_judges
    from raft_ray.models.adapters import check_peft
    from raft_ray.models.prompts import load_teacher_template
    from raft_ray.refine.roles import check_refine

    checks.check(config, trains=trains)
    if config.refine.enabled:
        check_refine(config)
    if config.eval.enabled:
        check_judges(config)
    if trains:
        # The compatibility gap and the training of a method read it.
        for made in (config, *(for_method(config, name) for name in config.run.baselines)):
            check_peft(made.learner.lora)
            if made.distill.method is Method.raft or (made.refine.enabled and made.refine.gap):
                load_teacher_template(made.teacher)
