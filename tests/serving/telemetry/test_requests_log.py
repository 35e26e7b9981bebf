"""Served requests and outcomes reach their tables despite disk failures, and never delay a request."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from serving.http.access import Access
from serving.http.body_limit import MAX_BODY_BYTES
from serving.telemetry import requests_log
from serving.telemetry.requests_log import RequestsLog

DAY = "1998-03-01"
NEVER = 3600.0


def outcome(number: int) -> dict:
    return {"request_id": f"request-{number}", "item_id": "i1", "kind": "click", "told_at": None}


def rows_of(lake, table, day=DAY) -> list[dict]:
    folder = partitions.partition_path(lake, table, None, day)
    return pq.read_table(folder, partitioning=None).to_pylist() if folder.exists() else []


@pytest.fixture
def counts() -> Counter:
    return Counter()


def counter(counts: Counter) -> Callable[[str, str, int], None]:
    return lambda _, result, num: counts.update({result: num})


@pytest.fixture
def start(tmp_path, counts):
    def make(**changed) -> RequestsLog:
        log = RequestsLog(tmp_path, counter(counts), **{"flush_seconds": NEVER, **changed})
        log.start()
        return log

    return make


def test_queued_rows_are_written_on_close(start, tmp_path, counts):
    log = start()
    assert log.add(tables.OUTCOMES, DAY, [outcome(1), outcome(2)])

    log.close()

    assert [row["request_id"] for row in rows_of(tmp_path, tables.OUTCOMES)] == ["request-1", "request-2"]
    assert counts == {"written": 2}


def test_batches_are_written_while_it_runs_and_only_complete_files_are_visible(start, tmp_path):
    log = start(flush_seconds=0.05)
    log.add(tables.OUTCOMES, DAY, [outcome(1)])

    deadline = time.monotonic() + 20
    while not rows_of(tmp_path, tables.OUTCOMES) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert len(rows_of(tmp_path, tables.OUTCOMES)) == 1
    assert partitions.days(tmp_path, tables.OUTCOMES, None) == [DAY]
    log.close()


def test_readers_do_not_see_a_file_that_is_being_written(start, tmp_path, monkeypatch):
    seen = []

    def looking(rows: object, where: Path) -> None:
        write_table(rows, where)
        seen.extend(rows_of(tmp_path, tables.OUTCOMES))

    write_table = pq.write_table
    monkeypatch.setattr(pq, "write_table", looking)
    log = start()
    log.add(tables.OUTCOMES, DAY, [outcome(1)])
    log.close()

    assert (len(seen), len(rows_of(tmp_path, tables.OUTCOMES))) == (0, 1)


def test_two_processes_write_into_one_partition(start, tmp_path):
    for log in (start(), start()):
        log.add(tables.OUTCOMES, DAY, [outcome(1)])
        log.close()

    assert len(rows_of(tmp_path, tables.OUTCOMES)) == 2


def served(number: int) -> dict:
    return dict.fromkeys(tables.SERVED_REQUESTS.column_names) | {"request_id": f"request-{number}"}


def test_a_full_queue_takes_all_rows_or_none_without_blocking(tmp_path, counts):
    log = RequestsLog(tmp_path, counter(counts), NEVER, max_queued=4)

    assert [log.add(tables.OUTCOMES, DAY, [outcome(number)] * 3) for number in (1, 2)] == [True, False]

    log.start()
    log.close()
    assert [row["request_id"] for row in rows_of(tmp_path, tables.OUTCOMES)] == ["request-1"] * 3
    assert counts == {"written": 3}


def test_a_flood_of_requests_costs_no_outcome(tmp_path, counts):
    log = RequestsLog(tmp_path, counter(counts), NEVER, max_queued=100)

    taken = [log.add(tables.SERVED_REQUESTS, DAY, [served(number)]) for number in range(1000)]
    assert log.add(tables.OUTCOMES, DAY, [outcome(number) for number in range(100)])

    log.start()
    log.close()
    assert sum(taken) == 100
    assert len(rows_of(tmp_path, tables.OUTCOMES)) == len(rows_of(tmp_path, tables.SERVED_REQUESTS)) == 100


def test_outcomes_are_written_first(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(requests_log, "_write", lambda _, table, rows: order.append(table.name))
    log = RequestsLog(tmp_path, lambda *_: None, NEVER)
    log.add(tables.SERVED_REQUESTS, DAY, [served(1)])
    log.add(tables.OUTCOMES, DAY, [outcome(1)])

    log.start()
    log.close()

    assert order == ["outcomes", "served_requests"]


def test_a_queue_that_is_half_full_is_written_at_once(start, tmp_path):
    log = start(flush_seconds=NEVER, max_queued=10)

    for number in range(4):
        for _ in range(5):
            log.add(tables.SERVED_REQUESTS, DAY, [served(number)])
        deadline = time.monotonic() + 20
        while len(rows_of(tmp_path, tables.SERVED_REQUESTS)) < 5 * (number + 1) and time.monotonic() < deadline:
            time.sleep(0.02)

    assert len(rows_of(tmp_path, tables.SERVED_REQUESTS)) == 20
    log.close()


def test_a_batch_that_cannot_be_written_is_tried_again(start, tmp_path, counts):
    in_the_way = tmp_path / "outcomes"
    in_the_way.write_text("a file where the table's folder belongs")
    log = start(flush_seconds=0.02)
    log.add(tables.OUTCOMES, DAY, [outcome(1)])
    time.sleep(0.3)
    assert not counts
    assert log.problem == "not_written"

    in_the_way.unlink()
    log.close()

    assert counts == {"written": 1}
    assert log.problem is None


def test_rows_that_do_not_fit_are_dropped_and_the_thread_goes_on(start, tmp_path, counts, caplog):
    log = start()
    log.add(tables.OUTCOMES, "1998-03-02", [outcome(1) | {"item_id": 7}])
    log.add(tables.OUTCOMES, DAY, [outcome(2)])

    log.close()

    assert counts == {"dropped": 1, "written": 1}
    assert len(rows_of(tmp_path, tables.OUTCOMES)) == 1
    assert "do not fit outcomes" in caplog.text


def test_a_slow_disk_delays_no_request(start, monkeypatch):
    is_writing, may_go_on = threading.Event(), threading.Event()
    written = requests_log._write

    def slow(*given) -> None:
        is_writing.set()
        assert may_go_on.wait(20)
        written(*given)

    monkeypatch.setattr(requests_log, "_write", slow)
    log = start(flush_seconds=0.02)
    log.add(tables.OUTCOMES, DAY, [outcome(1)])
    assert is_writing.wait(20)

    assert log.add(tables.OUTCOMES, DAY, [outcome(2)])

    may_go_on.set()
    log.close()


def test_an_answer_and_its_outcome_are_logged_with_ids_and_no_text(publish_day, serve, settings):
    release_id = publish_day()
    client = serve()
    headers = {"X-Request-ID": "visit-0001"}
    body = {"user_id": "u1", "k": 2, "recent_item_ids": ["i1"]}
    shown = client.post("/v1/recommendations", json=body, headers=headers).json()["items"]
    told = {"request_id": "visit-0001", "item_id": shown[0]["item_id"], "kind": "purchase"}
    assert client.post("/v1/outcomes", json={"outcomes": [told]}).json()["num_accepted"] == 1

    client.app.state.service.stop()

    day = settings.clock().date().isoformat()
    (served,) = rows_of(settings.lake, tables.SERVED_REQUESTS, day)
    assert (served["request_id"], served["user_id"], served["release_id"]) == ("visit-0001", "u1", release_id)
    assert (served["feature_day"], served["recent_item_ids"]) == (DAY, ["i1"])
    assert served["item_ids"] == [each["item_id"] for each in shown]
    assert served["scores"] == pytest.approx([each["score"] for each in shown])
    assert "Title" not in str(served) and "likes" not in str(served)
    (outcome_row,) = rows_of(settings.lake, tables.OUTCOMES, day)
    assert {name: outcome_row[name] for name in told} == told


def test_answers_to_analysts_are_not_logged(publish_day, serve, settings):
    release_id = publish_day()
    tokens = {role: f"{role}-0123456789abcdef" for role in ("serve", "read")}
    access = Access.from_environment({f"GRASP_TOKENS_{role.upper()}": token for role, token in tokens.items()})
    client = serve(access=access)
    for role, body in (("read", {}), ("serve", {"release": release_id}), ("serve", {"k": 1})):
        headers = {"Authorization": f"Bearer {tokens[role]}"}
        response = client.post("/v1/recommendations", json={"user_id": "u1", **body}, headers=headers)
        assert response.status_code == 200

    client.app.state.service.stop()

    (served,) = rows_of(settings.lake, tables.SERVED_REQUESTS, settings.clock().date().isoformat())
    assert len(served["item_ids"]) == 1


def test_answers_that_no_user_sees_are_not_logged(publish_day, serve, settings):
    publish_day()
    client = serve()
    for more in ({"is_shown": False}, {"k": 1}):
        assert client.post("/v1/recommendations", json={"user_id": "u1"} | more).status_code == 200

    client.app.state.service.stop()

    (served,) = rows_of(settings.lake, tables.SERVED_REQUESTS, settings.clock().date().isoformat())
    assert len(served["item_ids"]) == 1


def test_a_batch_is_no_impression_until_it_is_said_to_be_shown(publish_day, serve, settings):
    publish_day()
    client = serve()
    for more in ({}, {"is_shown": False}, {"is_shown": True, "k": 1}):
        body = {"user_ids": ["u1", "u2"]} | more
        assert client.post("/v1/recommendations/batch", json=body).status_code == 200

    client.app.state.service.stop()

    served = rows_of(settings.lake, tables.SERVED_REQUESTS, settings.clock().date().isoformat())
    assert sorted((row["user_id"], len(row["item_ids"])) for row in served) == [("u1", 1), ("u2", 1)]


def test_an_impression_that_is_told_is_the_row_that_its_answer_would_have_been(publish_day, serve, settings):
    publish_day()
    client = serve()
    one = client.post("/v1/recommendations", json={"user_id": "u1", "k": 3}).json()
    batch = client.post("/v1/recommendations/batch", json={"user_ids": ["u1", "u2"], "k": 3}).json()["answers"]

    told = client.post("/v1/impressions", json={"impressions": [batch[0]]})

    assert (told.status_code, told.json()["num_accepted"]) == (202, 1)
    client.app.state.service.stop()
    rows = rows_of(settings.lake, tables.SERVED_REQUESTS, settings.clock().date().isoformat())
    by_id = {row.pop("request_id"): row for row in rows}
    assert set(by_id) == {one["request_id"], batch[0]["request_id"]}
    assert by_id[batch[0]["request_id"]] == by_id[one["request_id"]]


def test_a_whole_batch_can_be_told_as_it_was_given(publish_day, serve):
    publish_day(mark="A long title " * 100)
    client = serve()
    batch = client.post("/v1/recommendations/batch", json={"user_ids": ["u1"] * 100}).json()["answers"]
    body = json.dumps({"impressions": batch})
    assert len(body) > MAX_BODY_BYTES

    told = client.post("/v1/impressions", content=body, headers={"Content-Type": "application/json"})

    assert (told.status_code, told.json()["num_accepted"]) == (202, 100)


def test_a_log_that_is_switched_off_refuses_outcomes(publish_day, serve, settings):
    publish_day()
    client = serve(log_requests=False)
    assert client.post("/v1/recommendations", json={"user_id": "u1"}).status_code == 200

    told = {"outcomes": [{"request_id": "visit-0001", "item_id": "i1", "kind": "click"}]}

    assert client.post("/v1/outcomes", json=told).status_code == 503
    assert {each["name"] for each in client.get("/v1/dependencies").json()["dependencies"]} == {"online_store"}
    assert not (settings.lake / "served_requests").exists()


def test_outcomes_that_find_no_room_are_refused_and_answers_dropped_and_both_counted(publish_day, serve, monkeypatch):
    publish_day()
    monkeypatch.setattr(RequestsLog, "add", lambda *_: False)
    client = serve()

    assert client.post("/v1/recommendations", json={"user_id": "u1"}).status_code == 200
    told = {"outcomes": [{"request_id": "visit-0001", "item_id": "i1", "kind": "click"}] * 2}
    assert client.post("/v1/outcomes", json=told).status_code == 503

    text = client.get("/metrics").text
    assert 'grasp_requests_log_rows_total{result="dropped",table="served_requests"} 1.0' in text
    assert 'grasp_requests_log_rows_total{result="refused",table="outcomes"} 2.0' in text
