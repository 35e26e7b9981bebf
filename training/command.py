"""What the three commands of the training share: their days."""

import argparse

from grasp.days import day_argument


def arguments(description: str | None) -> argparse.ArgumentParser:
    """`--day` and `--cutoff`, as every command of the training takes them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--day", type=day_argument, required=True, help="UTC day whose model is made, YYYY-MM-DD")
    parser.add_argument("--cutoff", type=day_argument, required=True, help="last day to learn from, before --day")
    return parser


def check_days(day: str, cutoff: str) -> None:
    if cutoff >= day:
        raise ValueError(f"--cutoff {cutoff} must lie before --day {day}: later interactions judge the model")
