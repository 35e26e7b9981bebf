"""Train and measure every system of the matrix on one data set; rows that are finished are never computed again.

    python -m benchmarks.quality --data FOLDER --models all --seeds 3 --out docs/benchmarks/quality-beauty

Reads:   a folder of the data contract, LLM-ESR's `inter.txt`, or `movielens` (downloaded)
Writes:  trials/, results.jsonl, ranks/, report.md with plots and summary.json in --out; vectors in --cache

Everything is tuned on the validation targets. The test targets are scored here and nowhere else.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.core import invocation
from benchmarks.core.machine import commit, machine
from benchmarks.data import datasets, readers
from benchmarks.data.datasets import COMMON_INPUTS, BenchmarkData, Inputs
from benchmarks.quality import report, scorers
from benchmarks.quality.exam import Measured, attention_mass, load_exam
from benchmarks.quality.matrix import TRIALS, Job, chosen, matrix, with_trial
from benchmarks.quality.results import OtherDataError, Results
from benchmarks.quality.rows import About, Info, Row
from benchmarks.quality.scorers import Scored
from grasp.files import write_json
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.versions import digest
from spark_jobs.source.reader import SourceError
from training.evaluation.evaluate import questions, ranker_scorer
from training.fitting.calibration import KERNEL_WEIGHTS
from training.fitting.fit import MAX_COMPARED_ITEMS, Fitted, fit
from training.fitting.recipes import TrainConfig
from training.model.history_kernel import KINDS

TRIALS_FOLDER = "trials"
TRIAL_SEED = 0
NUM_KERNEL_CHOICES = math.prod(len(choices) for choices in KERNEL_WEIGHTS.values())
SAY_EVERY = 5  # epochs


class Benchmark:
    """One data set, its store of results, and how a job becomes rows of it."""

    def __init__(self, folder: Path, out: Path, cache: Path, limits: argparse.Namespace) -> None:
        self.folder, self.cache, self.limits = folder, cache, limits
        self.data = self.load()
        self.results = Results(out, self.data.checksum)
        self.exam = load_exam(self.data, cache)
        self.validation = questions(self.data.training_set, "validation")
        self._trials: dict[str, Fitted] = {}  # of the latest system: the winner is its row of the first seed

    def load(self, inputs: Inputs = COMMON_INPUTS, seed: int = 0) -> BenchmarkData:
        return datasets.load(
            self.folder,
            cache=self.cache,
            validation_users=self.limits.validation_users or None,
            inputs=inputs,
            seed=seed,
        )

    def rows(self, job: Job) -> list[Row]:
        """The job's rows; a catalogue that is too large for a history kernel has none with it."""
        has_kernel = len(self.data.training_set.item_ids) <= MAX_COMPARED_ITEMS
        return [row for row in job.rows if has_kernel or row.addition != "kernel"]

    def run(self, job: Job, every: Sequence[Job]) -> None:
        """Train and measure what of a job is not finished yet; `every` job is where its trials are looked up."""
        if all(self.results.finished(row.row_id) for row in self.rows(job)):
            return
        if job.config is None:
            self._control(job.row)
        else:
            self._trained(job, self.settle(job, every))

    def _control(self, row: Row) -> None:
        started, started_cpu = time.monotonic(), time.process_time()
        control = scorers.control(row.model, self.data, self.validation)
        found = self.exam.measure(control.score)
        info = self._info(
            found,
            wall_seconds=time.monotonic() - started,
            cpu_seconds=time.process_time() - started_cpu,
            num_trials=control.num_trials,
            chosen=control.settings,
        )
        self._add(row, found, info)

    def settle(self, job: Job, every: Sequence[Job]) -> TrainConfig:
        """The job's recipe with the settings that its trials chose: run now, on clean data, unless they were before."""
        config = self._limited(job.config) if job.config else None
        assert config is not None
        if not job.tuned_as:
            return config
        tuned = next(each.config for each in every if each.row.model == job.tuned_as and each.config)
        configs = [with_trial(self._limited(tuned), settings) for settings in TRIALS]
        keys = [self._key(each) for each in configs]
        self._trials = {key: fitted for key, fitted in self._trials.items() if key in keys}
        for number, (key, tried, settings) in enumerate(zip(keys, configs, TRIALS, strict=True), start=1):
            if not self._trial_file(key).exists():
                say(f"{job.tuned_as}: trial {number} of {len(TRIALS)}: {settings}")
                fitted = fit(self.data.training_set, tried, TRIAL_SEED, self._progress(f"trial of {job.tuned_as}"))
                self._trials[key] = fitted
                trial = {
                    "model": job.tuned_as,
                    "settings": settings,
                    "validation_ndcg_at_10": fitted.metrics_without_kernel["ndcg@10"],
                    "wall_seconds": round(fitted.wall_seconds, 1),
                }
                write_json(self._trial_file(key), trial)
        trials = [json.loads(self._trial_file(key).read_text()) for key in keys]
        best = max(trials, key=lambda trial: float(trial["validation_ndcg_at_10"]))
        return with_trial(config, best["settings"])

    def _key(self, config: TrainConfig) -> str:
        """By data, seed and how the recipe differs from a default one, so that a further setting changes no old key.

        The code is not in it: after a change to a model its old trials want deleting.
        """
        default = asdict(TrainConfig(config.name))
        switches = {name: value for name, value in asdict(config).items() if value != default[name]}
        return digest([config.name, switches, self.data.checksum, TRIAL_SEED])[:16]

    def _trial_file(self, key: str) -> Path:
        """One file a trial, so that several processes lose nothing of each other's."""
        return self.results.folder / TRIALS_FOLDER / f"{key}.json"

    def _limited(self, config: TrainConfig) -> TrainConfig:
        limits = self.limits
        return replace(
            config, max_minutes=limits.minutes_per_model, patience=limits.patience, max_epochs=limits.max_epochs
        )

    def _trained(self, job: Job, config: TrainConfig) -> None:
        data = self.load(job.inputs, job.row.seed)
        is_trial = (job.inputs, job.row.seed) == (COMMON_INPUTS, TRIAL_SEED)
        fitted = self._trials.get(self._key(config)) if is_trial else None
        fitted = fitted or fit(data.training_set, config, job.row.seed, self._progress(job.row.row_id))
        cost = {
            "wall_seconds": fitted.wall_seconds,
            "cpu_seconds": fitted.cpu_seconds,
            "num_parameters": sum(weights.numel() for weights in fitted.ranker.parameters()),
            "num_epochs": fitted.num_epochs,
            "best_epoch": fitted.epoch,
            "validation_ndcg_at_10": fitted.metrics_without_kernel["ndcg@10"],
            "time_limit_seconds": 60 * config.max_minutes,
            "patience": config.patience,
            "num_validation_users": len(self.validation),
        }
        with_kernel, base = (
            ranker_scorer(fitted.ranker, data.training_set.item_ids, data.training_set, with_kernel=is_added)
            for is_added in (True, False)
        )
        mass = attention_mass(fitted.ranker, data, self.data, self.exam.events)
        for row in self.rows(job):
            if self.results.finished(row.row_id):
                continue
            if row.addition == "kernel" and fitted.ranker.kernel:
                weights = dict(zip(KINDS, fitted.ranker.kernel.weights_K.tolist(), strict=True))
                scored = Scored(with_kernel, weights, NUM_KERNEL_CHOICES)
            else:
                scored = scorers.with_addition(base, row.addition, self.data, self.validation)
            found = self.exam.measure(scored.score)
            settled = {"settings": dict(config.ranker), "added": scored.settings}
            num_trials = scored.num_trials + (len(TRIALS) - 1 if job.tuned_as else 0)
            info = self._info(found, **cost, num_trials=num_trials, chosen=settled, attention_mass=mass)
            self._add(row, found, info)

    def _info(self, found: Measured, **known: object) -> Info:
        unknown: dict[str, object] = {"num_parameters": 0, "num_epochs": 0, "best_epoch": 0}
        unknown |= {"validation_ndcg_at_10": None}
        measured = {
            "num_threads": torch.get_num_threads(),
            "commit": commit(),
            "data_checksum": self.data.checksum,
            "coverage_at_10": found.coverage,
            "cross_category_share_at_10": found.cross_category_share,
        }
        return Info(**(unknown | measured | known))  # type: ignore[arg-type]

    def _add(self, row: Row, found: Measured, info: Info) -> None:
        finished = self.results.add(row, found.rankings, self.exam.groups, info)
        say(
            f"{row.row_id}: filtered NDCG@10 {finished.value('filtered', 'ndcg@10'):.4f}, "
            f"HR@10 {finished.value('filtered', 'hr@10'):.4f}, {info.wall_seconds / 60:.1f} min"
        )

    def _progress(self, name: str) -> Callable[[int, dict[str, float]], None]:
        def show(epoch: int, found: dict[str, float]) -> None:
            if epoch % SAY_EVERY == 0 or epoch == 1:
                say(f"{name} epoch {epoch}: loss {found['loss']:.3f}, validation {found['ndcg@10']:.4f}")

        return show


