import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from training import kernel as module
from training.config import RankerConfig
from training.controls import star
from training.cooccurrence import item_cosine
from training.dataset import arrange
from training.evaluate import Event
from training.fit import KERNEL_SCALES, calibrate, new_ranker, validate
from training.kernel import DECAY, SEMANTIC_SHARE, HistoryKernel, nearest, strongest

NUM_ITEMS, LENGTH = 9, 3
# Items 8 and 9 have one user each, item 7 none; user 5 has an item twice.
SEQUENCES = [
    np.array(items) for items in ([1, 2, 3, 4], [2, 3, 1], [4, 5, 6, 1, 2], [6, 5], [3, 6, 2], [8, 9, 1, 8], [5, 4])
]
SEMANTIC_NS = np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)).astype(np.float32)


CONFIG = RankerConfig(NUM_ITEMS, 4, kernel_length=LENGTH)


def started_kernel(num_stored: int = 100, scale: float = 2.0) -> HistoryKernel:
    """A kernel over `SEQUENCES`."""
    kernel = HistoryKernel(replace(CONFIG, kernel_neighbours=num_stored))
    kernel.start_from(SEMANTIC_NS, item_cosine(SEQUENCES, NUM_ITEMS))
    kernel.scale.fill_(scale)
    return kernel


@pytest.mark.parametrize("num_stored", [2, 100])
def test_scores_add_up_what_is_stored_for_the_latest_items(num_stored):
    kernel = started_kernel(num_stored)

    found_BN = kernel(torch.tensor([[0, 0, 1, 3], [4, 2, 8, 6]]), NUM_ITEMS + 2)

    expected_BN = torch.zeros(2, NUM_ITEMS + 3)
    for row, newest_first in enumerate([[3, 1], [6, 8, 2]]):  # one more than `LENGTH` is not read
        for j, item in enumerate(newest_first):
            for ids, values, share in (
                (kernel.semantic_ids_NM, kernel.semantic_values_NM, SEMANTIC_SHARE),
                (kernel.cooccurrence_ids_NM, kernel.cooccurrence_values_NM, 1 - SEMANTIC_SHARE),
            ):
                for near, value in zip(ids[item].tolist(), values[item].tolist(), strict=True):
                    expected_BN[row, near] += 2 * share * DECAY**j * value
    expected_BN[:, 0] = 0
    torch.testing.assert_close(found_BN, expected_BN)


def test_with_all_neighbours_stored_the_kernel_is_star_times_the_scale(monkeypatch):
    kernel = started_kernel(scale=7.0)
    history = np.array([2, 1, 3])
    # STAR lets a negative cosine count against an item; stored are the nearest, and none is below 0.
    whole = star(SEQUENCES, np.abs(SEMANTIC_NS), mean=False)
    kernel.start_from(np.abs(SEMANTIC_NS), item_cosine(SEQUENCES, NUM_ITEMS))

    expected_N = whole([Event(0, history, 4)])[0]

    assert kernel(torch.from_numpy(history)[None], NUM_ITEMS)[0, 1:].tolist() == pytest.approx(7 * expected_N, rel=1e-5)


def test_padding_and_items_newer_than_the_model_say_nothing():
    nothing_BT = torch.tensor([[0, 0, 0], [NUM_ITEMS + 2, 0, NUM_ITEMS + 1]])

    assert started_kernel()(nothing_BT, NUM_ITEMS + 2).eq(0).all()


def test_the_scale_is_the_best_one_on_validation(training_set, tiny):
    ranker = new_ranker(training_set, tiny("sasrec").with_switches(kernel_length=2))
    assert ranker.kernel is not None

    found = calibrate(ranker, ranker.kernel, training_set)

    chosen = ranker.kernel.scale.item()
    by_scale = {}
    for scale in KERNEL_SCALES:
        ranker.kernel.scale.fill_(scale)
        by_scale[scale] = validate(ranker, training_set)["ndcg@10"]
    assert 0 in by_scale, "a kernel that does not help is left out"
    assert by_scale[chosen] == max(by_scale.values()) == found["ndcg@10"]


@pytest.mark.parametrize("planted_split", ["validation", "test"])
def test_a_planted_validation_or_test_item_changes_nothing_stored(frames, tiny, planted_split):
    config = tiny("sasrec_grasp").with_switches(kernel_length=2, num_collaborative=2)
    planted = frames["events"].copy()
    planted.loc[planted["split"] == planted_split, "item_id"] = "2"

    before = new_ranker(arrange(frames), config).state_dict()
    after = new_ranker(arrange(frames | {"events": planted}), config).state_dict()

    stored = [name for name in before if name.startswith("kernel.") or name.endswith("collaborative_NM")]
    assert len(stored) == 6
    for name in stored:
        assert torch.equal(before[name], after[name]), name
    assert before["kernel.cooccurrence_values_NM"].any()


def test_what_training_sequences_hold_is_stored(training_set, tiny):
    kernel = new_ranker(training_set, tiny("sasrec").with_switches(kernel_length=2)).kernel

    # a trains on 1 2 3 4, b on 2 3, c on 4 5; 5 and 1 are their validation targets.
    assert kernel.cooccurrence_ids_NM[5].tolist() == [4, 0, 0, 0, 0, 0]
    assert kernel.cooccurrence_values_NM[5, 0].item() == pytest.approx(1 / math.sqrt(2))
    assert kernel.cooccurrence_values_NM[6].eq(0).all()


def test_nearest_leaves_the_item_itself_out_and_nothing_counts_against(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)  # so that a block is not the whole
    vectors_NS = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 1.0], [-1.0, 0.0], [0.5, -1.0]])

    ids_NM, values_NM = nearest(vectors_NS, 2)

    for row in range(5):
        own = torch.nn.functional.cosine_similarity(vectors_NS[row], vectors_NS, dim=1)
        own[row] = 0
        expected = sorted(own.clamp(min=0).tolist(), reverse=True)[:2]
        assert values_NM[row].tolist() == pytest.approx(expected)
        assert row not in ids_NM[row][values_NM[row] > 0]


def test_strongest_keeps_the_largest_and_fills_with_padding():
    matrix = csr_matrix(np.array([[0, 0.3, 0.9, 0.5], [0, 0, 0, 0], [0.1, 0, 0, 0], [0.2, 0.2, 0.2, 0]]))

    ids, values = strongest(matrix, 2)

    assert ids.tolist() == [[3, 4], [0, 0], [1, 0], [1, 2]]
    assert values == pytest.approx(np.array([[0.9, 0.5], [0, 0], [0.1, 0], [0.2, 0.2]]))


def test_a_kernel_stores_no_more_than_there_is_and_begins_with_no_say():
    kernel = HistoryKernel(CONFIG)

    assert kernel.semantic_ids_NM.shape == (NUM_ITEMS + 1, NUM_ITEMS)
    assert kernel.scale == 0
