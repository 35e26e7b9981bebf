"""Served requests and outcomes reach their tables despite disk failures, and never delay a request."""

import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from serving.http.access import Access
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


@pytest.fixture
def start(tmp_path, counts):
    def make(**changed) -> RequestsLog:
        log = RequestsLog(
            tmp_path, lambda result, num: counts.update({result: num}), **{"flush_seconds": NEVER, **changed}
        )
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


def test_a_full_queue_drops_and_counts_rows_without_blocking(start, counts):
    log = start(max_queued=2)

    assert not log.add(tables.OUTCOMES, DAY, [outcome(number) for number in range(5)])

    assert counts["dropped"] == 3
    log.close()
    assert counts["written"] == 2


def test_a_batch_that_cannot_be_written_is_tried_again(start, tmp_path, counts):
    in_the_way = tmp_path / "outcomes"
    in_the_way.write_text("a file where the table's folder belongs")
    log = start(flush_seconds=0.02)
    log.add(tables.OUTCOMES, DAY, [outcome(1)])
    time.sleep(0.3)
    assert not counts

    in_the_way.unlink()
    log.close()

    assert counts == {"written": 1}


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
    for path, who in (("", {"user_id": "u1"}), ("/batch", {"user_ids": ["u1", "u2"]})):
        for more in ({"is_shown": False}, {"k": 1}):
            assert client.post(f"/v1/recommendations{path}", json=who | more).status_code == 200

    client.app.state.service.stop()

    served = rows_of(settings.lake, tables.SERVED_REQUESTS, settings.clock().date().isoformat())
    assert sorted((row["user_id"], len(row["item_ids"])) for row in served) == [("u1", 1), ("u1", 1), ("u2", 1)]


def test_a_log_that_is_switched_off_refuses_outcomes(publish_day, serve, settings):
    publish_day()
    client = serve(log_requests=False)
    assert client.post("/v1/recommendations", json={"user_id": "u1"}).status_code == 200

    told = {"outcomes": [{"request_id": "visit-0001", "item_id": "i1", "kind": "click"}]}

    assert client.post("/v1/outcomes", json=told).status_code == 503
    assert not (settings.lake / "served_requests").exists()
