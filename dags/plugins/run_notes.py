"""Airflow plugin: the note of each run of our DAGs, which the UI shows beside it, says which day the run works on.

A task may not write the note of its run, so a listener does, in the scheduler or in `airflow dags test`.
"""

import sys
from typing import Any

from airflow import settings
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin
from sqlalchemy.orm import object_session

from dags.runs import day_of_run

OURS = ("daily_refresh", "retrain")


@hookimpl
def on_dag_run_running(dag_run: Any) -> None:
    """Note the day of a run, unless it has a note."""
    if dag_run.dag_id not in OURS:
        return
    if object_session(dag_run) is None:  # `airflow dags test` hands over a copy; its session holds the run
        dag_run = settings.Session().get(type(dag_run), dag_run.id)
    if dag_run.note:
        return
    try:
        dag_run.note = f"day {day_of_run(dag_run)}"
    except ValueError as error:  # the run fails with the same words
        dag_run.note = str(error)


# `airflow dags test`, which `grasp refresh`, `retrain` and `demo` use, says only how a run ends.
on_dag_run_success = on_dag_run_failed = on_dag_run_running


class RunNotes(AirflowPlugin):
    name = "grasp_run_notes"
    listeners = [sys.modules[__name__]]  # noqa: RUF012 - as Airflow wants it
