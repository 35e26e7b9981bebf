# ruff: noqa: N803 - shape suffixes as in training/attention.py
import math
from dataclasses import replace

import pytest
import torch

from training.attention import Attention, allowed
from training.config import RankerConfig

CONFIG = RankerConfig(num_items=12, semantic_size=6, width=8, max_length=5, num_blocks=1, dropout=0.0)
ITEMS_BT = torch.tensor([[0, 3, 1, 7, 2], [5, 4, 9, 12, 6]])


def naive_answer(attention: Attention, query_D, keys_TD, mask_T, step):
    """`Att` of one user and step as the equation reads, in a loop, for one head."""
    config = attention.config
    steps = [s for s in range(len(mask_T)) if mask_T[s] and (s == step if config.mode == "gate" else s <= step)]
    logits = [attention.query(query_D) @ attention.key(keys_TD[s]) / math.sqrt(8) + attention.bias for s in steps]
    if config.activation == "sigmoid":
        weights = [1 / (1 + torch.exp(-logit)) for logit in logits]
    else:
        weights = [torch.exp(logit) / sum(torch.exp(other) for other in logits) for logit in logits]
    if config.activation == "sigmoid" and config.normalise == "mean":
        weights = [weight / len(steps) for weight in weights]
    if config.activation == "softmax" and config.normalise == "sum":
        weights = [weight * len(steps) for weight in weights]
    total = sum((w * attention.value(keys_TD[s]) for w, s in zip(weights, steps, strict=True)), torch.zeros(8))
    return attention.output(total)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normalise", ["sum", "mean"])
@pytest.mark.parametrize("mode", ["prefix", "gate"])
def test_attention_equals_the_equation_in_a_naive_loop(activation, normalise, mode):
    torch.manual_seed(0)
    attention = Attention(replace(CONFIG, activation=activation, normalise=normalise, mode=mode))
    query_BQD, keys_BTD = torch.randn(2, 1, 8), torch.randn(2, 5, 8)
    mask_BT = ITEMS_BT != 0

    actual = attention(query_BQD, keys_BTD[:, None], mask_BT)

    for user in range(2):
        for step in range(5):
            expected = naive_answer(attention, query_BQD[user, 0], keys_BTD[user], mask_BT[user], step)
            torch.testing.assert_close(actual[user, step], expected)


def test_the_running_sum_equals_the_weights_over_two_copies():
    torch.manual_seed(0)
    attention = Attention(replace(CONFIG, num_heads=2, normalise="mean"))
    query_BQD, keys_BCTD, mask_BT = torch.randn(2, 1, 8), torch.randn(2, 2, 5, 8), ITEMS_BT != 0

    weights = attention.weights(query_BQD, keys_BCTD, allowed("prefix", mask_BT))
    values = attention.value(keys_BCTD).unflatten(-1, (2, 4))
    expected = attention.output(torch.einsum("bhqct,bcthk->bqhk", weights, values).flatten(-2))

    torch.testing.assert_close(attention(query_BQD, keys_BCTD, mask_BT), expected)


def test_the_bias_starts_at_minus_log_length_or_zero():
    assert Attention(CONFIG).bias.item() == pytest.approx(-math.log(5))
    assert Attention(replace(CONFIG, sigmoid_bias="zero")).bias.item() == 0


def test_what_a_step_may_read_follows_the_mode_and_never_is_padding():
    mask_BT = torch.tensor([[False, True, True]])

    assert {mode: allowed(mode, mask_BT)[0].int().tolist() for mode in ("prefix", "cross", "gate", "full")} == {
        "prefix": [[0, 0, 0], [0, 1, 0], [0, 1, 1]],
        "cross": [[0, 0, 0], [0, 1, 0], [0, 1, 1]],
        "gate": [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        "full": [[0, 1, 1]] * 3,
    }
