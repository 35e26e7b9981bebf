"""Planted measurements of serving: the figures and the report."""

import json

import pytest

from benchmarks.serving import measure
from benchmarks.serving.report import FIGURES, REPORT, build

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
    "fresh": {
        "num_items": 12_000,
        "num_shop_moments": 10_000,
        "num_moments": 200_000,
        "width": 64,
        "length": 100,
        "rounds": 9,
        "requests": 200,
        **{
            f"{name}_p{percent}": 0.5
            for name in ("backbone", "added", "added_by_fresh", "added_by_search", "search")
            for percent in (50, 99)
        },
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


def test_the_report_has_every_figure_a_plot_and_the_same_content_again(tmp_path, store_measurements):
    store_measurements(tmp_path, FOUND)

    REPORT.write(tmp_path, "python -m benchmarks.serving")
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    REPORT.write(tmp_path)

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    assert set(first) == {"measurements.jsonl", "report.md", "rates.svg", "summary.json"}
    assert first["report.md"].decode().count("\n## ") == len(FOUND)
    figures = json.loads(first["summary.json"])["figures"]
    assert all(figure["value"] is not None for figure in figures.values())
    assert [name for name, figure in figures.items() if not figure["met"]] == ["switch_mixed_answers"]
    assert figures["highest_rate"] == {"value": 300.0, "goal": 250.0, "met": True}


def test_figures_without_a_measurement_are_not_met_and_their_sections_left_out(tmp_path, store_measurements):
    store_measurements(tmp_path, {"added": FOUND["added"]})

    report = build(tmp_path, "x")

    met = {name for name, figure in report.figures.items() if figure.goal.is_met(figure.value)}
    assert met == {"grasp_added_p50_ms", "grasp_added_p99_ms", "grasp_added_share"}
    assert "soak_5xx" in report.figures
    assert [section.title for section in report.sections] == ["What GRASP adds to its backbone"]


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("added", {"width": 128}),
        ("fresh", {"width": 128}),
        ("fresh", {"num_moments": 1000}),
        ("fresh", {"num_shop_moments": 1000}),
        ("open_loop", {"rate": 100.0}),
        ("open_loop", {"seconds": 59.0}),
        ("open_loop", {"num_workers": 1}),
        ("highest_rate", {"num_workers": 3}),
        ("recommend", {"num_items": 1682}),
        ("soak", {"seconds": 60.0}),
        ("soak", {"num_workers": 1}),
        ("soak", {"has_milvus": False}),
        ("soak", {"num_searches_by_milvus": 0}),
        ("switch", {"num_workers": 1}),
    ],
)
def test_other_conditions_say_nothing_of_the_goals(tmp_path, store_measurements, kind, changed):
    store_measurements(tmp_path, {kind: FOUND[kind] | changed})

    found = build(tmp_path, "x").figures
    of_kind = {name for name, (_, each, _) in FIGURES.items() if each == kind}
    assert {name: found[name].value for name in of_kind} == dict.fromkeys(of_kind)


def test_lost_requests_and_a_corrupt_release_that_was_not_refused_count_in_a_soak(tmp_path, store_measurements):
    lost = {"num_errors": 2, "num_failed_searches": 3, "corrupt_release_refused": False}
    store_measurements(tmp_path, {"soak": FOUND["soak"] | lost})

    found = build(tmp_path, "x").figures
    for name, value in (("soak_errors", 5), ("soak_corrupt_refused", 0)):
        assert (found[name].value, found[name].goal.is_met(found[name].value)) == (value, False)


def test_a_soak_without_milvus_has_another_name():
    typed = ["--data", "movielens", "--out", "x"]
    names = [measure.soak_name(measure.parser().parse_args([*typed, *more])) for more in ([], ["--no-milvus"])]

    assert names == ["soak, 30 minutes", "soak, 30 minutes without Milvus"]
