"""Whether descriptions by the small language model serve better than those built from facts: MovieLens-100K.

    python -m benchmarks.descriptions --out docs/benchmarks/descriptions

Reads:   the models and the MovieLens folder of `make setup`
Writes:  measurements.jsonl and summary.json in --out, the report beside it (--out with `.md`); descriptions with their
         ledger, and vectors, in --cache

First every item and user is described. What the validator refused has its facts instead, as in a refresh. Then both
kinds of text are encoded, and their neighbours and the rankers that read them compared. A run that is ended goes on
where it was; a measurement is one line: delete it to measure again.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.core import invocation
from benchmarks.core.machine import machine
from benchmarks.core.measurements import Conditions, Job, Measurements, chosen_kinds, measure_missing
from benchmarks.data import datasets, readers
from benchmarks.data.datasets import BenchmarkData
from benchmarks.descriptions import report as descriptions_report
from benchmarks.descriptions import retrieval, written
from benchmarks.descriptions.report import ARMS, CHANCE, RECIPES
from benchmarks.descriptions.written import Written
from benchmarks.quality.matrix import trained
from grasp.environment import process_environment
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from training.evaluation.evaluate import gains, questions, rank_events, ranker_scorer
from training.fitting.fit import fit
from training.fitting.recipes import TrainConfig

SETTINGS = {"width": 128, "dropout": 0.2}  # what the trials of the quality benchmark chose for every system
MAX_MINUTES, PATIENCE = 15.0, 5  # of a training, as in the quality benchmark
PLACES = 4  # of a stored metric


class Benchmark:
    """The data with either kind of text, and what is measured on it."""

    def __init__(self, settings: Settings, given: argparse.Namespace) -> None:
        self.settings, self.given = settings, given
        self.own = written.own_settings(settings, given.cache / "descriptions")
        self.folder = readers.movielens_folder(settings)
        self.source = readers.read(self.folder)
        splits = datasets.split(self.source.sequences, datasets.NUM_VALIDATION_USERS)
        self.train = datasets.training_items(self.source.sequences, splits)

    @cached_property
    def facts(self) -> BenchmarkData:
        return datasets.load(self.folder, cache=self.given.cache, settings=self.settings)

    @cached_property
    def llm(self) -> BenchmarkData:
        texts = self.texts.of_items, self.texts.of_users
        return datasets.load(self.folder, cache=self.given.cache, settings=self.settings, describe=lambda *_: texts)

    @cached_property
    def texts(self) -> Written:
        return written.read(self.own, self.source)

    def data(self, arm: str) -> BenchmarkData:
        return self.llm if arm == "llm" else self.facts

    def generation(self) -> dict[str, Any]:
        return written.write(self.own, self.source, self.train, self.given.budget, self.given.workers)

    def neighbours(self, arm: str, passed_only: bool) -> dict[str, Any]:
        """What lies near; among all, or among those alone that the language model wrote a text for."""
        known, cache = self.facts.training_set, self.given.cache / "neighbours"
        masks = [self.texts.is_item_written, self.texts.is_user_written]
        among_items, among_users = masks if passed_only else [np.ones_like(mask) for mask in masks]
        if arm == CHANCE:
            near_items, near_users = (retrieval.by_chance(len(mask), mask) for mask in (among_items, among_users))
        else:
            vectors = self.data(arm).training_set
            near_items = retrieval.near(vectors.item_ids, vectors.item_semantic, among_items, cache)
            near_users = retrieval.near(vectors.user_ids, vectors.user_semantic, among_users, cache)
        measured = retrieval.measure(self.source, near_items, near_users, known)
        counts = {"num_items": int(among_items.sum()), "num_users": int(among_users.sum())}
        return {"arm": arm, "passed_only": passed_only, **counts, **measured}

    def ranking(self, model: str, arm: str, seed: int) -> dict[str, Any]:
        """NDCG@10 of each test event, of the ranker alone and with its history kernel, and the mean HR@10."""
        known = self.data(arm).training_set
        fitted = fit(known, self.config(model, seed), seed, lambda *_: None)
        events, found = questions(known, "test"), {}
        for addition in ("none", "kernel"):
            with_kernel = addition == "kernel"
            score = ranker_scorer(fitted.ranker, known.item_ids, known, with_kernel=with_kernel)
            ndcg, hr = gains(rank_events(score, events).filtered, 10)
            found[addition] = {"hr_at_10": float(hr.mean()), "ndcg_at_10": ndcg.round(PLACES).tolist()}
        cost = {"wall_seconds": fitted.wall_seconds, "num_epochs": fitted.num_epochs}
        return {"arm": arm, "model": model, "seed": seed, **cost, "found": found}

    def config(self, model: str, seed: int) -> TrainConfig:
        config = trained(model, seed, "main").config
        assert config is not None
        limited = replace(config, max_minutes=MAX_MINUTES, patience=PATIENCE, max_epochs=self.given.max_epochs)
        return limited.with_switches(**SETTINGS)

    def jobs(self) -> list[Job]:
        def neighbours(arm: str, passed_only: bool) -> Job:
            among = "of written ones" if passed_only else "of all"
            return Job(f"neighbours {among}, {arm}", "retrieval", lambda: self.neighbours(arm, passed_only))

        def ranking(model: str, arm: str, seed: int) -> Job:
            return Job(f"{model}, {arm}, seed {seed}", "ranking", lambda: self.ranking(model, arm, seed))

        return [
            Job("descriptions", "generation", self.generation),
            *(neighbours(arm, only) for only in (False, True) for arm in (*ARMS, CHANCE)),
            *(ranking(model, arm, seed) for seed in range(self.given.seeds) for model in RECIPES for arm in ARMS),
        ]


def run_all(given: argparse.Namespace, settings: Settings) -> None:
    """Make what is missing of the wanted measurements, each written as soon as it is made, and the report."""
    torch.set_num_threads(given.threads)
    benchmark, measurements = Benchmark(settings, given), Measurements(given.out)
    conditions = Conditions(benchmark.facts.checksum, given.threads, machine())
    measurements.require(conditions)
    measure_missing(benchmark.jobs(), given.only, measurements, conditions)
    descriptions_report.write(given.out, given.command)
    say(f"report: {descriptions_report.report_file(given.out)}")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.descriptions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--out", type=Path, required=True, help="folder of the measurements; the report is beside it")
    result.add_argument("--cache", type=Path, help="descriptions and vectors (default: benchmarks below GRASP_HOME)")
    names = ", ".join(descriptions_report.KINDS)
    result.add_argument("--only", default=",".join(descriptions_report.KINDS), help=f"of {names}; the others later")
    result.add_argument("--budget", type=int, default=1_000_000, help="most texts of items, and as many of users")
    result.add_argument("--workers", type=int, default=2, help="processes that run the language model")
    result.add_argument("--seeds", type=int, default=3, help="of every ranker")
    result.add_argument("--max-epochs", type=int, default=200)
    result.add_argument("--threads", type=int, default=1, help="of a training")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    try:
        given.command = invocation.command(parser(), given, left_out={"cache", "only"})
        settings = Settings.load()
        os.environ |= process_environment(settings)  # Java, among others, where `make setup` has put it
        given.cache = given.cache or settings.home / "benchmarks"
        given.only = chosen_kinds(given.only, descriptions_report.KINDS)
        run_all(given, settings)
    except (SettingsError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
