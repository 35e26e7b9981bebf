"""The votes that a search of a release's moments gives."""

# ruff: noqa: N803 - shape suffixes

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp.moments import NUM_NEAREST, StateMoments, VoteRule, unit_states
from serving.ranking import moments as release_moments
from serving.ranking.candidates import Index
from serving.ranking.items import ItemSide
from serving.ranking.moments import (
    ROWS_FILE,
    STATES_FILE,
    ExactSearch,
    IndexedSearch,
    MomentRows,
    ReleaseMoments,
    load_moments,
)

NUM_ITEMS, WIDTH = 60, 16


def item_side(num: int = NUM_ITEMS, lacking: Sequence[int] = ()) -> ItemSide:
    """The rows of `lacking` are of items that the release lacks."""
    ids = [f"i{row}" for row in range(num)]
    is_there = ~np.isin(np.arange(num), lacking)
    return ItemSide(
        ids=ids,
        titles=ids,
        neighbour_ids=[[] for _ in ids],
        popularity_N=np.ones(num, int),
        semantic_NS=np.zeros((num, 2), np.float32),
        neighbour_NS=np.zeros((num, 2), np.float32),
        available_N=is_there,
        row_of={item_id: row for row, item_id in enumerate(ids) if is_there[row]},
        copies_of={},
    )


def states(num: int, seed: int = 2) -> np.ndarray:
    """Around some directions, as similar histories give."""
    random = np.random.default_rng(seed)
    around = random.normal(size=(40, WIDTH))[random.integers(0, 40, num)]
    return unit_states(around + 0.4 * random.normal(size=(num, WIDTH))).astype(np.float16)


def made_up(num: int, num_users: int = 40, seed: int = 1) -> MomentRows:
    random = np.random.default_rng(seed)
    return MomentRows(
        random.integers(0, num_users, num),
        random.integers(0, NUM_ITEMS + 1, num),
        states(num),
        np.sort(random.integers(0, 30, num))[::-1],
        {f"u{number}": number for number in range(num_users)},
    )


