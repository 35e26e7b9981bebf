"""The last day's generation metrics as a Prometheus text file: `$GRASP_HOME/metrics/generation.prom`.

A batch job ends before Prometheus can scrape it, so it writes a file for the node exporter's textfile collector. Every
sample is a gauge of one day, labelled by entity. `docs/observability.md` explains all metrics.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from grasp import partitions, tables
from grasp.days import end_of
from grasp.settings import Settings
from grasp.versions import Versions
from spark_jobs.generation.budget import Caps

TABLE = tables.GENERATION_METRICS
PREFIX = "grasp_generation_"
# Gauge name by column; the help text is the column's meaning in `grasp/tables.py`.
GAUGES = {
    "num_entities": "entities",
    "num_cache_hits": "cache_hits",
    "num_kept": "kept",
    "num_described": "described",
    "num_answers": "answers",
    "num_accepted": "accepted",
    "num_refused": "refused",
    "num_repairs": "repairs",
    "num_repaired": "repaired",
    "num_unanswered": "unanswered",
    "num_calls": "calls",
    "num_failed_calls": "failed_calls",
    "num_input_tokens": "input_tokens",
    "num_output_tokens": "output_tokens",
    "cost": "cost",
    "seconds": "model_seconds",
    "wall_seconds": "wall_seconds",
    "answers_per_minute": "answers_per_minute",
}
CAPS = {
    "num_keys": ("limit_answers", "texts that the day's caps allow"),
    "num_calls": ("limit_calls", "calls that the day's caps allow; absent without such a cap"),
    "num_tokens": ("limit_tokens", "tokens that the day's caps allow; absent without such a cap"),
    "cost": ("limit_cost", "cost that the day's caps allow; absent without such a cap"),
}
BY_HISTORY = {
    "asked_by_history": "texts asked for by `history`, the number of interactions they are about",
    "failed_by_history": "of these, refused and unanswered ones; 0 where none failed",
}
FAILURES = ("failures", "refused and unanswered texts by refusal reason or error; absent when there are none")
DAY = ("day_timestamp_seconds", "end of the day that was described, seconds since 1970")
INFO = ("info", "1 for the prompt and model that the other metrics are about")


def prometheus_path(settings: Settings) -> Path:
    return settings.home / "metrics" / "generation.prom"


def write_prometheus_file(settings: Settings, versions: Versions) -> None:
    """Write the metrics of the last described day of each kind, for the configured prompt and model."""
    registry = CollectorRegistry()
    gauges = {name: _gauge(registry, gauge, _meaning(name)) for name, gauge in GAUGES.items()}
    caps = {name: _gauge(registry, *gauge) for name, gauge in CAPS.items()}
    failures = Gauge(PREFIX + FAILURES[0], FAILURES[1], ["entity", "reason"], registry=registry)
    by_history = {
        name: Gauge(PREFIX + name, meaning, ["entity", "history"], registry=registry)
        for name, meaning in BY_HISTORY.items()
    }
    info = Gauge(PREFIX + INFO[0], INFO[1], TABLE.key, registry=registry)
    day = _gauge(registry, *DAY)
    for entity in ("item", "user"):
        found = _latest(settings, (entity, versions.prompt(entity), versions.llm))
        if not found:
            continue
        last, row = found
        _set(gauges, entity, row)
        _set(caps, entity, vars(Caps.of(settings, entity)))
        for reason, num in dict(row["reasons"] or []).items():
            failures.labels(entity, reason).set(num)
        histories = {name: dict(row[name] or []) for name in BY_HISTORY}
        for history in histories["asked_by_history"]:
            for name, gauge in by_history.items():
                gauge.labels(entity, history).set(histories[name].get(history, 0))
        info.labels(*(row[name] for name in TABLE.key)).set(1)
        day.labels(entity).set(end_of(last).timestamp())
    file = prometheus_path(settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(file), registry)  # writes a temporary file, then renames it


def _latest(settings: Settings, key: tuple[str, str, str]) -> tuple[str, dict[str, Any]] | None:
    """The last day with a row of this kind, prompt and model, and that row."""
    for day in reversed(partitions.days(settings.lake, TABLE, None)):
        folder = partitions.partition_path(settings.lake, TABLE, None, day)
        for row in pq.read_table(folder, partitioning=None).to_pylist():
            if tuple(row[name] for name in TABLE.key) == key:
                return day, row
    return None


def _gauge(registry: CollectorRegistry, name: str, meaning: str) -> Gauge:
    return Gauge(PREFIX + name, meaning, ["entity"], registry=registry)


def _set(gauges: Mapping[str, Gauge], entity: str, values: Mapping[str, float | None]) -> None:
    for name, gauge in gauges.items():
        if (value := values[name]) is not None:
            gauge.labels(entity).set(value)


def _meaning(name: str) -> str:
    return next(column.meaning for column in TABLE.columns if column.name == name)
