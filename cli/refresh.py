"""Run `daily_refresh` for one day, here and now, as the scheduler would.

A stage whose inputs did not change is skipped; a day that is run again changes nothing.
"""

import argparse
import sys
import time

from cli.dag_run import DagError, migrate, new_log, run_dag, show_times
from grasp.days import day_argument
from grasp.environment import prepare
from grasp.preflight import REFRESH
from grasp.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="grasp refresh", description=__doc__)
    parser.add_argument("--day", type=day_argument, required=True, help="UTC day to work on, YYYY-MM-DD")
    parser.add_argument("--force", action="store_true", help="run every stage although nothing changed")
    arguments = parser.parse_args()
    started, settings = time.monotonic(), Settings.load()
    log = new_log(settings, "refresh")
    try:
        migrate(settings, log)
        times = run_dag(settings, "daily_refresh", {"day": arguments.day, "force": arguments.force}, log)
    except DagError as error:
        sys.exit(f"error: {error}")
    show_times(times, time.monotonic() - started)


if __name__ == "__main__":
    prepare(*REFRESH)
    main()
