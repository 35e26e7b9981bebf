"""The votes that a search of a release's moments gives."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from grasp.moments import NUM_NEAREST, Moments, VoteRule, Votes, centred, contexts
from serving.ranking import moments as release_moments
from serving.ranking.items import ItemSide
from serving.ranking.moments import MomentRows, ReleaseMoments, load_moments

NUM_ITEMS, SIZE = 60, 8


def item_side(num: int = NUM_ITEMS, lacking: Sequence[int] = ()) -> ItemSide:
    """Items whose vectors are not centred; the rows of `lacking` are of items that the release lacks."""
    vectors = np.random.default_rng(0).normal(size=(num, SIZE)).astype(np.float32) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[list(lacking)] = 0
    ids = [f"i{row}" for row in range(num)]
    is_there = ~np.isin(np.arange(num), lacking)
    return ItemSide(
        ids=ids,
        titles=ids,
        neighbour_ids=[[] for _ in ids],
        popularity_N=np.ones(num, int),
        semantic_NS=vectors,
        neighbour_NS=vectors,
        available_N=is_there,
        row_of={item_id: row for row, item_id in enumerate(ids) if is_there[row]},
        copies_of={},
    )


def made_up(num: int, num_users: int = 40, seed: int = 1) -> MomentRows:
    random = np.random.default_rng(seed)
    history_MH = random.integers(1, NUM_ITEMS + 1, (num, 8))
    history_MH[np.arange(8) >= random.integers(3, 9, num)[:, None]] = 0
    users = {f"u{number}": number for number in range(num_users)}
    return MomentRows(random.integers(0, num_users, num), random.integers(1, NUM_ITEMS + 1, num), history_MH, users)


def by_comparing_all(rows: MomentRows, items: ItemSide, user: int, history: Sequence[int], rule: VoteRule) -> Votes:
    """The votes by the definition that Spark and training use."""
    centred_NS = centred(items.semantic_NS)
    voting = Moments(contexts(rows.history_MH, centred_NS), rows.user_M, rows.item_M)
    newest = np.array(history[::-1][:8]) + 1
    (found,) = voting.votes(contexts(newest[None], centred_NS), np.array([user]), rule)
    return found


@pytest.mark.parametrize("text_share", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("num", [30, 20_500])
@pytest.mark.parametrize("history", [[4], [7, 7, 3], list(range(20, 40))])
def test_votes_are_those_of_the_definition(text_share, num, history):
    """Above 20,000 moments several blocks are prepared, and the nearest are sought among the likely ones."""
    rule, items, rows = VoteRule(text_share=text_share, min_voters=1), item_side(), made_up(num)

    found = ReleaseMoments(rows, items, rule).votes("u3", history)

    expected = by_comparing_all(rows, items, 3, history, rule)
    if text_share or num < NUM_NEAREST:  # by ids alone thousands are equally near, and any 500 of them may vote
        weights = dict(zip(expected.items - 1, expected.weights, strict=True))
        assert dict(zip(found.items, found.weights, strict=True)) == pytest.approx(weights, abs=2e-6)
    assert len(found.items) and found.weights.sum() <= 1 + 1e-4


@pytest.mark.parametrize("share_of_axes", [1.0, 0.5])
def test_axes_propose_where_moments_name_many_items(monkeypatch, share_of_axes):
    """With all axes the votes are those of the definition; with half of them nearly all of the votes are."""
    monkeypatch.setattr(release_moments, "MAX_NUMBERS", 10)
    monkeypatch.setattr(release_moments, "NUM_AXES", int(SIZE * share_of_axes))
    rule, items, rows = VoteRule(min_voters=1), item_side(), made_up(20_500)

    found = ReleaseMoments(rows, items, rule).votes("u3", [7, 9, 3])

    expected = by_comparing_all(rows, items, 3, [7, 9, 3], rule)
    weights = dict(zip(expected.items - 1, expected.weights, strict=True))
    shared = sum(min(weight, weights.get(item, 0)) for item, weight in zip(found.items, found.weights, strict=True))
    assert shared > (0.9999 if share_of_axes == 1 else 0.9)


def rows_of(*moments: tuple[int, int, list[int]]) -> MomentRows:
    """Moments of users u0, u1, ... : the user, the item's row, the rows before it, newest first."""
    history_MH = np.array([[*(row + 1 for row in before), *([0] * (8 - len(before)))] for _, _, before in moments])
    users = np.array([user for user, _, _ in moments])
    numbers = {f"u{number}": number for number in range(10)}
    return MomentRows(users, np.array([item + 1 for _, item, _ in moments]), history_MH, numbers)


