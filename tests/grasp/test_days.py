"""Days are UTC dates; the end of a day is what its features may know."""

import argparse

import pytest

from grasp.days import day_argument, end_of, parse_day, plus_days


@pytest.mark.parametrize("text", ["1998-02-30", "yesterday", "1998-2-1", "1998-02-01T00:00", ""])
def test_what_is_no_day_is_refused_by_its_text(text):
    with pytest.raises(ValueError, match="is not a day"):
        parse_day(text)
    with pytest.raises(argparse.ArgumentTypeError):
        day_argument(text)


def test_a_day_ends_just_before_the_next():
    assert end_of("1998-02-28").isoformat() == "1998-02-28T23:59:59.999999+00:00"
    assert plus_days("1998-02-28", 1) == "1998-03-01"
