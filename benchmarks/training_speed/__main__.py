"""`python -m benchmarks.training_speed`"""

import os
import sys

from benchmarks.training_speed.measure import main

if __name__ == "__main__":
    # Threads that spin while they wait take the other side's time; only a new process can be told not to.
    if os.environ.get("OMP_WAIT_POLICY") != "passive":
        command = [sys.executable, "-m", "benchmarks.training_speed", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "OMP_WAIT_POLICY": "passive"})  # noqa: S606
    main()