def test_only_other_users_vote():
    rows = rows_of((0, 5, [1]), (1, 6, [1]), (2, 6, [1]))
    moments = ReleaseMoments(rows, item_side(), VoteRule(min_voters=1))

    assert moments.votes("u0", [1]).items.tolist() == [6]
    assert moments.votes("u1", [1]).items.tolist() == [5, 6]
    assert sorted(moments.votes("a stranger", [1]).items.tolist()) == [5, 6]


@pytest.mark.parametrize(("min_voters", "voted"), [(2, [6]), (3, [])])
def test_an_item_needs_enough_voters_and_one_who_took_it_twice_is_one(min_voters, voted):
    rows = rows_of((0, 5, [1]), (0, 5, [1]), (0, 5, [1]), (1, 6, [1]), (2, 6, [1]))

    assert ReleaseMoments(rows, item_side(), VoteRule(min_voters=min_voters)).votes("u9", [1]).items.tolist() == voted


def test_the_last_eight_items_make_a_moment_and_without_any_nobody_votes():
    moments = ReleaseMoments(made_up(300), item_side(), VoteRule(min_voters=1))

    long, short = moments.votes("u0", list(range(30))), moments.votes("u0", list(range(22, 30)))

    assert (long.items.tolist(), long.weights.tolist()) == (short.items.tolist(), short.weights.tolist())
    assert len(moments.votes("u0", []).items) == 0


def test_items_that_the_release_lacks_count_neither_in_histories_nor_in_the_mean():
    """The same votes as among the other items alone."""
    lacking, rows, rule = [50, 51, 52], made_up(300), VoteRule(min_voters=1)
    unknown = np.isin(rows.history_MH, [row + 1 for row in lacking])
    seen = MomentRows(
        rows.user_M,
        np.where(np.isin(rows.item_M, [row + 1 for row in lacking]), 0, rows.item_M),
        np.where(unknown, 0, rows.history_MH),
        rows.number_of,
    )
    whole = item_side(lacking=lacking)
    found = ReleaseMoments(seen, whole, rule).votes("u0", [4, 9])

    others = np.setdiff1d(np.arange(NUM_ITEMS), lacking)
    number_of = np.zeros(NUM_ITEMS + 1, int)
    number_of[others + 1] = np.arange(1, len(others) + 1)
    centred_NS = centred(whole.semantic_NS[others])
    voting = Moments(contexts(number_of[seen.history_MH], centred_NS), seen.user_M, number_of[seen.item_M])
    newest = number_of[np.array([[10, 5]])]
    (expected,) = voting.votes(contexts(newest, centred_NS), np.array([0]), rule)
    assert found.items.tolist() == others[expected.items - 1].tolist()
    np.testing.assert_allclose(found.weights, expected.weights, atol=2e-6)


def test_the_moments_of_a_folder_are_read_oldest_first(tmp_path: Path, moment_rows):
    folder = moment_rows(
        {
            "1998-03-02": [("ü", "i3", ["i1", "gone", "i2"])],
            "1998-03-01": [("u1", "i1", [f"i{row}" for row in range(20)]), ("ü", "gone", ["i5"])],
        }
    )

    rows = load_moments(folder, item_side(lacking=[7]))

    assert rows.item_M.tolist() == [2, 0, 4]
    assert rows.history_MH.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0], [6, *[0] * 7], [2, 0, 3, *[0] * 5]]
    assert [rows.number_of[each] for each in ("u1", "ü", "ü")] == rows.user_M.tolist()


def test_of_too_many_moments_the_latest_are_kept(tmp_path: Path, moment_rows, monkeypatch):
    monkeypatch.setattr(release_moments, "MAX_MOMENTS", 2)
    folder = moment_rows(
        {"1998-03-01": [("u1", "i1", ["i0"]), ("u1", "i2", ["i0"])], "1998-03-02": [("u1", "i3", ["i0"])]}
    )

    assert load_moments(folder, item_side()).item_M.tolist() == [3, 4]


@pytest.fixture
def moment_rows(tmp_path: Path, moment_table):
    """`moment_rows({day: [(user, item, history)]})`: a folder of a release with these moments."""

    def write(days: dict[str, list]) -> Path:
        for day, moments in days.items():
            pq.write_table(moment_table(day, moments), tmp_path / f"{day}-part-0.parquet")
        return tmp_path

    return write


def test_a_damaged_folder_of_moments_is_named(tmp_path: Path, moment_rows):
    file = moment_rows({"1998-03-01": [("u1", "i1", ["i0"])]}) / "1998-03-01-part-0.parquet"
    table = pq.read_table(file, partitioning=None)

    pq.write_table(table.drop_columns(["history_item_ids"]), file)
    with pytest.raises(ValueError, match=f"{tmp_path} lacks the columns history_item_ids"):
        load_moments(tmp_path, item_side())
    file.write_text("not a table")
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be read as moments"):
        load_moments(tmp_path, item_side())
