"""Metrics for Prometheus: requests, stages of an answer, fallbacks, freshness, releases, the requests log.

With several workers each process writes its numbers below `PROMETHEUS_MULTIPROC_DIR`, and the worker that answers
`/metrics` adds them up. `docs/serving.md` explains the metrics.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from grasp.days import end_of
from grasp.manifest import Manifest
from grasp.settings import Settings

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client when it is imported
STAGES = ("lookup", "attention", "backbone", "moments", "scoring", "post")
STAGE_SECONDS = (0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
AGE_HOURS = (1, 6, 12, 24, 30, 36, 48, 72, 168)


def share_metrics(settings: Settings) -> None:
    """Let the workers that this process starts share their metrics, beginning at zero."""
    place = settings.home / "metrics" / f"serving-{settings.port}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    os.environ[MULTIPROCESS_VARIABLE] = str(place)


class Metrics:
    """The metrics of one process, in its own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        self._requests = counter("grasp_http_requests", "Requests by route and status.", ["route", "status"])
        self._seconds = histogram(
            "grasp_http_request_seconds",
            "Time from first to last byte.",
            ["route"],
            buckets=REQUEST_SECONDS,
        )
        stages = histogram("grasp_stage_seconds", "Stages of an answer about a user.", ["stage"], buckets=STAGE_SECONDS)
        # Created at the start, so that a dashboard has no gaps.
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._answers = counter(
            "grasp_answers",
            "Answers about a user by release, bucket and fallback; none means no fallback was needed.",
            ["release", "bucket", "fallback"],
        )
        self._store_problems = counter("grasp_store_problems", "Failed lookups in the online store.", ["problem"])
        self._store_state = gauge(
            "grasp_online_store_problem",
            "1 while the online store of a loaded release has this problem, whether requests come or not.",
            ["problem"],
            multiprocess_mode="livemax",
        )
        self._search_fallbacks = counter("grasp_search_fallbacks", "Searches without Milvus.", ["fallback"])
        self._votes_fallbacks = counter(
            "grasp_votes_fallbacks", "Answers of models that read the votes of moments, without these.", ["fallback"]
        )
        self._age = histogram("grasp_feature_age_hours", "Age of the features that an answer used.", buckets=AGE_HOURS)
        self._release_day = gauge(
            "grasp_release_day_timestamp_seconds",
            "End of the feature day of the release in force, seconds since 1970.",
            multiprocess_mode="mostrecent",
        )
        self._loaded = gauge(
            "grasp_release_loaded",
            "1 for a loaded release, by role: in_force, or candidate for the release of an experiment.",
            ["release", "model", "role"],
            multiprocess_mode="mostrecent",
        )
        self._refused = gauge(
            "grasp_release_refused",
            "1 while a newer release (kind release) or an experiment (kind experiment) cannot be loaded.",
            ["kind"],
            multiprocess_mode="livemax",
        )
        self._log_rows = counter(
            "grasp_requests_log_rows",
            "Rows of the requests log by table and result: written, dropped, or refused (the caller sends them again).",
            ["table", "result"],
        )
        self._shown: set[tuple[str, str, str]] = set()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of an answer."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stages[name].observe(time.perf_counter() - started)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_answer(self, release: str, bucket: str | None, fallback: str | None, age_hours: float) -> None:
        self._answers.labels(release, bucket or "none", fallback or "none").inc()
        self._age.observe(age_hours)

    def count_store_problem(self, problem: str) -> None:
        self._store_problems.labels(problem).inc()

    def set_store_problems(self, problems: Mapping[str, bool]) -> None:
        """Report which of the problems the online stores have now."""
        for problem, is_there in problems.items():
            self._store_state.labels(problem).set(is_there)

    def count_search_fallback(self, fallback: str) -> None:
        self._search_fallbacks.labels(fallback).inc()

    def count_votes_fallback(self, fallback: str) -> None:
        self._votes_fallbacks.labels(fallback).inc()

    def count_log_rows(self, table: str, result: str, num_rows: int) -> None:
        self._log_rows.labels(table, result).inc(num_rows)

    def set_releases(self, in_force: Manifest | None, challenger: Manifest | None) -> None:
        """Report the loaded releases, in place of those reported before."""
        shown = {
            (manifest.release_id, manifest.model or "popular", role)
            for role, manifest in (("in_force", in_force), ("candidate", challenger))
            if manifest
        }
        for labels in self._shown | shown:
            self._loaded.labels(*labels).set(labels in shown)
        self._shown |= shown
        if in_force:
            self._release_day.set(end_of(in_force.day).timestamp())

    def set_problems(self, *, is_refused: bool, is_experiment_refused: bool) -> None:
        self._refused.labels("release").set(is_refused)
        self._refused.labels("experiment").set(is_experiment_refused)

    def text(self) -> bytes:
        """The metrics of all workers in Prometheus's text format."""
        # Not a test of the variable: Feast sets it when it is imported, after prometheus_client has read it.
        if values.ValueClass is values.MutexValue:
            return generate_latest(self._registry)
        _forget_dead_workers(Path(os.environ[MULTIPROCESS_VARIABLE]))
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)


def _forget_dead_workers(place: Path) -> None:
    """Remove the live gauges of dead workers; their counters stay in the sums."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in place.glob("gauge_live*.db")}:
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid, str(place))