def run(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    folder = readers.source_folder(given.data, Settings.load())
    every = matrix(folder.name, given.seeds)  # data are called as their folder
    jobs = chosen(every, models=given.models, sections=given.sections)  # a wrong name is refused before minutes pass
    benchmark = Benchmark(folder, given.out, given.cache, given)
    data = benchmark.data
    about = About(
        data=data.name,
        num_users=len(data.training_set.user_ids),
        num_items=len(data.training_set.item_ids),
        num_interactions=data.num_interactions,
        num_events=len(benchmark.exam.events),
        command=given.command,
        machine=machine(),
        wanted=tuple(row.row_id for job in every for row in benchmark.rows(job)),
    )
    benchmark.results.describe(about)
    end = time.monotonic() + 60 * given.minutes
    for number, job in enumerate(jobs, start=1):
        if time.monotonic() > end:
            say(f"{given.minutes:g} minutes are over: {len(jobs) - number + 1} jobs are left for the next run")
            break
        say(f"{number} of {len(jobs)}: {job.row.row_id}")
        benchmark.run(job, every)
    report.write(given.out)
    say(f"report: {given.out / report.REPORT_FILE}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help=f"folder, or `{readers.MOVIELENS}`")
    parser.add_argument("--models", default="all", help="names separated by commas, or `all`")
    parser.add_argument("--sections", default="all", help="of the report, separated by commas: main, corruption ...")
    parser.add_argument("--seeds", type=int, default=3, help="of the rows that want several (default 3)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--cache", type=Path, help="vectors of texts (default: benchmarks below GRASP_HOME)")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no further system after these")
    parser.add_argument("--minutes-per-model", type=float, default=15.0, help="of training, for every system")
    parser.add_argument("--max-epochs", type=int, default=200)
    parser.add_argument("--patience", type=int, default=5, help="epochs without a better validation NDCG@10")
    parser.add_argument(
        "--validation-users", type=int, help="users with a validation target, 0 for all (default 2048; fashion: all)"
    )
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    given.command = invocation.command(parser, given, left_out={"cache", "minutes"})
    if given.validation_users is None:
        # Published rows on Fashion hold a validation item out of everyone's sequence.
        given.validation_users = 0 if Path(given.data).name == "fashion" else datasets.NUM_VALIDATION_USERS
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    try:
        given.cache = given.cache or Settings.load().home / "benchmarks"
        run(given)
    except (SettingsError, SourceError, OtherDataError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
