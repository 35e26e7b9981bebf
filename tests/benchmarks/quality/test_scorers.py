"""What is known when a split is asked, and what validation may choose from it."""

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.data.datasets import BenchmarkData
from benchmarks.quality import scorers
from training.evaluation import baselines
from training.evaluation.baselines import StarSettings
from training.evaluation.ranking import Event, evaluation_events

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
