"""A child process ends with its parent, even when the parent is killed."""

import subprocess
import sys

PARENT = """
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
