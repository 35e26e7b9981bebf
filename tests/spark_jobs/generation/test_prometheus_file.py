"""The Prometheus file has the metrics of the last described day; docs/observability.md explains each of them."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from grasp import partitions, tables
from grasp.days import end_of
from grasp.partitions import Content
from grasp.settings import ROOT
from grasp.versions import Versions
from spark_jobs.generation.prometheus_file import prometheus_path, write_prometheus_file

DAY, NEXT = "1998-03-01", "1998-03-02"
TABLE = tables.GENERATION_METRICS
TYPES = {
    "string": pa.string(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "timestamp": pa.timestamp("us", "UTC"),
    "map<string,bigint>": pa.map_(pa.string(), pa.int64()),
}


@pytest.fixture
def metrics(settings):
    """`metrics(day, {"entity": "item", ...}, ...)`: rows of the settings' prompt and model; unnamed counts are 0."""
    versions = Versions(settings)

    def write(day, *rows):
        folder = partitions.partition_path(settings.lake, TABLE, None, day)
        folder.mkdir(parents=True, exist_ok=True)
        zero = {column.name: 0 for column in TABLE.columns if column.type in {"bigint", "double"}}
        full = [
            {
                **zero,
                "prompt_version": versions.prompt(row["entity"]),
                "model_revision": versions.llm,
                "answers_per_minute": None,
                **row,
            }
            for row in rows
        ]
        schema = pa.schema([(column.name, TYPES[column.type]) for column in TABLE.columns])
        pq.write_table(pa.Table.from_pylist(full, schema), folder / "part-0.parquet")
        partitions.write_content(folder, Content(len(rows), f"{len(rows)}:test"))

    return write


def samples(settings):
    """Every sample by name and labels, such as `failures{item,loop}`."""
    write_prometheus_file(settings, Versions(settings))
    found = {}
    for family in text_string_to_metric_families(prometheus_path(settings).read_text()):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            name = sample.name.removeprefix("grasp_generation_")
            found[f"{name}{{{','.join(sample.labels.values())}}}"] = sample.value
    return found


def test_the_last_day_of_each_kind_is_shown(settings, metrics):
    metrics(DAY, {"entity": "item", "num_entities": 90}, {"entity": "user", "num_entities": 40, "cost": 1.5})
    metrics(NEXT, {"entity": "item", "num_entities": 100, "reasons": [("loop", 3), ("timeout", 2)]})

    found = samples(settings)

    assert (found["entities{item}"], found["entities{user}"], found["cost{user}"]) == (100, 40, 1.5)
    assert (found["failures{item,loop}"], found["failures{item,timeout}"]) == (3, 2)
    assert found["day_timestamp_seconds{item}"] == end_of(NEXT).timestamp()
    assert found["day_timestamp_seconds{user}"] == end_of(DAY).timestamp()
    versions = Versions(settings)
    assert found[f"info{{item,{versions.llm},{versions.prompt('item')}}}"] == 1


def test_outdated_reasons_and_unknown_rates_have_no_sample(settings, metrics):
    metrics(DAY, {"entity": "item", "reasons": [("loop", 3)], "answers_per_minute": 12.5})
    assert samples(settings)["answers_per_minute{item}"] == 12.5
    metrics(DAY, {"entity": "item"})
    found = samples(settings)
    assert not [name for name in found if name.startswith(("failures", "answers_per_minute"))]


def test_failures_are_shown_by_length_of_history(settings, metrics):
    metrics(DAY, {"entity": "user", "asked_by_history": [("1-4", 6), ("5-9", 3)], "failed_by_history": [("1-4", 2)]})

    found = samples(settings)

    assert (found["asked_by_history{user,1-4}"], found["asked_by_history{user,5-9}"]) == (6, 3)
    assert (found["failed_by_history{user,1-4}"], found["failed_by_history{user,5-9}"]) == (2, 0)
    assert not [name for name in found if "by_history{user,10" in name or "by_history{item" in name]


def test_another_models_day_is_not_shown(settings, metrics):
    metrics(DAY, {"entity": "item", "num_entities": 90})
    metrics(NEXT, {"entity": "item", "num_entities": 100, "model_revision": "model-2"})
    assert samples(settings)["entities{item}"] == 90


def test_only_existing_caps_are_shown(settings, settings_with, metrics):
    metrics(DAY, {"entity": "item"}, {"entity": "user"})
    found = samples(settings)
    assert (found["limit_answers{item}"], found["limit_answers{user}"]) == (37, 38)
    assert not [name for name in found if name.startswith(("limit_calls", "limit_tokens", "limit_cost"))]
    found = samples(settings_with(llm_max_calls=99, llm_max_tokens=1000, llm_max_cost=3.0, llm_output_price=0.4))
    assert (found["limit_calls{item}"], found["limit_calls{user}"]) == (49, 50)
    assert (found["limit_tokens{item}"], found["limit_cost{user}"]) == (500, 1.5)


def test_without_described_days_the_file_has_no_samples(settings):
    assert samples(settings) == {}


def test_the_documentation_explains_every_metric_and_alerts_use_no_other(settings_with, metrics):
    histories = {name: [("5-9", 1)] for name in ("asked_by_history", "failed_by_history")}
    metrics(DAY, {"entity": "item", "reasons": [("loop", 1)], "answers_per_minute": 1.0, **histories})
    settings = settings_with(llm_max_calls=99, llm_max_tokens=1000, llm_max_cost=3.0, llm_output_price=0.4)
    shown = {f"grasp_generation_{name.split('{')[0]}" for name in samples(settings)}
    page = (ROOT / "docs" / "observability.md").read_text()
    assert set(re.findall(r"^\| `(grasp_generation_\w+)`", page, re.MULTILINE)) == shown
    assert set(re.findall(r"grasp_generation_\w+", page)) == shown
