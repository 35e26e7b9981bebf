"""The generation benchmark in small: its report from hand-made lines, and each measurement that Spark makes."""

import gzip
import json
import subprocess
import sys

import pytest

from benchmarks.core.measurements import Conditions, Measurement, Measurements
from benchmarks.generation import http_engine
from benchmarks.generation import measure as generation
from benchmarks.generation import report as generation_report
from benchmarks.generation.report import GOALS, KINDS, figures
from benchmarks.generation.unchanged_day import Shop
from grasp.settings import ROOT

MACHINE = {"processor": "Some CPU", "num_cores": 2, "memory_gib": 8.0, "python": "3.11", "torch": "2"}
ASKED_FOR = {
    "descriptions_per_cpu_second_over_xllamacpp",
    "spark_overhead",
    "http_share_of_ideal",
    "unchanged_day_speedup",
    "unchanged_day_calls",
    "one_percent_cost_share",
    "faults_recovered_share",
    "faults_paid_twice",
    "validator_precision",
    "validator_recall",
    "poisoned_published",
    "ledger_antijoin_seconds",
}
MET = {"num_items": 3, "num_with_text": 3}
STAGES = ("describe_items", "describe_users", "embed_descriptions")
LINES = {
    "engine": {
        "num_prompts": 100,
        "ours": {size: {"cpu_seconds": cost, "num_output_tokens": 900} for size, cost in (("8", 40.0), ("32", 25.0))},
        "llama_cpp": {"1": {"cpu_seconds": 50.0, "num_output_tokens": 900}},
    },
    "identical": {"num_prompts": 100, "num_identical": 99},
    "spark": {"num_prompts": 500, "bare_cpu_seconds": 100.0, "cpu_seconds": 108.0, "seconds": 110.0},
    "http": {
        "num_requests": 1280,
        "requests_per_second": 120.0,
        "share_of_ideal": 0.94,
        "client_cpu_ms_per_request": 1.5,
        "server_cpu_ms_per_request": 0.5,
    },
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
    "ledger": {
        "num_keys": 5_000_000,
        "num_inputs": 1_300_000,
        "num_unpaid": 130_000,
        "seconds": 90.0,
        "driver_grew_megabytes": 1.0,
        "jvm_megabytes": 2000.0,
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
def measured(tmp_path):
    """A folder with one line of each kind, as the measurements write them."""
    measurements = Measurements(tmp_path / "generation")
    for kind, found in LINES.items():
        measurements.add(Measurement(kind, kind, found, Conditions("d1", 1, MACHINE), "abc1234"))
    return tmp_path / "generation"


def test_every_figure_that_was_asked_for_has_a_goal_and_comes_from_its_measurement(measured):
    assert set(GOALS) >= ASKED_FOR
    found = figures(Measurements(measured))
    assert {name: round(figure.value, 3) for name, figure in found.items()} == {
        "descriptions_per_cpu_second_over_xllamacpp": 2.0,  # the best setting of either side
        "identical_text_share": 0.99,
        "spark_overhead": 0.08,
        "http_share_of_ideal": 0.94,
        "unchanged_day_speedup": 100.0,
        "unchanged_day_calls": 0.0,
        "one_percent_cost_share": 0.03,
        "one_percent_written_over_changed": 1.0,
        "faults_recovered_share": 0.998,
        "faults_paid_twice": 0.0,
        "validator_precision": 0.944,
        "validator_recall": 0.85,
        "poisoned_published": 0.0,
        "ledger_antijoin_seconds": 90.0,
    }
    assert all(figure.goal.is_met(figure.value) for figure in found.values())


def test_the_report_has_a_section_for_what_was_measured_and_stays_the_same(measured):
    generation_report.write(measured, "python -m benchmarks.generation --out docs/x")
    text = (measured / "report.md").read_text()
    assert text.count("\n## ") == len(KINDS) - 1  # identical texts are a figure alone
    assert "1,000 items, 2,000 requests" in text
    assert "| one in a hundred changed | 12.0 | 12.0 | 12.0 | 36.0 | 10 | 10 |" in text
    generation_report.write(measured, "python -m benchmarks.generation --out docs/x")
    assert (measured / "report.md").read_text() == text


def test_a_trial_in_small_takes_no_measurements_place(measured, settings):
    def names(*options):
        given = generation.parser().parse_args(["--out", str(measured), *options])
        without_size = ("validator", "poisoned", "http")
        return {job.name for job in generation.jobs(settings, given) if job.kind not in without_size}

    small = ("--descriptions", "9", "--spark-descriptions", "9", "--requests", "9", "--keys", "9", "--entities", "9")
    assert not names() & names(*small)
    assert len(names()) == len(names(*small)) == 6


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


def test_the_http_engine_in_small_is_held_against_what_its_server_allows():
    found = http_engine.measure(num_requests=24, concurrency=8, server_seconds=0.1)

    assert (found["num_answered"], found["ideal_requests_per_second"]) == (24, 80)
    assert 0 < found["share_of_ideal"] <= 1
    assert found["client_cpu_ms_per_request"] > 0


def small(environment, expression, **changed):
    """What a measurement says, made in a process of its own: it starts and ends a Spark session."""
    code = f"""
import json
from grasp.settings import Settings
from benchmarks.generation.faults import faults
from benchmarks.generation.ledger_speed import anti_join
from benchmarks.generation.unchanged_day import days
print(json.dumps({expression}))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment | changed, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.spark
def test_faults_in_small_leave_nobody_undescribed_and_no_metrics_of_ours(environment, settings):
    found = small(environment, "faults(Settings.load(), 20)")

    assert found["num_items"] == found["num_described"] == 20
    assert found["num_paid_twice"] == 0
    assert 0 < found["num_tokens"] <= found["max_tokens"]
    assert found["by_fault"]["certificate error"]["num_with_reason"] == 8
    assert not (settings.home / "metrics").exists()


@pytest.mark.spark
def test_a_small_ledger_finds_what_is_new(environment):
    found = small(environment, "anti_join(Settings.load(), 3000, 900, 90)")

    assert (found["num_unpaid"], found["num_inputs"]) == (90, 900)
    assert found["seconds"] > 0


@pytest.mark.spark
@pytest.mark.models
def test_a_small_unchanged_day_encodes_and_writes_what_has_changed(environment, model_folders):
    found = small(environment, "days(Settings.load(), 40)", GRASP_ENCODER=str(model_folders[1]))

    assert found["num_calls_again"] == 0
    assert found["num_changed"] == 2
    assert list(found["num_encoded"].values()) == [40, 0, 2, 0]
    assert list(found["num_upserted"].values()) == [40, 0, 2, 0]
