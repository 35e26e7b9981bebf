"""The check must find a feature that knows its own day, and nothing in those that do not."""

import numpy as np
import pytest

from benchmarks.data import datasets
from benchmarks.fresh import future_facts
from benchmarks.fresh.future_facts import check, with_events
from training.data.event_log import event_log
from training.evaluation.fresh_features import FreshFeatures
from training.evaluation.ranking import Event


class Prophet(FreshFeatures):
    """Knows the events of the day that it is asked for."""

    def known_day(self, event: Event) -> int:
        return event.day


@pytest.fixture(params=["global-time", "shuffled-ties"])
def data(request, dated_folder, tmp_path):
    return datasets.load(dated_folder, cache=tmp_path / "cache", protocol=request.param)


def test_fresh_features_know_nothing_of_their_day_and_all_before_it(data):
    found = check(data)

    assert found["num_different"] == 0
    assert found["num_different_later"] > 0
    assert found["num_days"] > 5
    assert found["num_values"] > found["num_events"] > 0


def test_a_feature_that_knows_its_day_is_found(data, monkeypatch):
    monkeypatch.setattr(future_facts, "FreshFeatures", Prophet)

    assert check(data)["num_different"] > 0


def test_planted_events_come_after_those_of_their_user_on_the_same_day():
    log = event_log([np.array([3, 4]), np.array([5, 6])], [np.array([10, 11]), np.array([10, 12])])

    found = with_events(log, np.array([0, 1, 0]), np.array([7, 8, 9]), np.array([11, 9, 12]))

    wanted = event_log(
        [np.array([3, 4, 7, 9]), np.array([8, 5, 6])], [np.array([10, 11, 11, 12]), np.array([9, 10, 12])]
    )
    for name in ("user_E", "item_E", "day_E", "history_EH"):
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist(), name