@pytest.mark.parametrize(("num", "exact_up_to"), [(30, 100), (6_000, 100_000), (6_000, 5_000)])
def test_votes_are_those_of_the_definition(num, exact_up_to, caplog):
    """Also where an index proposes the moments that are compared."""
    rule, rows = VoteRule(min_voters=2), made_up(num)
    moments = ReleaseMoments(rows, rule, exact_up_to)
    exact = StateMoments(rows.state_MD.astype(np.float32), rows.age_M, rows.user_M, rows.item_M)

    for row in range(0, num, num // 5):
        asking_D = 7 * rows.state_MD[row].astype(np.float32) + 0.01
        found = moments.votes("u3", asking_D)

        (expected,) = exact.votes((asking_D / np.linalg.norm(asking_D))[None], np.array([3]), rule.min_voters)
        assert len(found.items) and found.items.tolist() == (expected.items - 1).tolist()
        np.testing.assert_allclose(found.weights, expected.weights, atol=3e-6)


def rows_of(*moments: tuple[int, int, int]) -> MomentRows:
    """Moments of users u0, u1, ... : the user, the item's row, the axis that the state is near."""
    state_MD = unit_states(np.eye(WIDTH)[[axis for _, _, axis in moments]]).astype(np.float16)
    users, items = (np.array(each) for each in zip(*((user, item + 1) for user, item, _ in moments), strict=True))
    return MomentRows(users, items, state_MD, np.zeros(len(users), int), {f"u{number}": number for number in range(10)})


def near(axis: int, length: float = 1.0) -> np.ndarray:
    return (length * np.eye(WIDTH)[axis]).astype(np.float32)


def test_a_weight_is_the_sum_of_the_votes_whatever_the_length_of_the_state():
    moments = ReleaseMoments(rows_of((0, 5, 1), (1, 5, 1), (2, 6, 2)), VoteRule(min_voters=1))

    for length in (0.01, 1, 30):
        found = moments.votes("u9", near(1, length))
        assert found.items.tolist() == [5]  # a vote of e^-15 rounds to nothing
        assert found.weights.tolist() == pytest.approx([2], abs=1e-6)


def test_each_day_of_age_takes_from_the_vote():
    rows = replace(rows_of((0, 5, 1), (1, 6, 1)), age_M=np.array([10, 0]))

    found = ReleaseMoments(rows, VoteRule(min_voters=1)).votes("u9", near(1))

    assert found.items.tolist() == [6, 5]
    assert found.weights.tolist() == pytest.approx([1, np.exp(-15 * 0.004 * 10)], abs=1e-3)


def test_a_state_of_zeros_is_near_to_nothing():
    found = ReleaseMoments(rows_of((0, 5, 1)), VoteRule(min_voters=1)).votes("u9", near(1, 0))

    assert len(found.items) == 0


def test_only_other_users_vote():
    moments = ReleaseMoments(rows_of((0, 5, 1), (1, 6, 1), (2, 6, 1)), VoteRule(min_voters=1))

    assert moments.votes("u0", near(1)).items.tolist() == [6]
    assert moments.votes("u1", near(1)).items.tolist() == [5, 6]
    assert moments.votes("a stranger", near(1)).items.tolist() == [6, 5]


@pytest.mark.parametrize(("min_voters", "voted"), [(2, [6]), (3, [])])
def test_an_item_needs_enough_voters_and_one_who_took_it_twice_is_one(min_voters, voted):
    rows = rows_of((0, 5, 1), (0, 5, 1), (0, 5, 1), (1, 6, 1), (2, 6, 1))

    assert ReleaseMoments(rows, VoteRule(min_voters=min_voters)).votes("u9", near(1)).items.tolist() == voted


def test_an_item_that_the_release_lacks_gets_no_votes():
    assert ReleaseMoments(rows_of((0, -1, 1), (1, 4, 1)), VoteRule(min_voters=1)).votes("u9", near(1)).items == [4]


@pytest.mark.parametrize("search", [ExactSearch, IndexedSearch])
def test_of_equally_near_moments_the_latest_vote(search):
    state_MD = np.repeat(states(1), 1_500, axis=0)

    near_V, similarity_V = search(state_MD, np.zeros(1_500, np.float32)).nearest(state_MD[0].astype(np.float32))

    assert near_V.tolist() == list(range(1_500 - NUM_NEAREST, 1_500))
    assert similarity_V == pytest.approx(1, abs=1e-3)


def test_an_index_is_used_if_its_recall_is_high_enough(caplog):
    rows = made_up(6_000)

    with caplog.at_level(logging.INFO, "grasp.serving"):
        moments = ReleaseMoments(rows, VoteRule(), exact_up_to=5_000)

    assert isinstance(moments._search, IndexedSearch)
    assert "index of 6,000 moments built in" in caplog.text and "over 32 of their states" in caplog.text


def test_a_poor_index_is_not_used(caplog, monkeypatch):
    class PoorIndex(Index):
        def search(self, state_D: np.ndarray, num: int) -> np.ndarray:
            return super().search(-state_D, num)

    monkeypatch.setattr(release_moments, "Index", PoorIndex)
    rows, rule = made_up(6_000), VoteRule()

    poor = ReleaseMoments(rows, rule, exact_up_to=5_000)

    assert "is below 0.98: every request is compared with all of them instead" in caplog.text
    expected, found = (each.votes("u1", near(1)) for each in (ReleaseMoments(rows, rule), poor))
    assert found.items.tolist() == expected.items.tolist()


def test_the_recall_of_an_index_is_that_of_the_nearest_moments():
    state_MD, cost_M = states(6_000), np.linspace(0.12, 0, 6_000, dtype=np.float32)
    exact = ExactSearch(state_MD, cost_M)

    class Half:
        def nearest(self, state_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            near_V, similarity_V = exact.nearest(state_D)
            return near_V[::2], similarity_V[::2]

    asking = state_MD[:5].astype(np.float32)
    assert release_moments.recall(Half(), state_MD, cost_M, asking) == pytest.approx(0.5)
    assert release_moments.recall(exact, state_MD, cost_M, asking) == 1


@pytest.fixture
def folder(tmp_path: Path, moment_table) -> Path:
    """The moments of a release: three, of items i3, one that the release lacks, and i1."""
    moments = [("ü", "i3", ["i1"]), ("u1", "gone", ["i0"]), ("ü", "i1", ["i2"])]
    pq.write_table(moment_table("1998-03-01", moments), tmp_path / ROWS_FILE)
    np.save(tmp_path / STATES_FILE, states(3))
    return tmp_path


def test_moments_are_read_in_their_order(folder: Path):
    rows = load_moments(folder, item_side(lacking=[7]), "1998-03-03")

    assert (len(rows), rows.item_M.tolist()) == (3, [4, 0, 2])
    assert [rows.number_of[each] for each in ("ü", "u1", "ü")] == rows.user_M.tolist()
    assert rows.age_M.tolist() == [2, 2, 2]
    np.testing.assert_array_equal(rows.state_MD, states(3))


@pytest.mark.parametrize("spoilt", [states(2), states(3).astype(np.float32), states(3)[0]])
def test_states_of_other_moments_are_refused(folder: Path, spoilt: np.ndarray):
    np.save(folder / STATES_FILE, spoilt)

    with pytest.raises(ValueError, match=f"{folder / STATES_FILE} does not hold a float16 state for each of 3 moments"):
        load_moments(folder, item_side(), "1998-03-03")


@pytest.mark.parametrize("name", [ROWS_FILE, STATES_FILE])
@pytest.mark.parametrize("damage", [lambda file: file.write_text("no table"), lambda file: file.unlink()])
def test_a_damaged_folder_of_moments_is_named(folder: Path, name: str, damage):
    damage(folder / name)

    with pytest.raises(ValueError, match=f"{folder} cannot be read as moments"):
        load_moments(folder, item_side(), "1998-03-03")


def test_a_table_without_users_is_named(folder: Path):
    pq.write_table(pa.table({"item_id": ["i1"] * 3}), folder / ROWS_FILE)

    with pytest.raises(ValueError, match=f"{folder / ROWS_FILE} lacks the columns event_time, user_id"):
        load_moments(folder, item_side(), "1998-03-03")
