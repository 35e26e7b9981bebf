"""Planted measurements of serving: the figures, the report, and what schemathesis said."""

import json

import pytest

from benchmarks.core.measurements import Conditions, Measurement, Measurements
from benchmarks.serving import measure as serving
from benchmarks.serving import report as serving_report
from benchmarks.serving.fuzz import summary as fuzz_summary

# --- fuzz


def fuzz_report(**changed) -> dict:
    failures = [
        {"type": "ServerError", "title": "Server error", "count": 2, "operations": ["GET /a"]},
        {
            "type": "JsonSchemaError",
            "title": "Response violates schema",
            "count": 3,
            "operations": ["GET /a", "GET /b"],
        },
    ]
    return {
        "schemathesis_version": "4",
        "complete": True,
        "stop_reason": "completed",
        "errors": [],
        "failures": failures,
        "operations": {"tested": 12},
        "test_cases": {"generated": 99},
    } | changed


def test_server_errors_are_told_from_other_failures():
    found = fuzz_summary(fuzz_report())

    assert (found["num_5xx"], found["num_violations"], found["num_cases"]) == (2, 3, 99)
    assert found["failures"] == ["Server error: GET /a", "Response violates schema: GET /a, GET /b"]


@pytest.mark.parametrize("changed", [{"complete": False}, {"errors": [{"title": "Network Error", "count": 1}]}])
def test_a_run_that_did_not_finish_is_no_measurement(changed):
    with pytest.raises(ValueError, match="did not finish"):
        fuzz_summary(fuzz_report(**changed))


# --- the report

MACHINE = {"processor": "Some CPU", "num_cores": 2, "memory_gib": 8.0, "python": "3.11", "torch": "2"}
TIMES = {"p50": 4.0, "p95": 8.0, "p99": 12.0, "max": 20.0}
LOAD = {
    "seconds": 60.0,
    "num_due": 15_000,
    "num_answered": 15_000,
    "num_errors": 0,
    "num_socket_errors": 0,
    "answers_per_second": 250.0,
    "milliseconds": TIMES,
    "late_milliseconds": TIMES,
}
ADDED = {
    "width": 64,
    "added_p50": 0.4,
    "added_p99": 0.9,
    "backbone_p50": 0.8,
    "share": 0.5,
    "rounds": 9,
    "requests": 200,
}
FOUND = {
    "added": ADDED | {"as_served": ADDED | {"width": 128}},
    "million": {
        "origin": "made-up vectors",
        "num_items": 1_200_000,
        "width": 128,
        "recall": 0.99,
        "index_mib": 70.0,
        "build_seconds": 30.0,
        "index_p50": 10.0,
        "index_p99": 20.0,
        "exact_p50": 90.0,
        "exact_p99": 99.0,
    },
    "materialise": {
        "num_rows": 1100,
        "seconds": {"ours": [1.0, 2.0], "feast, as it comes": [3.0, 4.0]},
        "rows_per_second": {"ours": 730.0, "feast, as it comes": 314.0},
        "times_the_fastest_of_feast": 2.32,
    },
    "lookup": {
        "num_requests": 1000,
        "num_users": 2000,
        "times_faster_at_p50": 3.0,
        "p99_over_feast": 0.5,
        "http_ms": {"ours": TIMES, "feast": TIMES},
        "in_process_ms": {"ours": TIMES, "feast": TIMES},
    },
    "recommend": LOAD | {"num_items": 12_101, "stage_milliseconds": {"lookup": TIMES}},
    "open_loop": LOAD | {"rate": 250.0, "num_workers": 2},
    "highest_rate": {
        "num_workers": 2,
        "highest_rate": 300.0,
        "limit_ms": 60.0,
        "tried": [
            LOAD | {"rate": 300.0, "holds": True},
            LOAD | {"rate": 375.0, "holds": False, "num_errors": 7, "milliseconds": None},
        ],
    },
    "switch": LOAD
    | {
        "rate": 50.0,
        "num_workers": 2,
        "num_switches": 6,
        "num_releases": 3,
        "num_mixed": 1,
        "answers_by_release": {"rel-1": 8, "rel-2": 7},
        "slowest_take_up_seconds": 2.5,
    },
    "fuzz": fuzz_summary(fuzz_report(failures=[])),
    "soak": LOAD
    | {
        "rate": 150.0,
        "seconds": 1800.0,
        "num_workers": 2,
        "has_milvus": True,
        "num_searches": 20,
        "num_searches_by_milvus": 16,
        "num_failed_searches": 0,
        "num_5xx": 0,
        "num_untrue": 0,
        "labels": {"calm": {"none": 9}, "Redis killed": {"last_good": 5, "store_error": 2}},
        "readiness": {"calm": "ready", "Redis killed": "store_error"},
        "corrupt_release_refused": True,
        "restore_seconds": 20.0,
        "memory_growth": 0.01,
        "worker_megabytes": [[0.0, 900.0], [60.0, 950.0]],
    },
}


