"""Metrics and log lines of requests, and what must never be in them."""

import json
import logging
import os
import re
import time
from collections.abc import Callable
from typing import get_args

import pytest

from serving.http.logs import JsonFormatter
from serving.http.request_context import request_id_of
from serving.lookup.user_lookup import StoreProblem
from serving.telemetry.metrics import MULTIPROCESS_VARIABLE, STAGES, _forget_dead_workers

STORE_PROBLEMS = get_args(StoreProblem)


def sample(text: str, name: str, **labels: str) -> float | None:
    """The value of one sample in the text format; the order of labels does not matter."""
    for line in text.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and dict(re.findall(r'(\w+)="([^"]*)"', found[1] or "")) == labels:
            return float(found[2])
    return None


def ask(client, user_id="u1", **more):
    return client.post("/v1/recommendations", json={"user_id": user_id, **more}).json()


def test_requests_stages_fallbacks_and_releases_are_counted(publish_day, serve, users):
    release_id = publish_day()
    client = serve()
    ask(client)
    ask(client, "stranger")
    users.is_broken = True
    ask(client)

    text = client.get("/metrics").text

    assert sample(text, "grasp_http_requests_total", route="/v1/recommendations", status="200") == 3
    assert sample(text, "grasp_http_request_seconds_count", route="/v1/recommendations") == 3
    for fallback, num in (("none", 1), ("unknown_user", 1), ("last_good", 1)):
        assert sample(text, "grasp_answers_total", release=release_id, bucket="none", fallback=fallback) == num
    assert sample(text, "grasp_store_problems_total", problem="store_error") == 1
    assert sample(text, "grasp_feature_age_hours_count") == 3
    assert sample(text, "grasp_release_loaded", release=release_id, model="tiny-ranker", role="in_force") == 1
    assert sample(text, "grasp_release_day_timestamp_seconds") == pytest.approx(888_796_800, abs=1)
    assert sample(text, "grasp_stage_seconds_count", stage="lookup") == 3
    assert all(sample(text, "grasp_stage_seconds_count", stage=stage) is not None for stage in STAGES)


def test_an_emptied_store_is_in_the_metrics_without_any_request(publish_day, serve, users, monkeypatch):
    monkeypatch.setattr("serving.http.service.STORE_CHECK_SECONDS", 0.05)
    publish_day()
    client = serve(poll_seconds=0.02)

    def state() -> dict[str, float | None]:
        text = client.get("/metrics").text
        return {each: sample(text, "grasp_online_store_problem", problem=each) for each in STORE_PROBLEMS}

    assert state() == dict.fromkeys(STORE_PROBLEMS, 0)
    everybody, users.users = users.users, {}
    wait_until(lambda: state() == dict.fromkeys(STORE_PROBLEMS, 0) | {"store_empty": 1})
    users.users = everybody
    wait_until(lambda: state() == dict.fromkeys(STORE_PROBLEMS, 0))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        time.sleep(0.02)


@pytest.mark.parametrize(("filters", "num"), [({}, 1), ({"categories": ["Comedy"]}, 2)])
def test_only_requests_with_filters_time_them(publish_day, serve, filters, num):
    publish_day()
    client = serve()

    ask(client, **filters)

    assert sample(client.get("/metrics").text, "grasp_stage_seconds_count", stage="post") == num


def test_a_single_process_keeps_its_own_metrics_although_feast_sets_the_multiprocess_variable(
    publish_day, serve, tmp_path, monkeypatch
):
    publish_day()
    client = serve()
    monkeypatch.setenv(MULTIPROCESS_VARIABLE, str(tmp_path))
    ask(client)

    text = client.get("/metrics").text

    assert sample(text, "grasp_http_requests_total", route="/v1/recommendations", status="200") == 1


def test_a_release_that_is_no_longer_loaded_has_the_value_0(publish_day, serve):
    first = publish_day("1998-03-01")
    client = serve()
    publish_day("1998-03-02", model="better")
    client.app.state.service.check()

    text = client.get("/metrics").text

    assert sample(text, "grasp_release_loaded", release=first, model="tiny-ranker", role="in_force") == 0


def test_routes_are_labelled_by_template_not_by_path(publish_day, serve):
    publish_day()
    client = serve()
    client.get("/v1/items/i1")
    client.get("/no/such/address/u1")

    text = client.get("/metrics").text

    assert sample(text, "grasp_http_requests_total", route="/v1/items/{item_id}", status="200") == 1
    assert sample(text, "grasp_http_requests_total", route="none", status="404") == 1
    assert "/u1" not in text


def test_the_log_has_one_line_per_request_without_ids_queries_or_tokens(publish_day, serve, caplog):
    publish_day()
    client = serve()
    caplog.set_level(logging.INFO)
    secret = "secret-0123456789abcdef"

    client.get("/v1/search", params={"q": "my secret wish"}, headers={"Authorization": f"Bearer {secret}"})
    client.get("/v1/users/u1", headers={"X-Request-ID": "visit-0001"})

    lines = [json.loads(JsonFormatter().format(each)) for each in caplog.records if each.name == "grasp.serving.access"]
    assert [(each["route"], each["status"]) for each in lines] == [("/v1/search", 503), ("/v1/users/{user_id}", 200)]
    assert not re.search(r"wish|secret|\bu1\b", json.dumps(lines))


def test_a_log_line_is_a_json_object_with_the_request_id():
    record = logging.LogRecord("grasp", logging.WARNING, "", 0, "two\nlines %s", ("here",), None)
    token = request_id_of.set("visit-0001")
    try:
        line = JsonFormatter().format(record)
    finally:
        request_id_of.reset(token)

    assert "\n" not in line
    assert json.loads(line)["message"] == "two\nlines here"
    assert json.loads(line)["request_id"] == "visit-0001"


def test_a_dead_workers_gauges_are_removed_and_its_counters_stay(tmp_path):
    dead, alive = 2**22 + 1, os.getpid()  # beyond the largest process id of Linux
    for pid in (dead, alive):
        for kind in ("gauge_livemax", "counter"):
            (tmp_path / f"{kind}_{pid}.db").touch()

    _forget_dead_workers(tmp_path)

    assert {file.name for file in tmp_path.iterdir()} == {
        f"counter_{dead}.db",
        f"counter_{alive}.db",
        f"gauge_livemax_{alive}.db",
    }
