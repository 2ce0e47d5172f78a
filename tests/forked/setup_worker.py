"""In the place of Ray's script of this name: sets a worker's environment variables, without importing Ray for it.

The file's name matters: raylet leaves a script of another name out of its commands.
"""

import json
import os
import re
import sys

CONTEXT = "--serialized-runtime-env-context="


def main(arguments: list[str]) -> None:
    given = next((one.removeprefix(CONTEXT) for one in arguments if one.startswith(CONTEXT)), "")
    context = json.loads(given or "{}")
    command = [one for one in arguments if not one.startswith((CONTEXT, "--language="))]
    if context.get("command_prefix") or context.get("py_executable", sys.executable) != sys.executable:
        command = [os.environ["RAFT_RAY_TEST_RAYS_WORKERS"] + "/setup_worker.py", *arguments]
    for name, value in (context.get("env_vars") or {}).items():
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main(sys.argv[1:])
