"""One way to tell a person what is going on: short lines that survive Airflow's and Spark's logs."""

import sys

MARK = "[grasp]"


def say(text: str) -> None:
    """Print a progress line at once. `make demo` shows exactly the lines that carry the mark."""
    print(f"{MARK} {text}", file=sys.stdout, flush=True)
