"""Measurements: nothing made twice, nothing half written read, nothing of other conditions mixed in."""

import pytest

from benchmarks.core.store import Conditions, JsonLines, Measurement, Measurements, PlannedMeasurement

CONDITIONS = Conditions("d1", 2, {})


def add(folder, name: str) -> None:
    Measurements(folder).add(Measurement(name, "full_eval", {"seconds": [1.0]}, CONDITIONS, "abc"))


def test_what_is_measured_is_not_measured_again(tmp_path):
    made = []
    planned = [
        PlannedMeasurement(name, kind, lambda name=name: made.append(name) or {})
        for name, kind in (("a", "curve"), ("b", "x"))
    ]

    Measurements(tmp_path).make_missing(planned, ["curve"], CONDITIONS)
    Measurements(tmp_path).make_missing(planned, ["curve", "x"], CONDITIONS)

    assert made == ["a", "b"]
    assert [each.name for each in Measurements(tmp_path).all()] == ["a", "b"]


def test_measurements_of_other_conditions_are_refused(tmp_path):
    add(tmp_path, "one")

    with pytest.raises(ValueError, match="with num_threads 2, now 4: give another folder"):
        Measurements(tmp_path).require(Conditions("d1", 4, {}))


def test_a_line_cut_short_does_not_count_and_is_written_over(tmp_path):
    add(tmp_path, "one")
    with (tmp_path / "measurements.jsonl").open("a") as file:
        file.write('{"name": "two"')

    add(tmp_path, "three")

    assert [each.name for each in Measurements(tmp_path).all()] == ["one", "three"]


@pytest.mark.parametrize("line", ["{}\n", "half of \n"])
def test_a_damaged_line_is_an_error(tmp_path, line):
    (tmp_path / "measurements.jsonl").write_text(line)

    with pytest.raises(ValueError, match="damaged"):
        Measurements(tmp_path)


def test_records_of_several_lines_and_of_one_line_come_back_whole(tmp_path):
    lines = JsonLines(tmp_path / "lines.jsonl")
    two = [{"row_id": "a", "line": number, "num_lines": 2} for number in (1, 2)]
    for record in (two, [{"name": "b"}]):
        with lines.locked_for_appending() as (before, append):
            append(record)

    assert before == [two]
    assert lines.read() == [two, [{"name": "b"}]]
