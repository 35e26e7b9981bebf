import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from training.data.training_set import TrainingSet, to_training_set
from training.evaluation.baselines import star
from training.evaluation.ranking import Event, evaluation_events
from training.fitting import kernel_calibration
from training.fitting.kernel_calibration import KERNEL_WEIGHT_GRID, calibrate_kernel
from training.fitting.training_loop import new_ranker
from training.model import history_kernel
from training.model.config import RankerConfig
from training.model.history_kernel import KINDS, HistoryKernel, largest_entries, window_transitions
from training.model.ranker import Ranker

NUM_ITEMS, LENGTH, WEIGHTS = 9, 3, (2.0, 3.0, 5.0)
# Items 8 and 9 have one user each, item 7 none; two users have an item twice, one has more items than a window.
SEQUENCES = [
    np.array(items)
    for items in ([1, 2, 3, 4], [2, 3, 1], [4, 5, 6, 1, 2, 3, 5, 6], [6, 5], [3, 6, 2], [8, 9, 1, 8], [5, 4], [2])
]
SEMANTIC_NS = (np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)) * [2, 1, 1, 1] + 1).astype(np.float32)
CONFIG = RankerConfig(NUM_ITEMS, 4, kernel_length=LENGTH)


def started_kernel(num_stored: int = 100, weights: tuple[float, ...] = WEIGHTS) -> HistoryKernel:
    """A kernel over `SEQUENCES`."""
    kernel = HistoryKernel(replace(CONFIG, kernel_neighbours=num_stored))
    kernel.initialise_from(SEMANTIC_NS, SEQUENCES)
    kernel.weights_K.copy_(torch.tensor(weights))
    return kernel


def stored(kernel: HistoryKernel, kind: str) -> list[dict[int, float]]:
    """What is stored for each item, from 1 on, of any weight."""
    ids_NM, values_NM = kernel.get_buffer(f"{kind}_ids_NM"), kernel.get_buffer(f"{kind}_values_NM")
    return [
        {near: value for near, value in zip(ids, values, strict=True) if value}
        for ids, values in zip(ids_NM[1:].tolist(), values_NM[1:].tolist(), strict=True)
    ]


def every_pair(nearness: Callable[[int, int], float]) -> list[dict[int, float]]:
    """The same of a naive formula, an item to itself left out."""
    items = range(1, NUM_ITEMS + 1)
    found = [{x: nearness(a, x) for x in items if x != a} for a in items]
    return [{x: pytest.approx(value, rel=1e-4) for x, value in row.items() if value > 1e-6} for row in found]


def test_sparse_scores_equal_the_nonzero_scores():
    kernel = started_kernel()
    items_T = torch.tensor([4, 2, NUM_ITEMS + 1, 8, 6])  # the third is newer than the kernel

    item_L, value_L = kernel.sparse_scores(items_T)

    assert (item_L > 0).all()
    scores = torch.zeros(NUM_ITEMS + 2).index_add_(0, item_L, value_L)
    torch.testing.assert_close(scores, kernel(items_T[None], NUM_ITEMS + 1)[0])


@pytest.mark.parametrize("num_stored", [2, 100])
def test_scores_add_up_what_is_stored_for_the_latest_items(num_stored):
    kernel = started_kernel(num_stored)
    items_BT = torch.tensor([[0, 0, 1, 3], [4, 2, 8, 6]])

    expected_KBN = torch.zeros(3, 2, NUM_ITEMS + 3)
    for kind, name in enumerate(("semantic", "transition", "cooccurrence")):
        for row, newest_first in enumerate([[3, 1], [6, 8, 2]]):  # one more than `LENGTH` is not read
            for j, item in enumerate(newest_first):
                for near, value in stored(kernel, name)[item - 1].items():
                    expected_KBN[kind, row, near] += 0.7**j * value

    assert expected_KBN.any(2).all()
    torch.testing.assert_close(kernel.unweighted_scores(items_BT, NUM_ITEMS + 2), expected_KBN)
    expected_BN = 2 * expected_KBN[0] + 3 * expected_KBN[1] + 5 * expected_KBN[2]
    torch.testing.assert_close(kernel(items_BT, NUM_ITEMS + 2), expected_BN)


def test_transitions_within_a_window_are_those_that_a_loop_counts():
    occurrences = Counter(item for items in SEQUENCES for item in items.tolist())

    def nearness(a: int, x: int) -> float:
        total = 0.0
        for items in SEQUENCES:
            for i, j in product(range(len(items)), repeat=2):
                if (items[i], items[j]) == (a, x) and 1 <= j - i <= 5:
                    total += 0.6 ** (j - i - 1)
        return total / math.sqrt(max(occurrences[a] * occurrences[x], 1))

    found = stored(started_kernel(), "transition")

    assert found == every_pair(nearness)
    assert 6 in found[3]  # 6 comes after 4, and never before it
    assert 4 not in found[5]
    assert window_transitions(SEQUENCES, NUM_ITEMS).diagonal().tolist() == [0] * NUM_ITEMS  # 5, 6 and 8 come twice


