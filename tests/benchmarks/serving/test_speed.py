"""The measurements of the online store run, in small, and compare what they say they compare."""

import json

import pytest

from benchmarks.serving import lookup as serving_lookup
from benchmarks.serving import materialise_speed
from benchmarks.serving.lookup import COLUMNS, FLOATS


@pytest.mark.integration
def test_all_ways_put_every_row_online(settings, require_program):
    require_program("redis-server", "redis-server")

    found = materialise_speed.compare(settings, num_users=20, num_rounds=3)

    assert found["num_rows"] == 22
    assert {len(each) for each in found["seconds"].values()} == {3}
    assert set(found["rows_per_second"]) == {"ours", "feast, as it comes", "feast, skip_dedup"}


@pytest.mark.integration
def test_both_servers_answer_with_the_same_values(settings, require_program):
    require_program("redis-server", "redis-server")

    found = serving_lookup.compare(settings, num_users=20, num_requests=5)

    for times in (*found["http_ms"].values(), *found["in_process_ms"].values()):
        assert 0 < times["p50"] <= times["p99"]
    assert found["p99_over_feast"] > 0


MOMENTS = {"ours": "2026-01-06T00:00:00Z", "feast": 1_767_657_600, "other": 1_767_657_601}


def value_of(name: str, who: str) -> object:
    if name == "computed_at":
        return MOMENTS[who]
    number = {"ours": 1.0, "feast": 1.0 + 1e-7, "other": 1.001}[who]
    return [number] if name in FLOATS else int(who == "other")


@pytest.mark.parametrize("wrong", [None, *COLUMNS])
def test_answers_that_differ_in_any_column_are_no_measurement(wrong):
    names = ["user_id", *COLUMNS]
    row = {name: value_of(name, "ours") for name in names}
    values = [value_of(name, "other" if name == wrong else "feast") for name in names]
    answer = {"metadata": {"feature_names": names}, "results": [{"values": [each]} for each in values]}

    def compare() -> None:
        serving_lookup._require_equal(json.dumps(row).encode(), json.dumps(answer).encode())

    if wrong is None:
        compare()
    else:
        with pytest.raises(ValueError, match=f"{wrong} differs"):
            compare()


def test_answers_with_other_columns_are_no_measurement():
    answer = {"metadata": {"feature_names": ["user_id"]}, "results": [{"values": ["u1"]}]}

    with pytest.raises(ValueError, match="columns user_id"):
        serving_lookup._require_equal(b'{"user_id": "u1"}', json.dumps(answer).encode())
