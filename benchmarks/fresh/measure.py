"""What fresh features are worth: takers of the last days, and votes of recent similar moments.

    python -m benchmarks.fresh --data FOLDER --out docs/benchmarks/fresh [--only global-time,weekly]

Reads:   a folder of the data contract, or `movielens` (downloaded); with --serving the figures of the service
Writes:  a folder of rows and measurements for each data set and protocol, report.md with plots, and summary.json in
         --out; vectors and the weeks of an interrupted run in --cache

Several data sets share one --out: the report has all of them. Rows are those of `benchmarks.quality`. What is finished
is never computed again. The first seed of everything comes before the second.
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch

from benchmarks.core import command
from benchmarks.core.machine import commit, machine
from benchmarks.core.store import Conditions, Measurement, Measurements, write_about
from benchmarks.core.summary import SUMMARY_FILE
from benchmarks.data.protocols import Protocol
from benchmarks.data.readers import source_folder
from benchmarks.fresh import future_facts
from benchmarks.fresh.entries import FRESH, RIVALS, WEEKLY, entries_of, has_weekly, protocols_of, short_name, weekly_row
from benchmarks.fresh.figures import FUTURE_FACTS, ONLINE, places
from benchmarks.fresh.report import REPORT
from benchmarks.fresh.weekly import WeeklyRetraining
from benchmarks.quality.matrix import MatrixEntry
from benchmarks.quality.measure import QualityBenchmark, add_training_options, set_validation_users
from grasp.progress import say
from grasp.settings import ROOT, Settings

KINDS = (*get_args(Protocol), RIVALS, WEEKLY, FUTURE_FACTS)
SERVING = ROOT / "docs" / "benchmarks" / "serving"


class PlaceBenchmark:
    """One data set and protocol: its rows, and what is measured beside them."""

    def __init__(self, source: Path, protocol: Protocol, given: argparse.Namespace) -> None:
        self.data, self.protocol, self.given = short_name(source.name), protocol, given
        self.folder = given.out / f"{self.data}-{protocol}"
        self._source = source

    @cached_property
    def quality(self) -> QualityBenchmark:
        """The data and its rows; the rows that are planned are stored."""
        changed = {"out": self.folder, "protocol": self.protocol}
        found = QualityBenchmark(self._source, argparse.Namespace(**vars(self.given) | changed))
        entries = [entry for seed in range(self.given.seeds) for entry in self.entries(seed)]
        rows = [row for entry in entries for row in found.rows(entry)]
        if has_weekly(self.data, self.protocol):
            rows += [weekly_row(self.entries(seed)[0].row) for seed in range(self.given.seeds)]
        found.describe(rows)
        return found

    def entries(self, seed: int) -> list[MatrixEntry]:
        """The trainings of a seed; the first one is GRASP's."""
        return entries_of(self.data, self.protocol, seed, tries_widths=self.given.llm_init_widths)

    def train(self, seed: int, section: str, end: float) -> None:
        """Train and test the systems of a seed that are not finished, until `end` on the monotonic clock."""
        entries = [entry for entry in self.entries(seed) if entry.row.section == section]
        for entry in entries:
            if time.monotonic() > end:
                return
            say(f"{self.folder.name}: {entry.row.row_id}")
            self.quality.run(entry, entries)

    def train_weekly(self, seed: int, end: float) -> None:
        row = weekly_row(self.entries(seed)[0].row)
        if not self.quality.results.finished(row.row_id) and time.monotonic() < end:
            WeeklyRetraining(self.quality, self.entries(seed)[0]).run(end)

    def check_future_facts(self) -> None:
        """Once, on whatever machine: it is no matter of speed."""
        measurements, data = Measurements(self.folder), self.quality.data
        if FUTURE_FACTS not in measurements:
            conditions = Conditions(data.checksum, self.given.threads, machine())
            found = future_facts.check(data)
            measurements.add(Measurement(FUTURE_FACTS, FUTURE_FACTS, found, conditions, commit()))


def measure(given: argparse.Namespace, settings: Settings) -> None:
    """Measure what is wanted and missing, and write the report after each seed."""
    torch.set_num_threads(given.threads)
    source = source_folder(given.data, settings)
    end = time.monotonic() + 60 * given.minutes
    protocols = protocols_of(short_name(source.name))
    every = [PlaceBenchmark(source, protocol, given) for protocol in protocols]
    write_about(given.out, {"online": online_figures(given.serving)})
    if FUTURE_FACTS in given.only:
        for place in every:
            place.check_future_facts()
    for seed in range(given.seeds):
        for place in every:
            if place.protocol in given.only:
                place.train(seed, FRESH, end)
        for place in every:
            if RIVALS in given.only:
                place.train(seed, RIVALS, end)
        for place in every:
            if WEEKLY in given.only and has_weekly(place.data, place.protocol):
                place.train_weekly(seed, end)
        if places(given.out):
            REPORT.write(given.out, given.command)
    if time.monotonic() > end:
        say(f"{given.minutes:g} minutes are over: what is left is for the next run")


def online_figures(folder: Path) -> dict[str, float | None]:
    """The figures of the service that are fresh features', from its report's folder; None where not measured."""
    file = folder / SUMMARY_FILE
    figures = json.loads(file.read_text())["figures"] if file.exists() else {}
    return {name: figures.get(name, {}).get("value") for name in ONLINE}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("benchmarks.fresh", __doc__, KINDS, has_data=True)
    add_training_options(parser)
    parser.add_argument(
        "--llm-init-widths", action="store_true", help="LLMInit as published with the width that validation chooses"
    )
    parser.add_argument("--serving", type=Path, default=SERVING, help="folder of the report of benchmarks.serving")
    given = command.parse(parser, arguments, not_named={"cache", "minutes", "only", "serving"})
    set_validation_users(given)
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(parse(arguments), measure)
