import numpy as np
import pytest

from training.evaluation.negatives import draw_negatives, load_negatives, save_negatives
from training.evaluation.ranking import Event


def event(history: list[int], target: int, user: int = 0) -> Event:
    return Event(user, np.array(history), target)


def test_negatives_are_distinct_unknown_to_the_user_and_cover_everything_else():
    events = [event([2, 5, 5], 7), event([1], 10, user=1)]
    negatives = draw_negatives(events, 10, num=7)

    assert negatives.dtype == np.int32
    assert sorted(negatives[0].tolist()) == [1, 3, 4, 6, 8, 9, 10]
    assert len(set(negatives[1].tolist())) == 7
    assert set(negatives[1].tolist()) <= set(range(2, 10))


def test_negatives_are_uniform():
    events = [event([3], 8, user) for user in range(4000)]
    count = np.bincount(draw_negatives(events, 12, num=5).ravel(), minlength=13)

    assert count[[0, 3, 8]].tolist() == [0, 0, 0]
    assert count[[1, 2, 4, 5, 6, 7, 9, 10, 11, 12]] == pytest.approx(2000, abs=150)  # 5 standard deviations


def test_negatives_depend_only_on_the_seed():
    events = [event([2, 5], 7)]

    assert (draw_negatives(events, 300) == draw_negatives(events, 300)).all()
    assert (draw_negatives(events, 300) != draw_negatives(events, 300, seed=1)).any()


def test_a_catalogue_that_is_too_small_for_negatives_is_named():
    with pytest.raises(ValueError, match="user 4: 3 of 102 items are known, 99 are left"):
        draw_negatives([event([2, 5], 7, user=4)], 102)


def test_saved_negatives_come_back_for_the_same_events_only(tmp_path):
    events = [event([2, 5], 7)]
    negatives = draw_negatives(events, 300)
    checksum = save_negatives(tmp_path / "kept" / "negatives.npz", negatives, events)

    assert (load_negatives(tmp_path / "kept" / "negatives.npz", events) == negatives).all()
    assert checksum == save_negatives(tmp_path / "again.npz", negatives, events)
    with pytest.raises(ValueError, match="holds the negatives of other events"):
        load_negatives(tmp_path / "kept" / "negatives.npz", [event([2, 5], 8)])
