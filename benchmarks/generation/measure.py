"""What describing users and items costs and survives; what is measured is never measured again.

    python -m benchmarks.generation --out docs/benchmarks/generation [--only engine,ledger]

Reads:   the model and the MovieLens folder of `make setup`; the labelled outputs of tests/data
Writes:  measurements.jsonl, report.md and summary.json in --out; llama.cpp's environment below GRASP_HOME

Every measurement is one line: delete the line to measure again. CPU seconds are compared where another library is;
seconds where a server, Spark or the disk is waited for.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.core import invocation
from benchmarks.core.machine import machine
from benchmarks.core.measurements import Conditions, Job, Measurements, chosen_kinds, measure_missing
from benchmarks.generation import engine_speed, http_engine, validator
from benchmarks.generation import report as generation_report
from benchmarks.generation.faults import faults
from benchmarks.generation.ledger_speed import anti_join
from benchmarks.generation.poisoned import published
from benchmarks.generation.unchanged_day import days
from benchmarks.peers.running import PeerError
from grasp.environment import process_environment
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.versions import file_sha256

NUM_ROUNDS = 3  # of what others on the machine can disturb most


def jobs(settings: Settings, given: argparse.Namespace) -> list[Job]:
    """In the order in which they are made, the quick ones first; a name holds the size, so that no trial stays."""
    described = f"{given.descriptions:,} descriptions"
    return [
        Job("validator", "validator", judged),
        Job("poisoned inputs", "poisoned", published),
        *(Job(f"HTTP engine, round {number}", "http", http_engine.measure) for number in range(NUM_ROUNDS)),
        Job(f"faults, {given.requests:,} items", "faults", partial(faults, settings, given.requests)),
        Job(
            f"ledger, {given.inputs:,} inputs against {given.keys:,} keys",
            "ledger",
            partial(anti_join, settings, given.keys, given.inputs, given.inputs // 10),
        ),
        Job(f"engine, {described}", "engine", partial(engine_speed.against_llama_cpp, settings, given.descriptions)),
        Job(
            f"identical texts, {described}",
            "identical",
            partial(engine_speed.identical_texts, settings, given.descriptions),
        ),
        Job(
            f"Spark overhead, {given.spark_descriptions:,} descriptions",
            "spark",
            partial(engine_speed.spark_overhead, settings, given.spark_descriptions),
        ),
        Job(f"unchanged day, {given.entities:,} entities", "days", partial(days, settings, given.entities)),
    ]


def judged() -> dict[str, Any]:
    """Precision and recall of the validator on the texts that it was not tuned on."""
    found = validator.score(validator.judge(splits=("held_out",)))
    return {
        "num_outputs": found.num_outputs,
        "num_accepted": found.num_accepted,
        "num_usable": found.num_usable,
        "precision": found.precision,
        "recall": found.recall,
    }


def run_all(given: argparse.Namespace, settings: Settings) -> None:
    """Make what is missing of the wanted measurements, each written as soon as it is made, and the report."""
    measurements = Measurements(given.out)
    weights = next(iter(sorted(settings.llm.glob("*.safetensors"))), None)
    conditions = Conditions(file_sha256(weights)[:16] if weights else "no weights", 1, machine())
    measurements.require(conditions)
    measure_missing(jobs(settings, given), given.only, measurements, conditions)
    generation_report.write(given.out, given.command)
    say(f"report: {given.out / generation_report.REPORT_FILE}")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--out", type=Path, required=True, help="folder of the report")
    names = ", ".join(generation_report.KINDS)
    result.add_argument("--only", default=",".join(generation_report.KINDS), help=f"of {names}; the others later")
    result.add_argument("--descriptions", type=int, default=200, help="of every side of the engine's comparison")
    result.add_argument("--spark-descriptions", type=int, default=500, help="of the measurement of Spark's overhead")
    result.add_argument("--requests", type=int, default=1000, help="items described by a failing server")
    result.add_argument("--keys", type=int, default=5_000_000, help="of the ledger")
    result.add_argument("--inputs", type=int, default=1_300_000, help="looked up in it; a tenth are new")
    result.add_argument("--entities", type=int, default=100_000, help="of the day on which nothing changes")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    try:
        given.command = invocation.command(parser(), given, left_out={"only"})
        settings = Settings.load()
        os.environ |= process_environment(settings)  # Java, among others, where `make setup` has put it
        given.only = chosen_kinds(given.only, generation_report.KINDS)
        run_all(given, settings)
    except (SettingsError, PeerError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
