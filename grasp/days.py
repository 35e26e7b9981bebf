"""Days: UTC dates written as `YYYY-MM-DD`, the unit every job works on."""

import argparse
from datetime import UTC, date, datetime, time, timedelta

REFRESH_HOUR = 2  # UTC; the refresh of a day starts at this hour of the next day
HOURS_TO_NEXT_REFRESH = 24 + REFRESH_HOUR  # from the end of a day until the refresh that replaces its features is due


class DayNotOverError(ValueError):
    """The day ends after the clock's time; the message names both."""


def parse_day(text: str) -> str:
    """Check that `text` is a calendar day; raises `ValueError` with the text."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"{text!r} is not a day: write YYYY-MM-DD") from None


def day_argument(text: str) -> str:
    """`parse_day` for argparse: a wrong `--day` gives a usage message."""
    try:
        return parse_day(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def start_of(day: str) -> datetime:
    """First moment of the day, UTC."""
    return datetime.combine(date.fromisoformat(day), time.min, UTC)


def end_of(day: str) -> datetime:
    """Last microsecond of the day, UTC. No feature of the day knows anything later."""
    return start_of(day) + timedelta(days=1) - timedelta(microseconds=1)


def last_second(day: str) -> datetime:
    """The day's last whole second, 23:59:59: a clock as people write it, and the event timestamp of features."""
    return end_of(day).replace(microsecond=0)


def plus_days(day: str, num_days: int) -> str:
    return (date.fromisoformat(day) + timedelta(days=num_days)).isoformat()


def day_number(day: str) -> int:
    """The day as the number of days since 1970-01-01."""
    return (date.fromisoformat(day) - date(1970, 1, 1)).days


def has_ended(day: str, now: datetime) -> bool:
    """True once the day is over. A clock in whole seconds may show its last second, 23:59:59."""
    return now >= last_second(day)


def require_ended(day: str, now: datetime) -> None:
    """Raise `DayNotOverError` for a day that is not over."""
    if not has_ended(day, now):
        raise DayNotOverError(f"{day} is after the clock ({now.isoformat(timespec='seconds')}; GRASP_NOW sets it)")


def age_hours(day: str, now: datetime) -> float:
    """Age of a day's features in hours: `now` minus the end of the day."""
    return (now - end_of(day)).total_seconds() / 3600
