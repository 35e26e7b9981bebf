"""Days: UTC dates written as `YYYY-MM-DD`, the unit every job works on."""

import argparse
from datetime import UTC, date, datetime, time, timedelta


class DayNotOverError(ValueError):
    """The day ends after the clock; the message names both."""


def parse_day(text: str) -> str:
    """Check that `text` is a calendar day; raises `ValueError` that shows it."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"{text!r} is not a day: write YYYY-MM-DD") from None


def day_argument(text: str) -> str:
    """`parse_day` for argparse, so that a wrong `--day` ends in a usage message."""
    try:
        return parse_day(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def start_of(day: str) -> datetime:
    """First moment of the day, UTC."""
    return datetime.combine(date.fromisoformat(day), time.min, UTC)


def end_of(day: str) -> datetime:
    """Last microsecond of the day, UTC: the knowledge cutoff of every feature of that day."""
    return start_of(day) + timedelta(days=1) - timedelta(microseconds=1)


def plus_days(day: str, num_days: int) -> str:
    return (date.fromisoformat(day) + timedelta(days=num_days)).isoformat()


def has_ended(day: str, now: datetime) -> bool:
    """True once the day is over; a clock in whole seconds may stand at its last one, 23:59:59."""
    return now >= end_of(day).replace(microsecond=0)


def require_ended(day: str, now: datetime) -> None:
    """Raise `DayNotOverError` for a day of which nothing final can be known yet."""
    if not has_ended(day, now):
        raise DayNotOverError(f"{day} is after the clock ({now.isoformat(timespec='seconds')}; GRASP_NOW sets it)")


def age_hours(day: str, now: datetime) -> float:
    """Age of a day's features, in hours: the clock minus what they may know."""
    return (now - end_of(day)).total_seconds() / 3600
