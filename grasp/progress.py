"""Progress lines for people: short, and marked so that they can be found in Airflow's and Spark's logs."""

import sys

MARK = "[grasp]"


def say(text: str) -> None:
    """Print a progress line at once. `grasp demo`, `refresh` and `retrain` show only lines with the mark."""
    print(f"{MARK} {text}", file=sys.stdout, flush=True)
