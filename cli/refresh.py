"""Run `daily_refresh` for one day, here and now, as the scheduler would.

A stage whose inputs did not change is skipped; a day that is run again changes nothing.
"""

import argparse
import sys

from cli.dag_run import run_command
from grasp.days import DayNotOverError, day_argument, require_ended
from grasp.environment import prepare
from grasp.preflight import REFRESH
from grasp.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="grasp refresh", description=__doc__)
    parser.add_argument("--day", type=day_argument, required=True, help="UTC day to work on, YYYY-MM-DD")
    parser.add_argument("--force", action="store_true", help="run every stage although nothing changed")
    arguments = parser.parse_args()
    try:
        require_ended(arguments.day, Settings.load().clock())
    except DayNotOverError as error:
        sys.exit(f"error: {error}")
    run_command("refresh", "daily_refresh", {"day": arguments.day, "force": arguments.force})


if __name__ == "__main__":
    prepare(*REFRESH)
    main()
