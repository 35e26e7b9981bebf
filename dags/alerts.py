"""Alerts: one POST to `GRASP_ALERT_WEBHOOK` when a run of a DAG fails or a scheduled refresh is late.

The body is a small JSON object; chat programs show its `text`. The text of an error stays in the log: it may hold data.
"""

import asyncio
import json
from datetime import timedelta
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from dags.runs import day_of_run
from grasp.progress import say
from grasp.settings import Settings

TIMEOUT_SECONDS = 10


def run_failed(context: Any) -> None:
    """Airflow calls this once for a failed run, with the task that failed last if there is one."""
    alert = {"event": "failed", "dag": context["dag"].dag_id, "run": context["run_id"]}
    if "dag_run" in context:
        alert |= _day(context["dag_run"])
    if "ti" in context:
        alert |= {"task": context["ti"].task_id, "log": context["ti"].log_url}
    send(alert)


async def refresh_is_late(context: dict[str, Any]) -> None:
    """Airflow's triggerer calls this when a run has passed its deadline, whatever became of the run since."""
    run = context["dag_run"]
    if run["run_type"] == "scheduled" and run["state"] in ("queued", "running"):
        day = run["logical_date"][: len("YYYY-MM-DD")]
        await asyncio.to_thread(send, {"event": "late", "dag": run["dag_id"], "run": run["dag_run_id"], "day": day})


def refresh_deadline(settings: Settings) -> DeadlineAlert | None:
    """`refresh_is_late` at `refresh_deadline_hours` after a run was queued; None where nobody is to be told."""
    if not settings.alert_webhook.get_secret_value():
        return None
    late = timedelta(hours=settings.refresh_deadline_hours)
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, late, AsyncCallback(refresh_is_late), "refresh is late")


def send(alert: dict[str, str]) -> None:
    """POST the alert. One that cannot be delivered is a line in the log: a run never fails because of its alert."""
    url = Settings.load().alert_webhook.get_secret_value()
    if not url:
        return
    where = f" at {alert['task']}" if "task" in alert else ""
    text = f"GRASP: {alert['dag']} of {alert.get('day', alert['run'])}: {alert['event']}{where}"
    body = json.dumps({"text": text, **alert}).encode()
    request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - http or https: settings check it
    try:
        with urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310
            return
    except HTTPError as error:
        problem = f"HTTP {error.code}"
    except URLError as error:
        problem = str(error.reason)
    except (OSError, HTTPException) as error:
        problem = type(error).__name__  # its text may show a part of the address
    say(f"the alert was not delivered to GRASP_ALERT_WEBHOOK: {problem}: {text}")


def _day(dag_run: Any) -> dict[str, str]:
    try:
        return {"day": day_of_run(dag_run)}
    except ValueError:  # the run failed because it names no day
        return {}
