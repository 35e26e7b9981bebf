"""The generation benchmark in small: its report from hand-made measurements, and each measurement that Spark makes."""

import gzip
import json
import subprocess
import sys

import pytest

from benchmarks.generation import measure
from benchmarks.generation.report import REPORT, build
from benchmarks.generation.unchanged_day import Shop
from grasp.settings import ROOT

MET = {"num_items": 3, "num_with_text": 3}
STAGES = ("describe_items", "describe_users", "embed_descriptions")
LINES = {
    "faults": {
        "num_items": 1000,
        "num_described": 1000,
        "num_requests": 2000,
        "num_hit_by_transient": 500,
        "num_recovered": 499,
        "num_hit_by_lasting": 60,
        "num_lasting_published": 0,
        "num_paid_twice": 0,
        "num_tokens": 400_000,
        "max_tokens": 1_020_000,
        "by_fault": {"hang": MET, "certificate error": MET | {"num_with_reason": 3, "num_calls": 3}},
    },
    "days": {
        "num_entities": 1000,
        "num_calls_again": 0,
        "num_changed": 10,
        "num_encoded": {"full": 1000, "again": 0, "one_percent": 10, "nothing": 0},
        "num_upserted": {"full": 1000, "again": 0, "one_percent": 10, "nothing": 0},
        "days": {
            day: dict.fromkeys(STAGES, seconds)
            for day, seconds in {"full": 100.0, "again": 1.0, "one_percent": 12.0, "nothing": 9.0}.items()
        },
    },
    "validator": {"num_outputs": 116, "num_accepted": 36, "num_usable": 40, "precision": 0.944, "recall": 0.85},
    "poisoned": {"num_inputs": 60, "num_answers": 60, "num_by_model": 0, "num_by_facts": 0},
}


@pytest.fixture
def measured(tmp_path, store_measurements):
    """A folder with one measurement of each kind."""
    store_measurements(tmp_path / "generation", LINES)
    return tmp_path / "generation"


def test_every_figure_comes_from_its_measurement(measured):
    found = build(measured, "x").figures
    assert {name: round(figure.value, 3) for name, figure in found.items()} == {
        "unchanged_day_speedup": 100.0,
        "unchanged_day_calls": 0.0,
        "one_percent_cost_share": 0.03,
        "one_percent_written_over_changed": 1.0,
        "faults_recovered_share": 0.998,
        "faults_paid_twice": 0.0,
        "validator_precision": 0.944,
        "validator_recall": 0.85,
        "poisoned_published": 0.0,
    }
    assert all(figure.goal.is_met(figure.value) for figure in found.values())


def test_the_report_has_a_section_for_what_was_measured_and_stays_the_same(measured):
    REPORT.write(measured, "python -m benchmarks.generation --out docs/x")
    text = (measured / "report.md").read_text()
    assert text.count("\n## ") == len(LINES)
    assert "1,000 items, 2,000 requests" in text
    assert "| one in a hundred changed | 12.0 | 12.0 | 12.0 | 36.0 | 10 | 10 |" in text
    REPORT.write(measured)
    assert (measured / "report.md").read_text() == text


def test_a_measurement_in_small_does_not_stand_in_for_the_real_one(measured, settings):
    def names(*options):
        given = measure.parser().parse_args(["--out", str(measured), *options])
        return {each.name for each in measure.planned(settings, given)}

    small = names("--requests", "9", "--entities", "9")
    assert not names() & small
    assert len(names()) == len(small) == 2


def test_a_shop_changes_what_it_says_and_nothing_else(tmp_path):
    def lines():
        shop.write()
        read = (gzip.decompress((tmp_path / name).read_bytes()) for name in ("items.jsonl.gz", "interactions.tsv.gz"))
        items, events = (text.splitlines() for text in read)
        return set(items), events

    shop = Shop(tmp_path, 200)
    items, events = lines()
    assert shop.change(0.05, "2026-01-06") == 10
    items_then, events_then = lines()

    assert len(items - items_then) == len(items_then - items) == 5
    assert not set(events) - set(events_then)
    assert len(events_then) - len(events) == 5
    assert lines() == (items_then, events_then)  # written again on a later day, nothing has changed


def small(environment, expression, **changed):
    """What a measurement says, made in a process of its own: it starts and ends a Spark session."""
    code = f"""
import json
from grasp.settings import Settings
from benchmarks.generation.faults import describe_with_faults
from benchmarks.generation.unchanged_day import measure_days
print(json.dumps({expression}))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment | changed, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.spark
def test_faults_in_small_leave_nobody_undescribed_and_no_metrics_of_ours(environment, settings):
    found = small(environment, "describe_with_faults(Settings.load(), 20)")

    assert found["num_items"] == found["num_described"] == 20
    assert found["num_paid_twice"] == 0
    assert 0 < found["num_tokens"] <= found["max_tokens"]
    assert found["by_fault"]["certificate error"]["num_with_reason"] == 5
    assert not (settings.home / "metrics").exists()


@pytest.mark.spark
@pytest.mark.models
def test_a_small_unchanged_day_encodes_and_writes_what_has_changed(environment, model_folders):
    found = small(environment, "measure_days(Settings.load(), 40)", GRASP_ENCODER=str(model_folders[1]))

    assert found["num_calls_again"] == 0
    assert found["num_changed"] == 2
    assert list(found["num_encoded"].values()) == [40, 0, 2, 0]
    assert list(found["num_upserted"].values()) == [40, 0, 2, 0]
