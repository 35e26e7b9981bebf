from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from grasp.days import end_of
from training import build_training_set
from training.build_training_set import align_features, assign_splits
from training.command import check_days
from training.data.training_set import load_training_set, require_training_set, to_training_set, write_training_set

CUTOFF = end_of("1998-02-28")


def interactions(*rows: tuple[str, str, int, int]) -> pd.DataFrame:
    """Rows of (user, item, minutes after the cutoff, row number)."""
    return pd.DataFrame(
        [(user, item, CUTOFF + timedelta(minutes=minutes), number) for user, item, minutes, number in rows],
        columns=["user_id", "item_id", "event_time", "row_number"],
    )


def splits(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(assign_splits(frame, CUTOFF)[["user_id", "item_id", "split"]].itertuples(index=False, name=None))


FIVE = [("a", f"i{n}", n - 5, n) for n in range(5)]


def test_the_last_of_three_before_the_cutoff_validates_and_all_later_of_five_test():
    assert splits(interactions(*FIVE, ("a", "x", 1, 5), ("a", "y", 2, 6))) == [
        ("a", "i0", "train"),
        ("a", "i1", "train"),
        ("a", "i2", "train"),
        ("a", "i3", "train"),
        ("a", "i4", "validation"),
        ("a", "x", "test"),
        ("a", "y", "test"),
    ]


def test_users_with_two_items_only_train_and_with_four_have_no_test():
    two = interactions(("b", "i0", -2, 0), ("b", "i1", -1, 1), ("b", "x", 1, 2))
    four = interactions(*(("c", f"i{n}", n - 5, n) for n in range(4)), ("c", "x", 1, 5))

    assert splits(two) == [("b", "i0", "train"), ("b", "i1", "train")]
    assert [split for _, _, split in splits(four)] == ["train", "train", "train", "validation"]


def test_the_cutoffs_last_moment_is_before_it():
    assert splits(interactions(("a", "i", 0, 0))) == [("a", "i", "train")]


def test_a_user_who_only_came_later_is_left_out():
    assert splits(interactions(("a", "x", 1, 0))) == []


def test_equal_times_keep_the_row_number_order():
    rows = interactions(("a", "third", -1, 12), ("a", "first", -1, 3), ("a", "second", -1, 11))

    assert [item for _, item, _ in splits(rows)] == ["first", "second", "third"]


def test_a_planted_later_event_changes_nothing_that_is_trained_or_validated_on():
    before = assign_splits(interactions(*FIVE, ("b", "i0", -1, 0)), CUTOFF)
    after = assign_splits(
        interactions(*FIVE, ("b", "i0", -1, 0), ("a", "planted", 1, 9), ("b", "planted", 1, 9)), CUTOFF
    )

    pd.testing.assert_frame_equal(after[after["split"] != "test"].reset_index(drop=True), before)


def test_the_log_holds_every_interaction_each_users_in_order(settings, monkeypatch):
    """Users without features and items that are newer than the cutoff, too: others see what they took."""
    rows = interactions(("late", "new", 9, 7), ("b", "i1", -1, 12), *FIVE, ("b", "i0", -1, 3), ("a", "new", 3, 5))
    monkeypatch.setattr(build_training_set, "read_interactions", lambda *_: rows)
    monkeypatch.setattr(
        build_training_set, "_read_partition", lambda *_: pa.table({"item_id": [f"i{n}" for n in range(5)]})
    )
    monkeypatch.setattr(build_training_set, "features_as_of", lambda *_: (pd.DataFrame(), pd.DataFrame()))

    log = build_training_set.build_tables(settings, "1998-04-22", "1998-02-28")["log"]

    wanted = [*(("a", f"i{n}") for n in range(5)), ("a", "new"), ("b", "i0"), ("b", "i1"), ("late", "new")]
    assert list(log[["user_id", "item_id"]].itertuples(index=False, name=None)) == wanted


def test_users_of_the_log_without_features_are_numbered_after_the_others(frames):
    rows = [("0", "6"), ("c", "new"), ("z", "6"), ("z", "2")]  # of whom only c has features
    later = pd.DataFrame(
        [(user, item, CUTOFF + timedelta(days=1), 99) for user, item in rows], columns=frames["log"].columns
    )

    log = to_training_set(frames | {"log": pd.concat([frames["log"], later])}).log("test")

    found = list(zip(log.user_E.tolist(), log.item_E.tolist(), log.day_E.tolist(), strict=True))
    assert found[-4:] == [(0, 6, 10286), (3, 6, 10286), (4, 6, 10286), (4, 2, 10286)]  # an unknown item is in no log
    assert [pair[:2] for pair in found[:10]] == [
        *((0, item) for item in range(1, 6)),
        *((1, item) for item in (2, 3, 1)),
        *((2, item) for item in (4, 5)),
    ]


def test_features_are_joined_by_key_whatever_order_they_come_in():
    features = pd.DataFrame(
        {"user_id": ["b", "a"], "semantic_embedding": [[2.0], [1.0]], "neighbour_embedding": [[1.0]] * 2}
    )

    joined = align_features(["a", "b"], "user_id", features, "1998-02-28")

    assert joined["user_id"].tolist() == ["a", "b"]
    assert joined["semantic_embedding"].tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("vectors", [{"a": [1.0]}, {"a": [1.0], "b": None}], ids=["dropped", "null"])
def test_a_user_without_features_is_an_error_that_counts_and_names(vectors):
    features = pd.DataFrame(
        {
            "user_id": list(vectors),
            "semantic_embedding": list(vectors.values()),
            "neighbour_embedding": [[1.0]] * len(vectors),
        }
    )
    with pytest.raises(ValueError, match="1 of 2 user_ids have no features as of 1998-02-28, the first is 'b'"):
        align_features(["a", "b"], "user_id", features, "1998-02-28")


def test_a_user_with_two_feature_rows_is_an_error():
    features = pd.DataFrame(
        {"user_id": ["a", "a"], "semantic_embedding": [[1.0]] * 2, "neighbour_embedding": [[1.0]] * 2}
    )
    with pytest.raises(ValueError, match="1 rows twice"):
        align_features(["a"], "user_id", features, "1998-02-28")


def test_users_and_items_are_numbered_and_sequences_cut(training_set):
    assert training_set.item_ids == ["1", "2", "3", "4", "5", "6"]
    assert [sequence.tolist() for sequence in training_set.sequences] == [[1, 2, 3, 4, 5, 0, 6], [2, 3, 1], [4, 5]]
    assert training_set.splits[1].tolist() == ["train", "train", "validation"]
    assert training_set.item_semantic.shape == (6, 4)
    assert [days.tolist() for days in training_set.days] == [[10285] * 5 + [10286] * 2, [10285] * 3, [10285] * 2]


def test_what_is_written_is_loaded_and_says_its_cutoff(frames, tmp_path):
    write_training_set(tmp_path, frames, "fingerprint", "1998-02-28")

    require_training_set(tmp_path, "1998-02-28")
    loaded, expected = load_training_set(tmp_path), to_training_set(frames)

    assert loaded.item_ids == expected.item_ids
    np.testing.assert_array_equal(loaded.user_neighbour, expected.user_neighbour)
    with pytest.raises(ValueError, match="built for the cutoff 1998-02-28, not 1998-03-01"):
        require_training_set(tmp_path, "1998-03-01")


def test_a_training_set_that_was_never_built_says_how_to_build_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m training\.build_training_set"):
        require_training_set(tmp_path, "1998-02-28")


def test_vectors_that_are_not_finite_are_refused(frames):
    frames["items"].at[2, "semantic_embedding"] = np.array([np.nan] * 4, np.float32)
    with pytest.raises(ValueError, match="semantic_embedding of items holds values that are not finite"):
        to_training_set(frames)


def test_the_cutoff_must_lie_before_the_day():
    with pytest.raises(ValueError, match="must lie before"):
        check_days("1998-02-28", "1998-02-28")
