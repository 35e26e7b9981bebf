import pytest
import torch
from torch.nn import functional as F

from training.model.config import RankerConfig
from training.model.semantic_adapter import SemanticAdapter, whitening_map

VECTORS_NS = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7) * 0.01 + 1.0


def test_whitened_vectors_are_centred_uncorrelated_and_of_unit_variance():
    mixed_NS = VECTORS_NS @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    weight_DS, bias_D = whitening_map(mixed_NS, 3)

    found_ND = mixed_NS @ weight_DS.T + bias_D

    torch.testing.assert_close(found_ND.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(found_ND.T @ found_ND / 200, torch.eye(3), atol=1e-2, rtol=0)


def test_the_first_components_are_those_of_largest_variance():
    weight_DS, _ = whitening_map(VECTORS_NS, 2)

    assert weight_DS.abs().argmax(1).tolist() == [5, 4]


@pytest.mark.parametrize("size", [8, 6])
def test_missing_components_are_zero(size):
    weight_DS, bias_D = whitening_map(VECTORS_NS, size)
    found_ND = VECTORS_NS @ weight_DS.T + bias_D

    assert weight_DS.shape == (size, 6)
    assert found_ND[:, 6:].eq(0).all()
    assert (found_ND[:, :6].std(0) > 0.9).all()


def test_noise_is_not_amplified():
    """An axis below a hundredth of the largest variance stays below unit variance."""
    noisy_NS = VECTORS_NS.clone()
    noisy_NS[:, 0] = 1e-6 * torch.randn(200, generator=torch.Generator().manual_seed(1))
    weight_DS, bias_D = whitening_map(noisy_NS, 6)

    assert (noisy_NS @ weight_DS.T + bias_D)[:, 5].std() < 0.01


def test_vectors_that_are_all_the_same_whiten_to_zero():
    same_NS = torch.ones(5, 4)
    weight_DS, bias_D = whitening_map(same_NS, 2)

    torch.testing.assert_close(same_NS @ weight_DS.T + bias_D, torch.zeros(5, 2), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("num_components", "width"), [(5, 4), (4, 4), (3, 4), (128, 4)])
def test_an_adapter_starts_as_the_first_whitened_components(num_components, width):
    adapter = SemanticAdapter(RankerConfig(12, 6, num_components=num_components), width)
    adapter.initialise_from(VECTORS_NS)
    weight_DS, bias_D = whitening_map(VECTORS_NS, min(num_components, width))

    found_ND = adapter(adapter.to_components(VECTORS_NS))

    expected_ND = F.pad(VECTORS_NS @ weight_DS.T + bias_D, (0, width - len(bias_D)))
    torch.testing.assert_close(found_ND, expected_ND, atol=1e-3, rtol=0)


def test_an_adapter_trains_only_its_second_map():
    adapter = SemanticAdapter(RankerConfig(12, 6, num_components=5), 4)

    assert [name for name, _ in adapter.named_parameters()] == ["map.weight", "map.bias"]
    assert set(adapter.state_dict()) == {"weight_CS", "bias_C", "map.weight", "map.bias"}  # saved with the model