def test_co_occurrence_is_what_a_loop_over_users_counts():
    takers = [{user for user, items in enumerate(SEQUENCES) if item in items} for item in range(NUM_ITEMS + 1)]

    def nearness(a: int, x: int) -> float:
        return len(takers[a] & takers[x]) / math.sqrt(max(len(takers[a]) * len(takers[x]), 1))

    assert stored(started_kernel(), "cooccurrence") == every_pair(nearness)


@pytest.mark.parametrize("num_components", [2, 256])
def test_meaning_is_the_cosine_of_whitened_vectors(monkeypatch, num_components):
    monkeypatch.setattr(history_kernel, "NUM_COMPONENTS", num_components)
    # The left singular vectors of centred vectors are the whitened components up to sign and length.
    whitened_NC = np.linalg.svd(SEMANTIC_NS - SEMANTIC_NS.mean(0), full_matrices=False)[0][:, :num_components]

    def nearness(a: int, x: int) -> float:
        own, other = whitened_NC[a - 1], whitened_NC[x - 1]
        return float(own @ other / np.linalg.norm(own) / np.linalg.norm(other))

    assert stored(started_kernel(), "semantic") == every_pair(nearness)


def test_with_all_neighbours_stored_common_users_count_as_in_star():
    kernel = started_kernel(weights=(0.0, 0.0, 7.0))
    history = np.array([2, 1, 3])

    expected_N = star(SEQUENCES, SEMANTIC_NS, semantic_share=0.0, mean=False)([Event(0, history, 4)])[0]

    assert kernel(torch.from_numpy(history)[None], NUM_ITEMS)[0, 1:].tolist() == pytest.approx(7 * expected_N, rel=1e-5)


@pytest.mark.parametrize("length", [1, 3, 9])
def test_what_an_item_adds_is_the_difference_without_it(length):
    kernel, items_T = started_kernel(), torch.arange(1, length + 1)

    loss_TR = torch.from_numpy(kernel.losses(items_T, range(1, kernel.num_rows)))

    whole_N = kernel(items_T[None], kernel.num_rows - 1)[0, 1:]
    for place in range(length):
        left_T = torch.cat([items_T[:place], items_T[place + 1 :]])
        without_N = kernel(left_T[None], kernel.num_rows - 1)[0, 1:] if len(left_T) else torch.zeros_like(whole_N)
        torch.testing.assert_close(loss_TR[place], whole_N - without_N, rtol=0, atol=1e-5)


def test_padding_and_newer_items_have_no_kernel_score():
    nothing_BT = torch.tensor([[0, 0, 0], [NUM_ITEMS + 2, 0, NUM_ITEMS + 1]])

    assert started_kernel()(nothing_BT, NUM_ITEMS + 2).eq(0).all()


# --- calibration


@pytest.fixture(scope="module")
def wandering() -> TrainingSet:
    """Sixty users who mostly take one of the next items and sometimes repeat an earlier one."""
    random, num_items = np.random.default_rng(6), 30
    sequences = [
        (random.integers(30) + random.choice([-9, -5, -1, 1, 2, 3, 7], size=9).cumsum()) % 30 + 1 for _ in range(60)
    ]
    vectors = random.normal(size=(4, 60, 6)).astype(np.float32)
    return TrainingSet(
        item_ids=[str(item) for item in range(num_items)],
        item_semantic=vectors[0, :num_items],
        item_neighbour=vectors[1, :num_items],
        popularity=np.ones(num_items),
        item_is_tail=np.zeros(num_items, bool),
        user_ids=[str(user) for user in range(60)],
        user_semantic=vectors[2],
        user_neighbour=vectors[3],
        user_is_tail=np.zeros(60, bool),
        sequences=sequences,
        splits=[np.array(["train"] * 7 + ["validation", "test"], object)] * 60,
        days=[np.arange(9)] * 60,
    )


def chance_against_a_hundred(ranker: Ranker, training_set: TrainingSet) -> float:
    """Mean of (1 - rank / N) ** 100, ranks from 0, over the validation targets, without the user's other items."""
    events = evaluation_events(training_set, "validation")
    items_BT = torch.from_numpy(np.stack([event.history for event in events]))
    users = torch.from_numpy(training_set.user_semantic), torch.from_numpy(training_set.user_neighbour)
    with torch.inference_mode():
        scores_BN = ranker.scores(items_BT, *users).tolist()
    total = 0.0
    for event, scores in zip(events, scores_BN, strict=True):
        others = {*range(1, len(scores))} - {event.target, *event.history.tolist()}
        rank = sum(scores[item] > scores[event.target] for item in others)
        total += (1 - rank / (len(scores) - 1)) ** 100
    return total / len(events)


