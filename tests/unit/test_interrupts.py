"""Ctrl-C and SIGTERM at a command: which status, how many lines, and what of the command still runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

LINE = "interrupted; go on with --resume\n"

COMMAND = """
import os, signal, sys, time
import typer
from raft_ray.cli import app
from raft_ray.interrupts import interrupts

def send(number):
    os.kill(os.getpid(), number)

@app.command()
def work():
    try:
{inside}
        print("went on", flush=True)
    finally:
        print("ended in order", flush=True)

sys.argv = ["raft-ray", "work"]
app()
"""


def ended(inside: str) -> subprocess.CompletedProcess[str]:
    code = COMMAND.format(inside="\n".join(f"        {line}" for line in inside.splitlines()))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


REPLACED = """signal.signal({name}, lambda *_: sys.exit(0))
interrupts.install()
send({name})"""
CASES = {
    "Ctrl-C": ("send(signal.SIGINT)", 130, "ended in order\n"),
    "SIGTERM": ("send(signal.SIGTERM)", 143, "ended in order\n"),
    "Ctrl-C while a call waits": (
        "import threading\nthreading.Timer(0.2, send, [signal.SIGINT]).start()\nthreading.Event().wait(50)",
        130,
        "ended in order\n",
    ),
    "Ctrl-C of which something else comes": (
        "try:\n    send(signal.SIGINT)\nfinally:\n    raise OSError('a consequence')",
        130,
        "ended in order\n",
    ),
    "Ctrl-C that a library swallows": (
        "try:\n    send(signal.SIGINT)\nexcept BaseException:\n    pass",
        130,
        "went on\nended in order\n",
    ),
    "SIGINT after a library's own handler": (REPLACED.format(name="signal.SIGINT"), 130, "ended in order\n"),
    "SIGTERM after a library's own handler": (REPLACED.format(name="signal.SIGTERM"), 143, "ended in order\n"),
    "a second Ctrl-C": (
        "try:\n    send(signal.SIGINT)\nfinally:\n    send(signal.SIGINT)\n    time.sleep(50)",
        130,
        "",
    ),
    "SIGTERM after SIGINT": (
        "try:\n    send(signal.SIGINT)\nfinally:\n    send(signal.SIGTERM)\n    time.sleep(50)",
        130,
        "",
    ),
    "ending that hangs": (
        "import raft_ray.interrupts as module\nmodule.LIMIT = 0.2\n"
        "try:\n    send(signal.SIGINT)\nfinally:\n    time.sleep(50)",
        130,
        "",
    ),
    "ignored by the shell that started it": (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\ninterrupts.install()\nsend(signal.SIGINT)",
        0,
        "went on\nended in order\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signal_ends_a_command_with_its_status_and_one_line(case: str) -> None:
    inside, status, output = CASES[case]
    result = ended(inside)

    assert (result.returncode, result.stdout, result.stderr) == (status, output, LINE if status else "")
