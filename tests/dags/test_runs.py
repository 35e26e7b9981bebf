"""Which day a run works on, for each way that Airflow starts one."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from dags.runs import day_of_run, is_named


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def run(kind="manual", logical_date=None, run_after="2026-11-30T15:00", conf=None, events=()) -> SimpleNamespace:
    """A DAG run as tasks and callbacks see it; `events` are the `extra` of the release events that started it."""
    return SimpleNamespace(
        run_type=kind,
        logical_date=logical_date and at(logical_date),
        run_after=at(run_after),
        conf=conf,
        consumed_asset_events=[SimpleNamespace(extra=extra) for extra in events],
    )


@pytest.mark.parametrize(
    ("started", "day"),
    [
        # At 02:00 on the 2nd the interval from the 1st, 02:00, ends: the last whole day is the 1st.
        (run("scheduled", "1998-03-01T02:00", "1998-03-02T02:00"), "1998-03-01"),
        (run("backfill", "1998-03-01T02:00", "1998-03-02T02:00"), "1998-03-01"),
        (run(logical_date="2024-03-08T02:00"), "2024-03-08"),
        (run(logical_date="2024-03-08T00:00"), "2024-03-08"),
        (run(logical_date="2024-03-08T23:59"), "2024-03-08"),
        (run(logical_date="2026-11-30T02:00"), "2026-11-30"),  # not over: refused, not another day
        (run(logical_date="2031-01-01T00:00"), "2031-01-01"),
        (run(logical_date="2026-11-30T14:57"), "2026-11-29"),  # the UI fills in the present moment
        (run(), "2026-11-29"),
        (run(logical_date="2024-03-08T02:00", conf={"day": "1998-02-28"}), "1998-02-28"),
        (run(conf={"day": None, "force": True}), "2026-11-29"),
        (run("asset_triggered", events=[{"day": "1998-03-01"}]), "1998-03-01"),
        (run("asset_triggered", events=[{"day": "1998-03-02"}, {"day": "1998-03-01"}]), "1998-03-02"),
        (run("asset_triggered", events=[{}], conf={"day": "1998-02-28"}), "1998-02-28"),
    ],
)
def test_each_kind_of_run_works_on_its_day(started, day):
    assert day_of_run(started) == day


def test_a_logical_date_elsewhere_names_its_utc_day():
    started = run()
    started.logical_date = datetime.fromisoformat("2024-03-09T01:00+05:45")
    assert day_of_run(started) == "2024-03-08"


@pytest.mark.parametrize("extra", [{}, None, {"release": "1998-03-01-abc"}])
def test_an_event_without_a_day_says_what_to_send(extra):
    with pytest.raises(ValueError) as error:
        day_of_run(run("asset_triggered", events=[extra]))
    said = 'an event of the asset grasp_release names no day: send extra={"day": "YYYY-MM-DD"}'
    assert str(error.value) == said


def test_only_a_person_names_a_day():
    assert is_named(run(conf={"day": "1998-03-01"}))
    assert is_named(run(logical_date="2024-03-08T02:00"))
    assert not is_named(run())
    assert not is_named(run(logical_date="2026-11-30T14:57"))
    assert not is_named(run("scheduled", "1998-03-01T02:00", "1998-03-02T02:00"))
