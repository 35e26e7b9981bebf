import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from training import kernel as module
from training.config import MASK, RankerConfig
from training.cooccurrence import cooccurrence, cosine, item_cosine, user_items
from training.dataset import arrange
from training.fit import new_ranker
from training.kernel import HistoryKernel, latest, nearest, strongest

NUM_ITEMS, LENGTH = 9, 3
# Items 8 and 9 have one user each, item 7 none; user 5 has an item twice.
SEQUENCES = [
    np.array(items) for items in ([1, 2, 3, 4], [2, 3, 1], [4, 5, 6, 1, 2], [6, 5], [3, 6, 2], [8, 9, 1, 8], [5, 4])
]
SEMANTIC_NS = np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)).astype(np.float32)


CONFIG = RankerConfig(NUM_ITEMS, 4, kernel_length=LENGTH)


def started_kernel(num_stored: int = 100, **changed: object) -> HistoryKernel:
    """A kernel over `SEQUENCES` whose weights differ for every place and kind."""
    kernel = HistoryKernel(replace(CONFIG, kernel_neighbours=num_stored, **changed))
    matrix_UN = user_items(SEQUENCES, NUM_ITEMS)
    num_N = np.asarray(matrix_UN.sum(0)).ravel()
    kernel.start_from(SEMANTIC_NS, cosine(cooccurrence(matrix_UN), num_N), num_N)
    torch.manual_seed(0)
    for parameter in kernel.parameters():
        torch.nn.init.normal_(parameter)
    return kernel


def naive_score(kernel: HistoryKernel, history: list[int], item: int, sequences: list[np.ndarray]) -> float:
    """The formula of the module as it reads, over co-occurrence counted from scratch."""
    both_NN = item_cosine(sequences, NUM_ITEMS).toarray()
    unit_NS = SEMANTIC_NS / np.linalg.norm(SEMANTIC_NS, axis=1, keepdims=True)
    total = 0.0
    for j, other in enumerate(reversed(history[-LENGTH:])):
        if other != item:
            near = max(float(unit_NS[other - 1] @ unit_NS[item - 1]), 0.0)
            total += kernel.log_semantic_J[j].exp().item() * near
            total += kernel.log_cooccurrence_J[j].exp().item() * both_NN[other - 1, item - 1]
    return total


def steps() -> list[tuple[int, list[int], int]]:
    """User, items before, and target of every training step."""
    return [
        (user, items[:place].tolist(), int(items[place]))
        for user, items in enumerate(SEQUENCES)
        for place in range(1, len(items))
    ]


def latest_of(histories: list[list[int]]) -> torch.Tensor:
    rows = [[*reversed(history[-LENGTH:]), 0, 0, 0][:LENGTH] for history in histories]
    return torch.tensor(rows)


def without(user: int) -> list[np.ndarray]:
    return [items for other, items in enumerate(SEQUENCES) if other != user]


def test_a_target_is_scored_as_if_its_user_had_never_been_counted():
    kernel = started_kernel()

    found_V = kernel.own(latest_of([history for _, history, _ in steps()]), torch.tensor([step[2] for step in steps()]))

    expected = [naive_score(kernel, history, target, without(user)) for user, history, target in steps()]
    assert found_V.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    # It is not what anyone else would see: counting the user makes the target look near.
    counted = [naive_score(kernel, history, target, SEQUENCES) for _, history, target in steps()]
    assert sum(counted) > 1.1 * sum(expected)


def test_shared_candidates_are_scored_as_if_the_user_had_never_been_counted():
    kernel = started_kernel()
    candidate_K = torch.tensor([4, 1, 7, 9, 6])

    found_VK = kernel.shared(latest_of([history for _, history, _ in steps()]), candidate_K)

    num_compared = 0
    for row, (user, history, _) in enumerate(steps()):
        for column, item in enumerate(candidate_K.tolist()):
            if item not in SEQUENCES[user]:  # the user's own are no candidates
                expected = naive_score(kernel, history, item, without(user))
                assert found_VK[row, column].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
                num_compared += 1
    assert num_compared > 40


def test_targets_and_candidates_are_on_one_scale():
    """An item that the user does not have scores the same as a target and as a candidate, when nothing is counted."""
    kernel = started_kernel()
    kernel.cooccurrence_values_NM.zero_()
    latest_VJ, item_V = torch.tensor([[3, 2, 1]]), torch.tensor([6])

    torch.testing.assert_close(kernel.own(latest_VJ, item_V), kernel.shared(latest_VJ, item_V)[0])


