"""Rebuild a day's features, check them, put them online and publish the release.

Runs at 02:00 UTC for the last whole day. Every task works on one named day and replaces it. So any task may be retried,
and any day may be run again or back-filled with the same result. A stage whose inputs did not change is skipped before
Spark starts.

* `day`: the UTC day to work on. Without it, a run works on the UTC date of its logical date: a scheduled run on the
  last whole day. A run by hand without a date, or with the present moment that the UI fills in, works on that day too.
* `force`: run every Spark job and the quality checks although nothing changed.

When a run ends early:

* The day is not over by the clock (`GRASP_NOW`, else the wall clock): a named day fails, a scheduled run is skipped.
* The day has fewer interactions than `GRASP_MIN_DAY_INTERACTIONS`: it fails before the language model is called.
* A critical expectation fails: the run stops at `check_quality`, and what is published stays.
* The day is stale (`GRASP_MAX_FEATURE_AGE_HOURS`), or older than what is online: it is a back-fill. Its tables are
  written, nothing is published.
"""

from typing import Any

import pendulum
from airflow.sdk import Param, chain, dag, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.timetables.interval import CronDataIntervalTimetable

from dags.alerts import refresh_deadline, run_failed
from dags.runs import day_of_run, is_named
from dags.tasks import DEFAULTS, RELEASE, ModuleTask, SparkJob
from grasp import partitions, tables
from grasp.days import REFRESH_HOUR, DayNotOverError, age_hours, require_ended
from grasp.manifest import manifest_in_force
from grasp.progress import say
from grasp.settings import Settings

DAY = "{{ day_of_run(dag_run) }}"
FORCE = "{{ params.force }}"
SETTINGS = Settings.load()  # a wrong setting shows at once as an import error in the UI, not at two in the morning


def job(name: str) -> SparkJob:
    return SparkJob(job=name, day=DAY, force=FORCE)


def module(name: str, task_id: str, arguments: list[str], stage: str | None = None) -> ModuleTask:
    return ModuleTask(module=name, task_id=task_id, arguments=arguments, day=DAY, force=FORCE, stage=stage)


@task.short_circuit(ignore_downstream_trigger_rules=True)
def has_ended(day: str, *, dag_run: Any) -> bool:
    """A day that is not over by the clock fails if it was named; a scheduled run is skipped."""
    try:
        require_ended(day, SETTINGS.clock())
    except DayNotOverError as error:
        if is_named(dag_run):
            say(f"daily_refresh {day}: failed: {error}")
            raise AirflowFailException(str(error)) from None
        say(f"daily_refresh: skipped: {error}")
        return False
    return True


@task(trigger_rule="none_failed")
def has_interactions(day: str) -> None:
    """Fail a day with too few interactions before the language model is paid; the quality gate would refuse it."""
    folder = partitions.require_partition(SETTINGS.lake, tables.INTERACTIONS, None, day)
    content = partitions.read_content(folder)
    num_interactions, fewest = content.num_rows if content else 0, SETTINGS.min_day_interactions
    if num_interactions < fewest:
        problem = f"{num_interactions} interactions, fewer than GRASP_MIN_DAY_INTERACTIONS={fewest}"
        say(f"daily_refresh {day}: failed: {problem}")
        raise AirflowFailException(f"{day} has {problem}")


@task.short_circuit(trigger_rule="none_failed", ignore_downstream_trigger_rules=True)
def is_fresh(day: str) -> bool:
    """A day that is too old to serve is a back-fill: its tables are written, and the run ends here."""
    require_ended(day, SETTINGS.clock())  # again, since a run may be cleared from this task on
    age = age_hours(day, SETTINGS.clock())
    if age <= SETTINGS.stale_after_hours:
        return True
    say(f"daily_refresh {day}: {age:.0f} h old by the clock: a back-fill, tables written, nothing published")
    return False


@task(outlets=[RELEASE], trigger_rule="none_failed")
def announce(day: str, *, outlet_events: dict) -> None:
    """Tell `retrain` which day is served now. The event carries the day: a run that an event starts has no date."""
    manifest = manifest_in_force(SETTINGS.releases)
    if manifest.day != day:
        raise AirflowSkipException(f"{day} is a back-fill: the release in force is of {manifest.day}")
    outlet_events[RELEASE].extra = {"day": day, "release": manifest.release_id}


@dag(
    schedule=CronDataIntervalTimetable(f"0 {REFRESH_HOUR} * * *", timezone="UTC"),
    start_date=pendulum.datetime(1998, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,  # Milvus-Lite and the online store have one writer
    default_args=DEFAULTS,
    on_failure_callback=run_failed,
    deadline=refresh_deadline(SETTINGS),
    user_defined_macros={"day_of_run": day_of_run},
    params={
        "day": Param(None, type=["null", "string"], format="date", description="UTC day, YYYY-MM-DD"),
        "force": Param(False, type="boolean", description="Run although nothing changed"),
    },
    doc_md=__doc__,
    tags=["grasp"],
)
def daily_refresh() -> None:
    chain(
        has_ended(DAY),
        job("ingest"),
        has_interactions(DAY),
        job("describe_items"),
        job("describe_users"),  # after the items, not beside them: each job divides the server's rate limits by itself
        job("embed_descriptions"),
        job("find_neighbours"),
        job("aggregate_neighbours"),
        *([job("find_moments")] if SETTINGS.moments else []),
        job("build_features"),
        module("feature_repo.quality", "check_quality", ["--day", DAY], stage="check_quality"),
        is_fresh(DAY),
        module("feature_repo.materialise", "materialise", ["--day", DAY]),
        module("serving.releases.manage", "publish", ["publish", "--day", DAY]),
        announce(DAY),
    )


daily_refresh()
