"""The best candidates, with every item scored and with an index."""

import logging

import numpy as np
import pytest
import torch

from serving.ranking.candidates import NO_ADDITIONS, Additions, Candidates, Index, indexed_candidates
from serving.ranking.items import top

NUM, WIDTH, K = 6000, 16, 20


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(NUM, WIDTH)).astype(np.float32))


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).normal(size=(5, WIDTH)).astype(np.float32))


@pytest.fixture(scope="module")
def index(table) -> Index:
    return Index(table.numpy())


def added(rows: list[int], values: list[float]) -> Additions:
    return Additions(torch.tensor(rows), torch.tensor(values))


def by_sorting(table, state, additions, hidden, shown, k, takers=None) -> list[tuple[int, float]]:
    scores = (table @ state).numpy().astype(np.float64)
    for row, value in zip(additions.row_L.tolist(), additions.value_L.tolist(), strict=True):
        scores[row] += value
    if takers is not None:
        scores += takers.numpy()
    allowed = [row for row in range(NUM) if row not in hidden and (shown is None or shown[row])]
    return [(row, scores[row]) for row in sorted(allowed, key=lambda row: (-scores[row], row))[:k]]


@pytest.mark.parametrize("with_index", [False, True])
@pytest.mark.parametrize("share_shown", [None, 0.9, 0.3, 0.01])
def test_best_equals_sorting_all_scores(table, states, index, with_index, share_shown):
    random = np.random.default_rng(3)
    shown = None if share_shown is None else random.random(NUM) < share_shown
    candidates = Candidates(table, index if with_index else None)
    for state in states:
        worst = int((table @ state).argmin())  # nothing an index finds: the kernel alone brings it up
        additions = added([worst, 7, worst, 8], [60.0, 0.5, 60.0, -9.0])
        hidden = [row for row, _ in top((table @ state).numpy(), 5)]

        best = candidates.best(K, state, additions, hidden, shown)

        expected = by_sorting(table, state, additions, set(hidden), shown, K)
        assert [row for row, _ in best] == [row for row, _ in expected]
        assert [score for _, score in best] == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.fixture(scope="module")
def takers(table, states) -> torch.Tensor:
    """Most items have none; some that no index finds for any state have most."""
    random = np.random.default_rng(4)
    values = np.where(random.random(NUM) < 0.1, random.exponential(2, NUM), 0).astype(np.float32)
    far = torch.argsort((table @ states.T).max(1).values)[:20].numpy()
    values[far] = 40.0
    return torch.from_numpy(values)


@pytest.mark.parametrize("with_index", [False, True])
@pytest.mark.parametrize("share_shown", [None, 0.9, 0.01])
def test_what_takers_add_counts_for_every_item(table, states, index, takers, with_index, share_shown):
    random = np.random.default_rng(5)
    shown = None if share_shown is None else random.random(NUM) < share_shown
    candidates = Candidates(table, index if with_index else None, takers)
    for state in states:
        voted = int((table @ state).argmin())
        additions = added([voted, 7], [80.0, 0.5])
        hidden = [int(takers.argmax())]

        best = candidates.best(K, state, additions, hidden, shown)

        expected = by_sorting(table, state, additions, set(hidden), shown, K, takers)
        assert [row for row, _ in best] == [row for row, _ in expected]
        assert [score for _, score in best] == pytest.approx([score for _, score in expected], abs=1e-4)
        rows = np.array([0, 7, NUM - 1])
        all_scores = candidates.scores(state, additions)
        np.testing.assert_allclose(candidates.scores_of(rows, state, additions), all_scores[rows], atol=1e-5)


def test_takers_that_an_index_cannot_serve_leave_it_out(table, states, monkeypatch):
    """The recall is that of the scores that are served."""
    monkeypatch.setattr("serving.ranking.candidates.NUM_INDEX_ROWS", 1000)
    monkeypatch.setattr("serving.ranking.candidates.NUM_HOT_ROWS", 10)
    random = np.random.default_rng(6)
    takers = torch.from_numpy((random.random(NUM) * 60).astype(np.float32))

    assert indexed_candidates(table, states).index is not None
    assert indexed_candidates(table, states, takers).index is None
    assert indexed_candidates(table, states, torch.zeros(NUM)).index is not None


def test_every_item_is_scored_when_most_of_what_the_index_finds_is_hidden(table, states, index):
    order = torch.argsort(-(table @ states[0]))
    shown = np.ones(NUM, dtype=bool)
    shown[order[:4500].numpy()] = False  # all that an index finds, a quarter of the catalogue left

    best = Candidates(table, index).best(K, states[0], NO_ADDITIONS, (), shown)

    assert [row for row, _ in best] == order[4500 : 4500 + K].tolist()


def test_scores_of_some_rows_equal_those_of_all_rows(table, states):
    candidates, additions = Candidates(table), added([3, 9, 3, 11], [1.0, 2.0, 4.0, 8.0])
    rows = np.array([0, 3, 9, 10, NUM - 1])

    some = candidates.scores_of(rows, states[0], additions)

    np.testing.assert_allclose(some, candidates.scores(states[0], additions)[rows], atol=1e-5)
    assert candidates.scores_of(np.array([], dtype=np.int64), states[0], additions).shape == (0,)


def test_an_index_is_used_only_if_its_recall_is_high_enough(table, states, caplog):
    caplog.set_level(logging.INFO, "grasp.serving")
    assert indexed_candidates(table, states).index is not None
    assert "recall@100" in caplog.text

    outlying = table.clone()
    outlying[:16] *= 1e4  # sixteen values for a coordinate then tell the others apart no more
    assert indexed_candidates(outlying, states).index is None
    assert "every request scores all items" in caplog.text


def test_ties_are_broken_by_row():
    scores = np.array([1.0, 3.0, -np.inf, 3.0, 2.0, 3.0, 2.0], dtype=np.float32)

    assert [row for row, _ in top(scores, 2)] == [1, 3]
    assert [row for row, _ in top(scores, 4)] == [1, 3, 5, 4]
    assert [row for row, _ in top(scores, 50)] == [1, 3, 5, 4, 6, 0]
    assert top(np.array([]), 3) == []