@pytest.mark.parametrize("num_stored", [2, 100])
def test_inference_adds_up_what_is_stored(num_stored):
    kernel = started_kernel(num_stored)
    latest_VJ, gate_VJ = torch.tensor([[3, 1, 0], [6, 8, 2]]), torch.tensor([[1.0, 0.5, 9.0], [0.2, 0.0, 1.0]])

    found_VN = kernel(latest_VJ, NUM_ITEMS + 2)
    gated_VN = kernel(latest_VJ, NUM_ITEMS + 2, gate_VJ)

    for found, gates in ((found_VN, torch.ones(2, 3)), (gated_VN, gate_VJ)):
        expected_VN = torch.zeros(2, NUM_ITEMS + 3)
        for row, items in enumerate([[3, 1], [6, 8, 2]]):
            for j, item in enumerate(items):
                for ids, values, weight in (
                    (kernel.semantic_ids_NM, kernel.semantic_values_NM, kernel.log_semantic_J),
                    (kernel.cooccurrence_ids_NM, kernel.cooccurrence_values_NM, kernel.log_cooccurrence_J),
                ):
                    for near, value in zip(ids[item].tolist(), values[item].tolist(), strict=True):
                        expected_VN[row, near] += value * weight[j].exp().item() * gates[row, j]
        torch.testing.assert_close(found, expected_VN)
        assert found[:, 0].eq(0).all()
        assert found[:, NUM_ITEMS + 1 :].eq(0).all()  # items newer than the model
    if num_stored > NUM_ITEMS:
        whole = [naive_score(kernel, [1, 3], item, SEQUENCES) for item in range(1, NUM_ITEMS + 1)]
        assert found_VN[0, 1 : NUM_ITEMS + 1].tolist() == pytest.approx(whole, rel=1e-5, abs=1e-6)


def test_padding_and_items_newer_than_the_model_say_nothing():
    kernel = started_kernel()
    nothing_VJ = torch.tensor([[0, 0, 0], [NUM_ITEMS + 2, 0, NUM_ITEMS + 1]])

    assert kernel(nothing_VJ, NUM_ITEMS + 2).eq(0).all()
    assert kernel.own(nothing_VJ[:1], torch.tensor([2])).eq(0).all()
    assert kernel.shared(nothing_VJ[:1], torch.tensor([2, 3])).eq(0).all()


@pytest.mark.parametrize("is_trained", [True, False])
def test_the_weights_are_trained_by_targets_and_candidates_if_at_all(is_trained):
    for score in (
        lambda kernel: kernel.own(torch.tensor([[2, 1, 5]]), torch.tensor([3])),
        lambda kernel: kernel.shared(torch.tensor([[2, 1, 5]]), torch.tensor([3, 6])),
    ):
        kernel = started_kernel(kernel_is_trained=is_trained)
        found = score(kernel).sum()
        assert found.requires_grad is is_trained
        if is_trained:
            found.backward()
            assert kernel.log_semantic_J.grad.any()
            assert kernel.log_cooccurrence_J.grad.any()


@pytest.mark.parametrize("planted_split", ["validation", "test"])
def test_a_planted_validation_or_test_item_changes_nothing_stored(frames, tiny, planted_split):
    config = tiny("sasrec_grasp").with_switches(kernel_length=2, num_collaborative=2)
    planted = frames["events"].copy()
    planted.loc[planted["split"] == planted_split, "item_id"] = "2"

    before = new_ranker(arrange(frames), config).state_dict()
    after = new_ranker(arrange(frames | {"events": planted}), config).state_dict()

    stored = [name for name in before if name.startswith("kernel.") or name.endswith("collaborative_NM")]
    assert len(stored) == 8
    for name in stored:
        assert torch.equal(before[name], after[name]), name
    assert before["kernel.cooccurrence_values_NM"].any()


def test_what_training_sequences_hold_is_stored(training_set, tiny):
    kernel = new_ranker(training_set, tiny("sasrec").with_switches(kernel_length=2)).kernel

    # a trains on 1 2 3 4, b on 2 3, c on 4 5; 5 and 1 are their validation targets.
    assert kernel.num_users_N.tolist() == [1, 1, 2, 2, 2, 1, 1]
    assert kernel.cooccurrence_ids_NM[5].tolist() == [4, 0, 0, 0, 0, 0]
    assert kernel.cooccurrence_values_NM[5, 0].item() == pytest.approx(1 / math.sqrt(2))
    assert kernel.cooccurrence_values_NM[6].eq(0).all()


def test_the_latest_items_are_newest_first_and_a_hidden_one_is_padding():
    items_BT = torch.tensor([[0, 5, MASK, 7]])

    assert latest(items_BT, 3).tolist() == [[[0, 0, 0], [5, 0, 0], [0, 5, 0], [7, 0, 5]]]


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


def test_a_fresh_kernel_is_star_and_stores_no_more_than_there_is():
    kernel = HistoryKernel(replace(CONFIG, kernel_length=2, kernel_scale=7.0))

    semantic_J, cooccurrence_J = kernel.log_semantic_J.exp(), kernel.log_cooccurrence_J.exp()
    # Its weights, a = 0.3 and 0.7 per step back, times the scale.
    assert semantic_J.tolist() == pytest.approx([7 * 0.3, 7 * 0.3 * 0.7])
    assert cooccurrence_J.tolist() == pytest.approx([7 * 0.7, 7 * 0.7 * 0.7])
    assert kernel.semantic_ids_NM.shape == (NUM_ITEMS + 1, NUM_ITEMS)
