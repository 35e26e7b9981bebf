# ruff: noqa: N803 - shape suffixes as in training/model/llm_esr_backbones.py
"""Compressed padding gives the same states as LLM-ESR's padding of every sequence to `max_length`."""

import math

import pytest
import torch
from torch import Tensor

from training.model.config import RankerConfig
from training.model.llm_esr_backbones import LegacyBlock, LegacyGru, LegacyTransformer
from training.model.ranker import Ranker

MAX_LENGTH, WIDTH = 7, 8
LENGTHS = (1, 3, 5, 7)  # of users in one batch; the last one has no padding at all


def legacy_ranker(backbone: str, num_heads: int = 2) -> Ranker:
    torch.manual_seed(0)
    config = RankerConfig(
        12, 4, backbone, "legacy", WIDTH, num_heads=num_heads, max_length=MAX_LENGTH, dropout=0.5, enhancer="none"
    )
    ranker = Ranker(config).eval()
    for parameter in ranker.parameters():
        if parameter.ndim < 2:  # biases of zero and norms of one would hide errors
            torch.nn.init.normal_(parameter)
    return ranker


def inputs() -> tuple[Tensor, Tensor]:
    """Steps (B, T, D) that are zero where the mask (B, T) says padding."""
    mask_BT = torch.arange(MAX_LENGTH) >= MAX_LENGTH - torch.tensor(LENGTHS)[:, None]
    return torch.randn(4, MAX_LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)) * mask_BT[..., None], mask_BT


def naive_block(block: LegacyBlock, step_TD: Tensor, is_item_T: Tensor) -> Tensor:
    """q = LN(x), x = q + MHA(q, x, x), x = LN(x), x = x + FFN(x), pads zeroed; pads are keys like any other."""
    query_TD = block.attention_norm(step_TD)
    query, key, value = block.query(query_TD), block.key(step_TD), block.value(step_TD)
    size = WIDTH // block.num_heads
    heads = []
    for start in range(0, WIDTH, size):
        part = slice(start, start + size)
        weights_TT = (query[:, part] @ key[:, part].T / math.sqrt(size)).softmax(-1)
        heads.append(weights_TT @ value[:, part])
    step_TD = block.feed_forward_norm(query_TD + block.output(torch.cat(heads, -1)))
    return (step_TD + block.feed_forward(step_TD)) * is_item_T[:, None]


def naive_transformer(backbone: LegacyTransformer, step_TD: Tensor, is_item_T: Tensor) -> Tensor:
    position_T = is_item_T.cumsum(0)
    step_TD = (step_TD * math.sqrt(WIDTH) + backbone.position(position_T)) * is_item_T[:, None]
    for block in backbone.blocks:
        step_TD = naive_block(block, step_TD, is_item_T)
    return backbone.norm(step_TD)


def naive_gru(backbone: LegacyGru, step_TD: Tensor, is_item_T: Tensor) -> Tensor:
    """The gates as torch documents them, one step after the other, padding read as its own embedding."""
    weight_ih, weight_hh = backbone.gru.weight_ih_l0, backbone.gru.weight_hh_l0
    state_D, states = torch.zeros(WIDTH), []
    for step_D, is_item in zip(step_TD, is_item_T, strict=True):
        of_input = (weight_ih @ (step_D if is_item else backbone.padding)).chunk(3)
        of_state = (weight_hh @ state_D).chunk(3)
        reset_D, update_D = ((a + b).sigmoid() for a, b in zip(of_input[:2], of_state[:2], strict=True))
        new_D = (of_input[2] + reset_D * of_state[2]).tanh()
        state_D = (1 - update_D) * new_D + update_D * state_D
        states.append(state_D)
    return torch.stack(states)


@pytest.mark.parametrize(
    ("name", "naive"), [("sasrec", naive_transformer), ("bert4rec", naive_transformer), ("gru4rec", naive_gru)]
)
def test_compressed_padding_gives_the_states_of_padding_to_max_length(name, naive):
    backbone = legacy_ranker(name).backbone
    step_BTD, mask_BT = inputs()

    for row, length in enumerate(LENGTHS):
        expected_TD = naive(backbone, step_BTD[row], mask_BT[row])[-length:]
        for start in {0, MAX_LENGTH - length}:  # with all padding, and without any
            own = slice(row, row + 1), slice(start, None)
            torch.testing.assert_close(backbone(step_BTD[own], mask_BT[own])[0, -length:], expected_TD)
    together_BTD = backbone(step_BTD, mask_BT)
    expected_BD = torch.stack([naive(backbone, step_BTD[row], mask_BT[row])[-1] for row in range(4)])
    torch.testing.assert_close(together_BTD[:, -1], expected_BD)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_a_legacy_transformer_is_not_causal(name):
    ranker = legacy_ranker(name)
    step_BTD, mask_BT = inputs()
    changed_BTD = step_BTD.clone()
    changed_BTD[:, -1] += 1

    before, after = ranker.backbone(step_BTD, mask_BT), ranker.backbone(changed_BTD, mask_BT)

    assert not ranker.config.is_causal
    assert all(not torch.allclose(before[row, -2], after[row, -2]) for row in (1, 2, 3))


def test_a_legacy_gru_is_causal():
    ranker = legacy_ranker("gru4rec")
    step_BTD, mask_BT = inputs()
    changed_BTD = step_BTD.clone()
    changed_BTD[:, -1] += 1

    before, after = ranker.backbone(step_BTD, mask_BT), ranker.backbone(changed_BTD, mask_BT)

    assert ranker.config.is_causal
    torch.testing.assert_close(after[:, :-1][mask_BT[:, :-1]], before[:, :-1][mask_BT[:, :-1]])


def test_positions_are_counted_from_the_first_item():
    """Equal steps differ only by position, and padding has no position."""
    backbone = legacy_ranker("sasrec").backbone
    backbone.blocks = torch.nn.ModuleList()
    backbone.norm = torch.nn.Identity()
    mask_BT = torch.tensor([[False, False, True, True]])

    found_TD = backbone(torch.zeros(1, 4, WIDTH), mask_BT)[0]

    torch.testing.assert_close(found_TD[2:], backbone.position.weight[1:3])
    assert found_TD[:2].eq(0).all()


def test_padding_changes_the_states_of_legacy_backbones():
    """Legacy states depend on the amount of padding."""
    shorter = legacy_ranker("sasrec").backbone
    step_BTD, mask_BT = inputs()
    before = shorter(step_BTD[:1], mask_BT[:1])[:, -1]
    shorter.config = RankerConfig(12, 4, width=WIDTH, max_length=2 * MAX_LENGTH)

    assert not torch.allclose(shorter(step_BTD[:1], mask_BT[:1])[:, -1], before)


def test_every_matrix_starts_xavier_normal_and_padding_of_the_gru_like_an_item():
    torch.manual_seed(0)
    config = RankerConfig(4000, 4, "gru4rec", "legacy", 64, enhancer="none")
    ranker = Ranker(config)

    expected = math.sqrt(2 / (4001 + 64))
    assert ranker.enhancer.item.weight[1:].std().item() == pytest.approx(expected, rel=0.02)
    assert ranker.enhancer.item.weight[0].eq(0).all()
    assert ranker.backbone.padding.std().item() == pytest.approx(expected, rel=0.4)
    assert ranker.backbone.gru.weight_hh_l0.std().item() == pytest.approx(math.sqrt(2 / (192 + 64)), rel=0.05)
    assert ranker.backbone.gru.num_layers == 1
