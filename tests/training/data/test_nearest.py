import pytest
import torch

from training.data import nearest
from training.data.nearest import nearest_rows

VECTORS_NS = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 1.0], [-1.0, 0.0], [0.5, -1.0]])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK_ROWS", 2)  # several blocks


@pytest.mark.parametrize("same_rows", [False, True])
def test_the_nearest_are_those_with_the_highest_cosine(same_rows):
    rows, cosines = nearest_rows(VECTORS_NS, VECTORS_NS, 3, same_rows=same_rows)

    for row in range(5):
        cosine_N = torch.nn.functional.cosine_similarity(VECTORS_NS[row], VECTORS_NS, dim=1)
        if same_rows:
            cosine_N[row] = -1
        assert cosines[row].tolist() == pytest.approx(sorted(cosine_N.tolist(), reverse=True)[:3], abs=1e-6)
        assert cosines[row].tolist() == pytest.approx(cosine_N[rows[row]].tolist(), abs=1e-6)


def test_a_row_is_not_its_own_neighbour_but_an_equal_row_is():
    twice_NS = VECTORS_NS[[0, 0, 1]]

    assert nearest_rows(twice_NS, twice_NS, 1, same_rows=True)[0].tolist() == [[1], [0], [0]]
    assert nearest_rows(VECTORS_NS[1:2], VECTORS_NS, 1)[0].tolist() == [[1]]


def test_zero_rows_have_cosine_zero_and_no_queries_give_no_rows():
    assert nearest_rows(torch.zeros(1, 2), VECTORS_NS, 2)[1].tolist() == [[0, 0]]
    assert nearest_rows(VECTORS_NS[:0], VECTORS_NS, 2)[0].shape == (0, 2)
