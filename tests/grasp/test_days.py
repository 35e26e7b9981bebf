"""Days are UTC dates; a day's features know what happened up to its end."""

import argparse
from datetime import datetime

import pytest

from grasp.days import (
    DayNotOverError,
    day_argument,
    day_number,
    end_of,
    has_ended,
    last_second,
    parse_day,
    plus_days,
    require_ended,
)


@pytest.mark.parametrize("text", ["1998-02-30", "yesterday", "1998-2-1", "1998-02-01T00:00", ""])
def test_text_that_is_not_a_day_is_refused_and_shown(text):
    with pytest.raises(ValueError, match="is not a day"):
        parse_day(text)
    with pytest.raises(argparse.ArgumentTypeError):
        day_argument(text)


def test_a_day_ends_just_before_the_next():
    assert end_of("1998-02-28").isoformat() == "1998-02-28T23:59:59.999999+00:00"
    assert last_second("1998-02-28").isoformat() == "1998-02-28T23:59:59+00:00"
    assert plus_days("1998-02-28", 1) == "1998-03-01"
    assert (day_number("1970-01-01"), day_number("1998-02-28")) == (0, 10285)


@pytest.mark.parametrize(
    ("clock", "is_over"),
    [
        ("1998-04-22T23:59:58+00:00", False),
        ("1998-04-22T23:59:59+00:00", True),  # the last second, as a person types it
        ("1998-04-22T23:59:59.999999+00:00", True),
        ("1998-04-23T01:00:00+02:00", False),
    ],
)
def test_a_day_is_over_from_its_last_second_on(clock, is_over):
    assert has_ended("1998-04-22", datetime.fromisoformat(clock)) == is_over


def test_the_clock_of_the_demo_is_that_of_the_pages():
    assert last_second("1998-04-22").isoformat() == "1998-04-22T23:59:59+00:00"


def test_a_day_after_the_clock_is_refused_and_both_are_named():
    with pytest.raises(DayNotOverError, match=r"2026-11-22 is after the clock \(1998-04-22T23:59:59\+00:00; GRASP_NOW"):
        require_ended("2026-11-22", datetime.fromisoformat("1998-04-22T23:59:59+00:00"))
