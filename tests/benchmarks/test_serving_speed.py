"""The measurements of the online store run, in small, and compare what they say they compare."""

import pytest

from benchmarks import materialise_speed, serving_lookup

pytestmark = pytest.mark.integration


def test_all_ways_put_every_row_online(settings, require_program):
    require_program("redis-server", "redis-server")

    found = materialise_speed.compare(settings, num_users=20, num_rounds=1)

    assert found["num_rows"] == 22
    assert {len(each) for each in found["seconds"].values()} == {1}
    assert set(found["rows_per_second"]) == {"ours", "feast, as it comes", "feast, skip_dedup"}


def test_both_servers_answer_with_the_same_values(settings, require_program):
    require_program("redis-server", "redis-server")

    found = serving_lookup.compare(settings, num_users=20, num_requests=5)

    for times in (*found["http_ms"].values(), *found["in_process_ms"].values()):
        assert 0 < times["p50"] <= times["p99"]
