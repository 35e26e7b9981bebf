"""What describing users and items costs, and which failures it survives.

    python -m benchmarks.generation --out docs/benchmarks/generation [--only faults]

Reads:   the encoder of `make setup`
Writes:  measurements.jsonl, report.md and summary.json in --out

Every measurement is one line of measurements.jsonl and is never made again: delete its line to measure again.
"""

import argparse
from collections.abc import Sequence
from functools import partial

from benchmarks.core import command
from benchmarks.core.machine import machine
from benchmarks.core.store import Conditions, Measurements, PlannedMeasurement
from benchmarks.generation.faults import describe_with_faults
from benchmarks.generation.report import KINDS, REPORT
from benchmarks.generation.unchanged_day import measure_days
from grasp.settings import Settings
from grasp.versions import file_sha256


def planned(settings: Settings, given: argparse.Namespace) -> list[PlannedMeasurement]:
    """The quick ones first. A name holds the size, so that a small trial does not stand in for the real one."""
    return [
        PlannedMeasurement(
            f"faults, {given.requests:,} items", "faults", partial(describe_with_faults, settings, given.requests)
        ),
        PlannedMeasurement(
            f"unchanged day, {given.entities:,} entities", "days", partial(measure_days, settings, given.entities)
        ),
    ]


def measure(given: argparse.Namespace, settings: Settings) -> None:
    """Make the wanted measurements that are missing, and write the report."""
    weights = next(iter(sorted(settings.llm.glob("*.safetensors"))), None)
    conditions = Conditions(file_sha256(weights)[:16] if weights else "no weights", 1, machine())
    Measurements(given.out).make_missing(planned(settings, given), given.only, conditions)
    REPORT.write(given.out, given.command)


def parser() -> argparse.ArgumentParser:
    result = command.new_parser("benchmarks.generation", __doc__, KINDS)
    result.add_argument("--requests", type=int, default=1000, help="items described by a failing server")
    result.add_argument("--entities", type=int, default=100_000, help="users and items of the day without changes")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(command.parse(parser(), arguments), measure)
