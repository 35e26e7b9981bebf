"""A child process ends with its parent, even when the parent is killed."""

import signal
import subprocess
import sys

import pytest

PARENT = """
import signal
import subprocess
from grasp.processes import end_with_parent
child = subprocess.Popen(["bash", "-c", "exec sleep 60"], preexec_fn=end_with_parent)
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_ends_when_its_parent_is_killed(environment, ends_soon):
    with subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    assert ends_soon(child)


WHOLE = """
import os, sys
from grasp.processes import run_to_the_end
sys.exit(run_to_the_end(["bash", "-c", sys.argv[1]], dict(os.environ), patience_seconds=1))
"""
# Starts a program in a session of its own that hears no signal but KILL, and says both process ids.
STUBBORN = "setsid bash -c 'trap \"\" INT TERM; echo $$; exec sleep 60' & echo $$; {then}"


def start(environment, script: str) -> tuple[subprocess.Popen[str], list[int]]:
    program = subprocess.Popen(
        [sys.executable, "-c", WHOLE, script], env=environment, stdout=subprocess.PIPE, text=True
    )
    return program, [int(program.stdout.readline()) for _ in range(2)]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_program_with_everything_that_it_started(environment, ends_soon, sent):
    program, started = start(environment, STUBBORN.format(then="wait"))
    program.send_signal(sent)
    assert program.wait(timeout=20) == 0
    assert all(ends_soon(pid) for pid in started)


def test_a_program_that_ends_by_itself_leaves_nothing_and_its_exit_code(environment, ends_soon):
    program, started = start(environment, STUBBORN.format(then="exit 3"))
    assert program.wait(timeout=20) == 3
    assert all(ends_soon(pid) for pid in started)


def test_a_program_has_time_to_end_in_its_own_way(environment, tmp_path):
    said = tmp_path / "said"
    script = f"trap 'sleep 0.3; echo ended > {said}; exit' INT; echo 1; echo 2; sleep 60 & wait"
    program, _ = start(environment, script)
    program.terminate()
    program.wait(timeout=20)
    assert said.read_text() == "ended\n"
