"""What is known when a split is asked, and what validation may choose from it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.data.datasets import BenchmarkData, Cut
from benchmarks.quality import scorers
from benchmarks.quality.scorers import weights_of
from training.evaluation import baselines
from training.evaluation.baselines import StarSettings
from training.evaluation.metrics import Interval
from training.evaluation.ranking import Event, evaluation_events
from training.fitting.fresh_calibration import FreshChoice
from training.model.fresh_score import FreshScore

SETTINGS = StarSettings(semantic_share=0.0, decay=0.7, last=3)  # by common users alone


def with_target(sequences: list[list[int]], place: int, item: int) -> list[list[int]]:
    """The same with another item at a place of the first user's sequence."""
    first = [*sequences[0]]
    first[place] = item
    return [first, *sequences[1:]]


@pytest.mark.parametrize(
    ("known_for", "place", "is_seen"),
    [("validation", -2, False), ("validation", -1, False), ("test", -2, True), ("test", -1, False)],
)
def test_star_knows_common_users_up_to_the_split_that_is_asked(data_of, sequences, known_for, place, is_seen):
    unused = next(item for item in range(1, 1 + max(map(max, sequences))) if item not in sequences[0])
    plain, planted = data_of(sequences), data_of(with_target(sequences, place, unused))
    events = [Event(event.user, event.history, 1) for event in evaluation_events(plain.training_set, "validation")]

    scores = [scorers.star(data.training_set, SETTINGS, known_for, mean=True)(events) for data in (plain, planted)]

    assert (scores[0] != scores[1]).any() == is_seen


@pytest.mark.parametrize("addition", ["star", "max_cosine"])
def test_a_weight_is_chosen_by_validation_whatever_the_test_holds(data_of, sequences, addition):
    num_items = len(data_of(sequences).training_set.item_ids)

    def chosen(data: BenchmarkData) -> object:
        events = evaluation_events(data.training_set, "validation")
        base = baselines.popularity(data.training_set.sequences, num_items)

        def nothing(asked: Sequence[Event]) -> np.ndarray:
            return 0 * base(asked)

        return scorers.with_addition(nothing, nothing, addition, data, events).settings

    found = [chosen(data_of(with_target(sequences, -1, item))) for item in range(1, num_items + 1)]

    assert found[0]
    assert all(each == found[0] for each in found)


def test_a_control_answers_the_test_with_the_validation_items_known(data_of, sequences):
    data = data_of(sequences)
    events = evaluation_events(data.training_set, "test")

    counts = scorers.control("popularity", data, []).score(events)[0]

    known = np.concatenate([each[:-1] for each in data.training_set.sequences])
    assert counts.tolist() == np.bincount(known, minlength=1 + len(counts))[1:].tolist()


def test_nothing_added_is_the_base_itself(data_of, sequences):
    data = data_of(sequences)
    base = baselines.popularity(data.training_set.sequences, len(data.training_set.item_ids))

    assert scorers.with_addition(base, base, "none", data, []).score is base


class ByNumber:
    """A ranker that prefers items with high numbers, a little. Its state is the newest item."""

    def __call__(self, asked: Sequence[Event]) -> np.ndarray:
        return np.tile(np.arange(12, dtype=np.float32) / 100, (len(asked), 1))

    def states(self, histories, users=None) -> np.ndarray:
        return np.eye(13, dtype=np.float32)[[history[-1] for history in histories]]


by_number = ByNumber()


def fresh_scorers(data: BenchmarkData) -> scorers.FreshScorers:
    """Fresh features beside that ranker."""
    chosen = FreshScore()
    chosen.takers_weight_W[2] = 0.5  # of seven days
    choice = FreshChoice("takers", {"none": Interval(0, 0, 0)})
    return scorers.FreshScorers(by_number, by_number, (chosen, choice), scorers.SharedFeatures(data))


# Four users are one item ahead of four others: what they trained on last is what the others validate on. Five more take
# another item at the same time, which is hotter; only the votes of similar users tell it apart.
WAVES = [[1, 2, 3, 4, 5, 6]] * 4 + [[2, 3, 4, 5, 6, 7]] * 4 + [[12, 11, 12, 12, 7, 8]] * 5


