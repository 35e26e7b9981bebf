import pytest
import torch

from training.model.dropout import Dropout

ONES = torch.ones(400, 500)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_a_share_is_zero_and_the_mean_stays(share):
    torch.manual_seed(0)

    found = Dropout(share)(ONES)

    # Five standard deviations, plus the rounding of the share to 1/256.
    assert found.eq(0).float().mean().item() == pytest.approx(
        share, abs=5 * (share * (1 - share) / 200_000) ** 0.5 + 1 / 512
    )
    assert found.mean().item() == pytest.approx(1, abs=5 * (share / (1 - share) / 200_000) ** 0.5)
    assert found.unique().tolist() == pytest.approx([0, 1 / (1 - share)], rel=0.02)


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    dropped = Dropout(0.5)(ONES).eq(0).float()

    by_place = torch.corrcoef(dropped.T)[0, 1:]  # of the first column with every other, also within eight bytes
    assert by_place.abs().max() < 5 / 400**0.5
    assert dropped.mean(0).min() > 0.5 - 5 * 0.5 / 400**0.5
    assert dropped.mean(1).min() > 0.5 - 5 * 0.5 / 500**0.5


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (3, 0, 2), (2, 3, 5)])
def test_the_shape_is_kept(shape):
    values = torch.ones(shape)
    dropout = Dropout(0.5)

    found = dropout(values)

    assert found.shape == shape
    assert found.dtype == values.dtype
    assert set(found.flatten().tolist()) <= {0.0, 2.0}


def test_in_inference_and_with_share_zero_nothing_changes():
    values = torch.randn(50, 50)

    assert Dropout(0.9).eval()(values) is values
    assert Dropout(0.0)(values) is values


def test_what_is_dropped_depends_only_on_the_seed():
    dropout, found = Dropout(0.5), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(dropout(ONES))

    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    assert not torch.equal(found[2], dropout(ONES))


def test_the_gradient_is_the_mask():
    torch.manual_seed(0)
    values = torch.randn(20, 30, requires_grad=True)

    found = Dropout(0.25)(values)
    found.sum().backward()

    torch.testing.assert_close(found, values * values.grad)
    assert values.grad.unique().tolist() == pytest.approx([0, 4 / 3])


@pytest.mark.parametrize("share", [1.0, 1.5, -0.1])
def test_a_share_outside_zero_to_one_is_refused(share):
    with pytest.raises(ValueError, match=f"dropout {share} is not in "):
        Dropout(share)
