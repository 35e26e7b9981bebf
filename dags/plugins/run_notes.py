"""Airflow plugin: the note of each run of our DAGs, which the UI shows beside it, says which day the run works on.

A task may not write the note of its run, so the scheduler does it.
"""

import sys
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

from dags.runs import day_of_run

OURS = ("daily_refresh", "retrain")


@hookimpl
def on_dag_run_running(dag_run: Any) -> None:
    """Note the day of a run that the scheduler starts, unless a person has written a note."""
    if dag_run.dag_id not in OURS or dag_run.note:
        return
    try:
        dag_run.note = f"day {day_of_run(dag_run)}"
    except ValueError as error:  # the run fails with the same words
        dag_run.note = str(error)


class RunNotes(AirflowPlugin):
    name = "grasp_run_notes"
    listeners = [sys.modules[__name__]]  # noqa: RUF012 - as Airflow wants it