@pytest.mark.parametrize("batch_size", [7, 256])
def test_the_weights_are_those_that_rank_the_validation_targets_best(wandering, tiny, monkeypatch, batch_size):
    monkeypatch.setattr(kernel_calibration, "BATCH_SIZE", batch_size)
    torch.manual_seed(0)
    ranker = new_ranker(wandering, tiny("sasrec").with_switches(kernel_length=3))

    calibrate_kernel(ranker, ranker.kernel, wandering)

    chosen = tuple(ranker.kernel.weights_K.tolist())
    by_weights = {}
    for weights in product(*(KERNEL_WEIGHT_GRID[kind] for kind in ("semantic", "transition", "cooccurrence"))):
        ranker.kernel.weights_K.copy_(torch.tensor(weights))
        by_weights[weights] = chance_against_a_hundred(ranker, wandering)
    assert chosen == max(by_weights, key=by_weights.__getitem__)
    assert any(event.target in event.history for event in evaluation_events(wandering, "validation"))


def test_a_kernel_that_does_not_help_gets_zero_weights(wandering, tiny, monkeypatch):
    def perfect(*_, **__):
        return lambda events: np.eye(30, dtype=np.float32)[[event.target - 1 for event in events]] * 1e6

    monkeypatch.setattr(kernel_calibration, "ranker_scorer", perfect)
    ranker = new_ranker(wandering, tiny("sasrec").with_switches(kernel_length=3))
    ranker.kernel.weights_K.fill_(1)

    calibrate_kernel(ranker, ranker.kernel, wandering)

    assert ranker.kernel.weights_K.eq(0).all()


# --- what is stored


@pytest.mark.parametrize("planted_split", ["validation", "test"])
def test_a_planted_validation_or_test_item_changes_nothing_stored(frames, tiny, planted_split):
    config = tiny("sasrec_grasp").with_switches(kernel_length=2, num_lenders=2)
    planted = frames["events"].copy()
    planted.loc[planted["split"] == planted_split, "item_id"] = "2"

    before = new_ranker(to_training_set(frames), config).state_dict()
    after = new_ranker(to_training_set(frames | {"events": planted}), config).state_dict()

    names = [f"kernel.{kind}_{part}_NM" for kind in KINDS for part in ("ids", "values")]
    assert {name for name in before if name.startswith("kernel.")} == {*names, "kernel.weights_K"}
    for name in (*names, "enhancer.lenders_NM", "enhancer.log_count_N"):
        assert before[name].any(), name
        assert torch.equal(before[name], after[name]), name


def test_what_training_sequences_hold_is_stored(training_set, tiny):
    kernel = new_ranker(training_set, tiny("sasrec").with_switches(kernel_length=2)).kernel

    # a trains on 1 2 3 4, b on 2 3, c on 4 5; 5 and 1 are their validation targets.
    of_two = math.sqrt(2)
    assert stored(kernel, "cooccurrence")[4:] == [{4: pytest.approx(1 / of_two)}, {}]
    assert kernel.cooccurrence_ids_NM[5].tolist() == [4, 0, 0, 0, 0, 0]
    assert stored(kernel, "transition") == [
        {2: pytest.approx(1 / of_two), 3: pytest.approx(0.6 / of_two), 4: pytest.approx(0.36 / of_two)},
        {3: pytest.approx(2 / 2), 4: pytest.approx(0.6 / 2)},
        {4: pytest.approx(1 / 2)},
        {5: pytest.approx(1 / of_two)},
        {},
        {},
    ]


def test_largest_entries_are_kept_and_rows_filled_with_padding():
    matrix = csr_matrix(np.array([[0, 0.3, 0.9, 0.5], [0, 0, 0, 0], [0.1, 0, 0, 0], [0.2, 0.2, 0.2, 0]]))

    ids, values = largest_entries(matrix, 2)

    assert ids.tolist() == [[3, 4], [0, 0], [1, 0], [1, 2]]
    assert values == pytest.approx(np.array([[0.9, 0.5], [0, 0], [0.1, 0], [0.2, 0.2]]))


def test_a_kernel_stores_at_most_all_items_and_starts_with_zero_weights():
    kernel = HistoryKernel(CONFIG)

    assert [kernel.get_buffer(f"{kind}_ids_NM").shape for kind in KINDS] == [(NUM_ITEMS + 1, NUM_ITEMS)] * 3
    assert kernel.weights_K.tolist() == [0, 0, 0]