def test_votes_are_read_only_where_they_are_asked_for(data_of):
    fresh = fresh_scorers(data_of(WAVES))

    takers, stored, by_state = (
        fresh.with_addition(addition, {}).settings for addition in ("takers", "stored", "fresh")
    )

    assert any(takers["takers"])
    assert takers["takers"] == stored["takers"] == by_state["takers"]
    assert takers["stored_votes"] == takers["state_votes"] == stored["state_votes"] == by_state["stored_votes"] == 0
    assert stored["stored_votes"] > 0
    assert by_state["state_votes"] > 0
    assert weights_of(by_state).tolist() == [*by_state["takers"], 0, by_state["state_votes"]]


@pytest.mark.parametrize("addition", ["takers", "fresh", "stored", "stored_permuted"])
def test_weights_of_fresh_features_are_fitted_to_validation_whatever_the_test_holds(data_of, addition):
    found = [fresh_scorers(data_of(with_target(WAVES, -1, item))).with_addition(addition, {}) for item in (6, 9)]

    assert found[0].settings == found[1].settings
    assert found[0].num_trials == 1


def test_what_training_chose_is_neither_fitted_nor_chosen_anew(data_of):
    found = fresh_scorers(data_of(WAVES)).with_addition("fresh_chosen", {"semantic": 4.0})

    no_votes = {"stored_votes": 0, "state_votes": 0}
    gains, kernel = {"none": {"mean": 0, "low": 0, "high": 0}}, {"kernel": {"semantic": 4.0}}
    assert found.settings == {"choice": "takers", "gains": gains, "takers": [0, 0, 0.5, 0, 0], **no_votes} | kernel
    assert found.num_trials == 4


def test_items_that_nobody_took_lately_keep_their_score(data_of):
    data = data_of(WAVES)
    score = fresh_scorers(data).with_addition("fresh_chosen", {}).score

    events = evaluation_events(data.training_set, "test")
    added_N = (score(events) - by_number(events))[0]

    assert np.flatnonzero(added_N).tolist() == [0, 1, 2, 3, 4, 10, 11]


def cut_at(data: BenchmarkData, day: int) -> BenchmarkData:
    return replace(data, cut=Cut(day, data.training_set, data.training_set))


def test_frozen_features_know_nothing_after_the_day_before_the_cut(data_of):
    features = scorers.SharedFeatures(cut_at(data_of(WAVES), 3))
    days = [Event(0, np.array([1]), 2, day) for day in (2, 3, 9)]

    assert [features.of("test", is_frozen=True).known_day(event) for event in days] == [1, 2, 2]
    assert [features.of("test").known_day(event) for event in days] == [1, 2, 8]
    assert features.of("test") is features.of("test")


def test_frozen_features_have_the_weights_of_those_that_are_not(data_of):
    fresh = fresh_scorers(cut_at(data_of(WAVES), 2))

    own, frozen = (fresh.with_addition(addition, {}) for addition in ("takers", "takers_frozen"))

    assert own.settings == frozen.settings
    events = evaluation_events(data_of(WAVES).training_set, "test")
    assert (own.score(events) != frozen.score(events)).any()


def test_without_a_cut_nothing_can_be_frozen(data_of, sequences):
    with pytest.raises(ValueError, match="only by global time"):
        fresh_scorers(data_of(sequences)).with_addition("takers_frozen", {})


@pytest.mark.parametrize("split", ["validation", "test"])
def test_with_permuted_vectors_other_moments_are_near(data_of, split):
    data = data_of(WAVES)
    features, events = scorers.SharedFeatures(data), evaluation_events(data.training_set, split)

    own, permuted = (
        np.concatenate([found.weights for found in features.of(split, is_permuted=is_permuted).votes(events)])
        for is_permuted in (False, True)
    )

    assert len(own)
    assert own.tolist() != permuted.tolist()


def test_permuted_vectors_are_those_of_other_items(data_of, sequences):
    training_set = data_of(sequences).training_set

    permuted = scorers.with_permuted_vectors(training_set)

    assert sorted(map(tuple, permuted.item_semantic)) == sorted(map(tuple, training_set.item_semantic))
    assert (permuted.item_semantic != training_set.item_semantic).any(1).sum() > 6
    assert permuted.sequences is training_set.sequences
