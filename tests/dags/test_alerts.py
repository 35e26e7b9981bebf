"""An alert reaches a real HTTP server, says little, and never fails a run."""

import asyncio
import json
from datetime import timedelta
from types import SimpleNamespace

import pytest

from dags.alerts import refresh_deadline, refresh_is_late, run_failed, send

pytestmark = pytest.mark.integration  # imports Airflow

SECRET = "hook-secret"


@pytest.fixture(autouse=True)
def _told(webhook, monkeypatch, settings) -> None:
    """The settings of this process name the webhook."""
    monkeypatch.setenv("GRASP_HOME", str(settings.home))
    monkeypatch.setenv("GRASP_ALERT_WEBHOOK", webhook.url)


def failed_run() -> dict:
    """What Airflow hands to the callback of a failed run."""
    run = SimpleNamespace(conf={"day": "1998-03-01", "password": "hunter2"}, consumed_asset_events=[])
    task = SimpleNamespace(task_id="ingest", log_url="http://127.0.0.1:8180/dags/daily_refresh/runs/r/tasks/ingest")
    dag = SimpleNamespace(dag_id="daily_refresh")
    return {"dag": dag, "run_id": "r", "dag_run": run, "ti": task, "exception": ValueError("title of an item")}


def test_a_failed_run_says_which_day_and_task_and_nothing_else(webhook):
    run_failed(failed_run())
    (alert,) = webhook.received
    assert alert == {
        "text": "GRASP: daily_refresh of 1998-03-01: failed at ingest",
        "event": "failed",
        "dag": "daily_refresh",
        "run": "r",
        "day": "1998-03-01",
        "task": "ingest",
        "log": "http://127.0.0.1:8180/dags/daily_refresh/runs/r/tasks/ingest",
    }


def test_a_run_of_which_airflow_knows_little_is_told_too(webhook):
    run_failed({"dag": SimpleNamespace(dag_id="retrain"), "run_id": "r", "reason": "task_failure"})
    assert webhook.received[0]["text"] == "GRASP: retrain of r: failed"


def test_a_run_that_failed_for_want_of_a_day_is_told_too(webhook):
    context = failed_run()
    context["dag_run"] = SimpleNamespace(conf={}, consumed_asset_events=[SimpleNamespace(extra={})])
    run_failed(context)
    assert "day" not in webhook.received[0]


def late(kind="scheduled", state="running") -> dict:
    """What Airflow's triggerer hands over: the run as its API shows it."""
    return {
        "dag_run": {
            "dag_id": "daily_refresh",
            "dag_run_id": "scheduled__1998-03-02",
            "run_type": kind,
            "state": state,
            "logical_date": "1998-03-01T02:00:00Z",
            "conf": {"password": "hunter2"},
        },
        "deadline": {"id": "1", "deadline_time": None},
    }


def test_a_late_refresh_is_told(webhook):
    asyncio.run(refresh_is_late(late()))
    (alert,) = webhook.received
    assert alert["text"] == "GRASP: daily_refresh of 1998-03-01: late"
    assert "hunter2" not in json.dumps(alert)


@pytest.mark.parametrize("run", [late("backfill"), late("manual"), late(state="failed"), late(state="success")])
def test_a_back_fill_may_take_its_time_and_a_run_that_ended_is_not_late(webhook, run):
    asyncio.run(refresh_is_late(run))
    assert webhook.received == []


@pytest.mark.parametrize("problem", ["HTTP 500", "Connection refused"])
def test_an_alert_that_is_not_delivered_is_one_line_without_the_address(webhook, monkeypatch, capsys, problem):
    webhook.status = 500
    if problem == "Connection refused":
        monkeypatch.setenv("GRASP_ALERT_WEBHOOK", f"http://127.0.0.1:1/{SECRET}")
    run_failed(failed_run())
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert problem in said
    assert SECRET not in said


def test_nothing_is_sent_where_nobody_is_to_be_told(webhook, monkeypatch):
    monkeypatch.delenv("GRASP_ALERT_WEBHOOK")
    send({"event": "failed", "dag": "daily_refresh", "run": "r"})
    assert webhook.received == []


def test_the_deadline_of_a_refresh_follows_the_settings(settings_with):
    assert refresh_deadline(settings_with()) is None
    found = refresh_deadline(settings_with(alert_webhook="https://alerts.example.com/h", refresh_deadline_hours=3))
    assert found.interval == timedelta(hours=3)
    assert found.callback.path == "dags.alerts.refresh_is_late"