REQUIRED = {
    "grasp_added_p50_ms",
    "grasp_added_p99_ms",
    "grasp_added_share",
    "lookup_speedup_over_feast_http",
    "recommend_p50_ms",
    "recommend_p99_ms",
    "open_loop_250_p99_ms",
    "open_loop_errors",
    "highest_rate",
    "million_p99_ms",
    "million_recall_at_100",
    "switch_failed_requests",
    "switch_mixed_answers",
    "soak_5xx",
    "soak_memory_growth",
    "fuzz_5xx",
}


def plant(folder, kinds=tuple(FOUND)) -> None:
    measurements = Measurements(folder)
    for kind in kinds:
        measurements.add(Measurement(kind, kind, FOUND[kind], Conditions("d1", 1, MACHINE), "abc1234"))


def test_the_report_has_every_figure_a_plot_and_the_same_content_again(tmp_path):
    plant(tmp_path)

    serving_report.write(tmp_path, "python -m benchmarks.serving")
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    serving_report.write(tmp_path, "python -m benchmarks.serving")

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    assert set(first) == {"measurements.jsonl", "report.md", "rates.svg", "summary.json"}
    assert "2.32 times as fast as the faster of Feast's" in first["report.md"].decode()
    figures = json.loads(first["summary.json"])["figures"]
    assert set(figures) >= REQUIRED
    assert all(figure["value"] is not None for figure in figures.values())
    assert [name for name, figure in figures.items() if not figure["met"]] == ["switch_mixed_answers"]
    assert figures["highest_rate"] == {"value": 300.0, "goal": 250.0, "met": True}


def test_figures_without_a_measurement_are_not_met_and_their_sections_left_out(tmp_path):
    plant(tmp_path, ["fuzz"])

    serving_report.write(tmp_path, "python -m benchmarks.serving")

    figures = json.loads((tmp_path / "summary.json").read_text())["figures"]
    assert {name for name, figure in figures.items() if figure["met"]} == {"fuzz_5xx", "fuzz_violations"}
    assert "## Soak" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("added", {"width": 128}),
        ("open_loop", {"rate": 100.0}),
        ("open_loop", {"seconds": 59.0}),
        ("open_loop", {"num_workers": 1}),
        ("highest_rate", {"num_workers": 3}),
        ("recommend", {"num_items": 1682}),
        ("million", {"num_items": 1_000_000}),
        ("soak", {"seconds": 60.0}),
        ("soak", {"num_workers": 1}),
        ("soak", {"has_milvus": False}),
        ("soak", {"num_searches_by_milvus": 0}),
        ("switch", {"num_workers": 1}),
    ],
)
def test_other_conditions_say_nothing_of_the_goals(tmp_path, kind, changed):
    measurements = Measurements(tmp_path)
    measurements.add(Measurement("it", kind, FOUND[kind] | changed, Conditions("d1", 1, MACHINE), "abc1234"))

    of_kind = {name for name, (_, each, _) in serving_report.FIGURES.items() if each == kind}
    values = {name: figure.value for name, figure in serving_report.figures(measurements).items() if name in of_kind}
    assert values == dict.fromkeys(of_kind)


def test_lost_requests_and_searches_of_a_soak_and_a_corrupt_release_that_was_not_refused_count(tmp_path):
    measurements = Measurements(tmp_path)
    found = FOUND["soak"] | {"num_errors": 2, "num_failed_searches": 3, "corrupt_release_refused": False}
    measurements.add(Measurement("soak", "soak", found, Conditions("d1", 1, MACHINE), "abc1234"))

    found = serving_report.figures(measurements)
    for name, value in (("soak_errors", 5), ("soak_corrupt_refused", 0)):
        assert (found[name].value, found[name].goal.is_met(found[name].value)) == (value, False)


def test_a_soak_without_milvus_has_another_name():
    typed = ["--data", "movielens", "--out", "x"]
    names = [serving.soak_name(serving.parser().parse_args([*typed, *more])) for more in ([], ["--no-milvus"])]

    assert names == ["soak, 30 minutes", "soak, 30 minutes without Milvus"]
