"""Train and test every system of the matrix on one data set.

    python -m benchmarks.quality --data FOLDER --models all --seeds 3 --out docs/benchmarks/quality-beauty

Reads:   a folder of the data contract, LLM-ESR's `inter.txt`, or `movielens` (downloaded)
Writes:  trials/, results.jsonl, ranks/, report.md with plots and summary.json in --out; vectors in --cache

`--protocol` says how events are split (`benchmarks/data/protocols.py`). Finished rows are never computed again.
Everything is tuned on the validation targets; the test targets are scored here and nowhere else.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.core import command
from benchmarks.core.machine import commit, machine
from benchmarks.core.store import write_about
from benchmarks.data import datasets
from benchmarks.data.datasets import COMMON_INPUTS, BenchmarkData, Inputs
from benchmarks.data.protocols import NUM_VALIDATION_USERS, Protocol
from benchmarks.data.readers import source_folder
from benchmarks.quality import scorers
from benchmarks.quality.matrix import TRIALS, MatrixEntry, chosen_entries, matrix, with_trial
from benchmarks.quality.protocol import TestResult, attention_mass, load_protocol
from benchmarks.quality.report import REPORT
from benchmarks.quality.results import Results
from benchmarks.quality.rows import FRESH, Row, RowInfo
from benchmarks.quality.scorers import ChosenScorer
from grasp.files import write_json
from grasp.progress import say
from grasp.settings import Settings
from grasp.versions import digest
from training.evaluation.ranking import RankerScorer, evaluation_events
from training.fitting.kernel_calibration import KERNEL_WEIGHT_GRID
from training.fitting.recipes import RECIPE_VERSION, TrainConfig
from training.fitting.training_loop import MAX_COMPARED_ITEMS, FittedRanker, fit, refit
from training.model.history_kernel import KINDS

TRIALS_FOLDER = "trials"
TRIAL_SEED = 0
NUM_KERNEL_CHOICES = math.prod(len(choices) for choices in KERNEL_WEIGHT_GRID.values())
SAY_EVERY = 5  # epochs


class QualityBenchmark:
    """One data set, its results, and how an entry of the matrix becomes rows of them."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.given = folder, given
        self.data = self.load()
        self.results = Results(given.out, self.data.checksum, RECIPE_VERSION)
        self.protocol = load_protocol(self.data, given.cache)
        self.validation = evaluation_events(self.data.choosing, "validation")
        self._trials: dict[str, FittedRanker] = {}  # of the latest system: the best one is its row of the first seed

    @cached_property
    def features(self) -> scorers.SharedFeatures:
        return scorers.SharedFeatures(self.data)

    def load(self, inputs: Inputs = COMMON_INPUTS, seed: int = 0, fitting_day: int | None = None) -> BenchmarkData:
        validation_users = self.given.validation_users or None
        return datasets.load(
            self.folder,
            cache=self.given.cache,
            validation_users=validation_users,
            inputs=inputs,
            seed=seed,
            protocol=self.given.protocol,
            order_seed=self.given.order_seed,
            fitting_day=fitting_day,
        )

    def describe(self, wanted: Sequence[Row]) -> None:
        """Store what the report says of the data, and the rows that are planned."""
        about = {
            "data": self.data.name,
            "num_users": len(self.data.training_set.user_ids),
            "num_items": len(self.data.training_set.item_ids),
            "num_interactions": self.data.num_interactions,
            "num_events": len(self.protocol.events),
            "command": self.given.command,
            "machine": machine(),
            "wanted": [row.row_id for row in wanted],
        }
        write_about(self.given.out, about)

    def rows(self, entry: MatrixEntry) -> list[Row]:
        """The entry's rows. A catalogue that is too large for a history kernel has none with it."""
        has_kernel = len(self.data.training_set.item_ids) <= MAX_COMPARED_ITEMS
        return [row for row in entry.rows if has_kernel or row.addition != "kernel"]

    def run(self, entry: MatrixEntry, every: Sequence[MatrixEntry]) -> None:
        """Train and test what is not finished of an entry; its trials are found in `every` entry."""
        if all(self.results.finished(row.row_id) for row in self.rows(entry)):
            return
        if entry.config is None:
            self._control(entry.row)
        else:
            self._trained(entry, self.settle(entry, entry.config, every))

    def settle(self, entry: MatrixEntry, config: TrainConfig, every: Sequence[MatrixEntry]) -> TrainConfig:
        """The entry's recipe with the settings of its best trial. Missing trials are run now, on clean data."""
        if not entry.tuned_as and not entry.trials:
            return self._limited(config)
        name, trials_of = entry.tuned_as or entry.row.model, entry.trials or TRIALS
        tuned = config
        if entry.tuned_as:
            tuned = next(each.config for each in every if each.row.model == entry.tuned_as and each.config)
        configs = [with_trial(self._limited(tuned), settings) for settings in trials_of]
        keys = [self._key(each) for each in configs]
        self._trials = {key: fitted for key, fitted in self._trials.items() if key in keys}
        for number, (key, tried, settings) in enumerate(zip(keys, configs, trials_of, strict=True), start=1):
            if not self._trial_file(key).exists():
                say(f"{name}: trial {number} of {len(trials_of)}: {settings}")
                fitted = fit(self.data.choosing, tried, TRIAL_SEED, self._progress(f"trial of {name}"))
                self._trials[key] = fitted
                trial = {
                    "model": name,
                    "settings": settings,
                    "validation_ndcg_at_10": fitted.metrics_without_kernel["ndcg@10"],
                    "wall_seconds": round(fitted.wall_seconds, 1),
                }
                write_json(self._trial_file(key), trial)
        trials = [json.loads(self._trial_file(key).read_text()) for key in keys]
        best = max(trials, key=lambda trial: float(trial["validation_ndcg_at_10"]))
        return with_trial(self._limited(config), best["settings"])

    def _key(self, config: TrainConfig) -> str:
        """A hash of data, seed, recipe version and the recipe's differences from a default one.

        New settings change no old key.
        """
        default = asdict(TrainConfig(config.name))
        switches = {name: value for name, value in asdict(config).items() if value != default[name]}
        return digest([config.name, switches, self.data.checksum, TRIAL_SEED, RECIPE_VERSION])[:16]

    def _trial_file(self, key: str) -> Path:
        """One file for each trial, so that several processes do not overwrite each other's."""
        return self.results.folder / TRIALS_FOLDER / f"{key}.json"

    def _limited(self, config: TrainConfig) -> TrainConfig:
        given = self.given
        return replace(
            config, max_minutes=given.minutes_per_model, patience=given.patience, max_epochs=given.max_epochs
        )

    def _control(self, row: Row) -> None:
        started, started_cpu = time.monotonic(), time.process_time()
        control = scorers.control(row.model, self.data, self.validation)

        def seconds() -> dict[str, Any]:
            return {"wall_seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - started_cpu}

        self._add(row, control, seconds, num_trials=control.num_trials, chosen=control.settings)

    def _trained(self, entry: MatrixEntry, config: TrainConfig) -> None:
        data = self.load(entry.inputs, entry.row.seed)
        is_trial = (entry.inputs, entry.row.seed) == (COMMON_INPUTS, TRIAL_SEED)
        chosen = self._trials.get(self._key(config)) if is_trial else None
        chosen = chosen or fit(data.choosing, config, entry.row.seed, self._progress(entry.row.row_id))
        fitted = refit(data.cut.fitting, config, entry.row.seed, chosen) if data.cut else chosen
        cost = self._cost(config, data, fitted)
        vocabulary = (data.cut.fitting if data.cut else data.training_set).item_ids
        with_kernel, base = (
            RankerScorer(fitted.ranker, vocabulary, data.training_set, with_kernel=is_added)
            for is_added in (True, False)
        )
        validated_with_kernel, validated = (
            RankerScorer(chosen.ranker, data.choosing.item_ids, data.choosing, with_kernel=is_added)
            for is_added in (True, False)
        )
        chosen_fresh = chosen.ranker.fresh, chosen.fresh
        fresh = scorers.FreshScorers(with_kernel, validated_with_kernel, chosen_fresh, self.features)
        kernel = fitted.ranker.kernel
        kernel_weights = dict(zip(KINDS, kernel.weights_K.tolist(), strict=True)) if kernel else {}
        for row in self.rows(entry):
            if self.results.finished(row.row_id):
                continue
            if row.addition == "kernel" and kernel:
                scorer = ChosenScorer(with_kernel, kernel_weights, NUM_KERNEL_CHOICES)
            elif row.addition in FRESH:
                scorer = fresh.with_addition(row.addition, kernel_weights)
            else:
                scorer = scorers.with_addition(base, validated, row.addition, self.data, self.validation)
            settings = {"settings": dict(config.ranker), "added": scorer.settings}
            num_trials = scorer.num_trials
            if entry.tuned_as or entry.trials:
                num_trials += len(entry.trials or TRIALS) - 1
            self._add(row, scorer, lambda: cost, num_trials=num_trials, chosen=settings)

    def _cost(self, config: TrainConfig, data: BenchmarkData, fitted: FittedRanker) -> dict[str, Any]:
        """What a training tells of itself in each of its rows."""
        return {
            "wall_seconds": fitted.wall_seconds,
            "cpu_seconds": fitted.cpu_seconds,
            "fresh_cpu_seconds": fitted.fresh_cpu_seconds,
            "num_parameters": sum(weights.numel() for weights in fitted.ranker.parameters()),
            "num_epochs": fitted.num_epochs,
            "best_epoch": fitted.best_epoch,
            "validation_ndcg_at_10": fitted.metrics_without_kernel["ndcg@10"],
            "time_limit_seconds": 60 * config.max_minutes,
            "patience": config.patience,
            "num_validation_users": len({event.user for event in self.validation}),
            "recipe": asdict(config) | {"ranker": dict(config.ranker)},
            "recipe_version": RECIPE_VERSION,
            "attention_mass": attention_mass(fitted.ranker, data, self.data, self.protocol.events),
        }

    def _add(self, row: Row, scorer: ChosenScorer, cost_after_test: Callable[[], dict[str, Any]], **known: Any) -> None:
        """Test a scorer and store the row. The cost of a control includes its test."""
        found = self.protocol.test(scorer.score)
        self.store(row, found, **cost_after_test(), **known)

    def store(self, row: Row, found: TestResult, **known: Any) -> None:
        """Store a row; `known` are the fields of `RowInfo` that neither the test nor the benchmark tells."""
        info = RowInfo(
            num_threads=torch.get_num_threads(),
            commit=commit(),
            data_checksum=self.data.checksum,
            coverage_at_10=found.coverage,
            cross_category_share_at_10=found.cross_category_share,
            **known,
        )
        finished = self.results.add(row, found.rankings, self.protocol.groups, info, self.protocol.units)
        say(
            f"{row.row_id}: filtered NDCG@10 {finished.value('filtered', 'ndcg@10'):.4f}, "
            f"HR@10 {finished.value('filtered', 'hr@10'):.4f}, {info.wall_seconds / 60:.1f} min"
        )

    def _progress(self, name: str) -> Callable[[int, dict[str, float]], None]:
        def show(epoch: int, found: dict[str, float]) -> None:
            if epoch % SAY_EVERY == 0 or epoch == 1:
                say(f"{name} epoch {epoch}: loss {found['loss']:.3f}, validation {found['ndcg@10']:.4f}")

        return show


def measure(given: argparse.Namespace, settings: Settings) -> None:
    torch.set_num_threads(given.threads)
    folder = source_folder(given.data, settings)
    every = matrix(folder.name, given.seeds, given.protocol)  # a data set has the name of its folder
    entries = chosen_entries(every, models=given.models, sections=given.sections)  # refuses a wrong name at once
    benchmark = QualityBenchmark(folder, given)
    benchmark.describe([row for entry in every for row in benchmark.rows(entry)])
    end = time.monotonic() + 60 * given.minutes
    for number, entry in enumerate(entries, start=1):
        if time.monotonic() > end:
            say(f"{given.minutes:g} minutes are over: {len(entries) - number + 1} systems are left for the next run")
            break
        say(f"{number} of {len(entries)}: {entry.row.row_id}")
        benchmark.run(entry, every)
    REPORT.write(given.out, given.command)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("benchmarks.quality", __doc__, has_data=True)
    parser.add_argument(
        "--protocol", choices=get_args(Protocol), default="published", help="docs/benchmarks.md tells them apart"
    )
    parser.add_argument("--models", default="all", help="names separated by commas, or `all`")
    parser.add_argument("--sections", default="all", help="of the report, separated by commas: main, corruption ...")
    add_training_options(parser)
    given = command.parse(parser, arguments, not_named={"cache", "minutes"})
    set_validation_users(given)
    return given


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark that trains and tests systems takes."""
    parser.add_argument("--order-seed", type=int, default=0, help="of shuffled ties, the same for all rows")
    parser.add_argument("--seeds", type=int, default=3, help="of the systems that have several")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no further system is started")
    parser.add_argument("--minutes-per-model", type=float, default=15.0, help="of training, for every system")
    parser.add_argument("--max-epochs", type=int, default=200)
    parser.add_argument("--patience", type=int, default=5, help="epochs without a better validation NDCG@10")
    parser.add_argument(
        "--validation-users", type=int, help="users with a validation target, 0 for all (default 2048; fashion: all)"
    )
    parser.add_argument("--threads", type=int, default=2)


def set_validation_users(given: argparse.Namespace) -> None:
    """Published results on Fashion hold out a validation item of every user."""
    if given.validation_users is None:
        given.validation_users = 0 if Path(given.data).name == "fashion" else NUM_VALIDATION_USERS


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(parse(arguments), measure)
