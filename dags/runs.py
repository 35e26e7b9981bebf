"""The day that a run works on. It follows from the run alone, so a retry or a cleared task works on the same day."""

from datetime import UTC, datetime, timedelta
from typing import Any

from grasp.days import parse_day, plus_days

# Airflow's UI fills in the present moment as the logical date of a run by hand: such a date names no day.
UI_MOMENT = timedelta(hours=1)


def day_of_run(dag_run: Any) -> str:
    """The day of a DAG run of any kind, the first of these that there is:

    1. `day` of its configuration;
    2. the latest day of the release events that started it;
    3. the UTC date of its logical date: for a scheduled run and a back-fill, the start of the interval;
    4. the last whole day before the run was due.

    Raises `ValueError` for a configuration or an event whose day is no day.
    """
    if named := (dag_run.conf or {}).get("day"):
        return parse_day(named)
    if events := dag_run.consumed_asset_events:
        return max(_day_of_event(event) for event in events)
    if _has_telling_date(dag_run):
        return _utc_date(dag_run.logical_date)
    return plus_days(_utc_date(dag_run.run_after), -1)


def is_named(dag_run: Any) -> bool:
    """Whether a person named the day: as `day`, or as the logical date of a run by hand."""
    return bool((dag_run.conf or {}).get("day")) or (dag_run.run_type == "manual" and _has_telling_date(dag_run))


def _day_of_event(event: Any) -> str:
    if "day" not in (event.extra or {}):
        raise ValueError('an event of the asset grasp_release names no day: send extra={"day": "YYYY-MM-DD"}')
    return parse_day(event.extra["day"])


def _has_telling_date(dag_run: Any) -> bool:
    return dag_run.logical_date is not None and abs(dag_run.run_after - dag_run.logical_date) > UI_MOMENT


def _utc_date(moment: datetime) -> str:
    return moment.astimezone(UTC).date().isoformat()
