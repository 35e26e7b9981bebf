"""The arguments that all commands of training share."""

import argparse

from grasp.days import day_argument


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--day` and `--cutoff`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--day", type=day_argument, required=True, help="UTC day of the model, YYYY-MM-DD")
    parser.add_argument("--cutoff", type=day_argument, required=True, help="last day to train on, before --day")
    return parser


def check_days(day: str, cutoff: str) -> None:
    if cutoff >= day:
        raise ValueError(f"--cutoff {cutoff} must lie before --day {day}: later interactions are the test events")
