# ruff: noqa: N803 - shape suffixes as in training/model/attention.py
import math
from dataclasses import replace

import pytest
import torch

from training.model.attention import Attention, HolisticAttention, attention_mask
from training.model.config import RankerConfig

CONFIG = RankerConfig(num_items=12, semantic_size=6, width=6, context_width=8, num_heads=2, max_length=5, dropout=0.0)
MASK_BT = torch.tensor([[0, 3, 1, 7, 2], [5, 4, 9, 12, 6]]) != 0

MODES = ("prefix", "full", "gate", "cross")
# One query for all steps, or one per step; in mode `cross` each step has its own.
every_mode = pytest.mark.parametrize(
    ("mode", "num_queries"), [*((mode, 5) for mode in MODES), ("prefix", 1), ("full", 1), ("gate", 1)]
)


def steps_read(mode, mask_T, step):
    by_mode = {"full": range(len(mask_T)), "gate": [step]}
    return [s for s in by_mode.get(mode, range(step + 1)) if mask_T[s]]


def naive_answer(attention: Attention, query, keys_CTW, mask_T, step):
    """`Att` of one user and step by its equation, in loops over heads and read items."""
    config = attention.config
    read = [(c, s) for c in range(len(keys_CTW)) for s in steps_read(config.mode, mask_T, step)]
    query_W, key_CTW, value_CTW = attention.query(query), attention.key(keys_CTW), attention.value(keys_CTW)
    answers, size = [], config.context_width // config.num_heads
    for start in range(0, config.context_width, size):
        head = slice(start, start + size)
        logits = [query_W[head] @ key_CTW[c, s, head] / math.sqrt(size) + attention.bias for c, s in read]
        if not config.use_attention:
            weights = [1 / len(read) for _ in read]
        elif config.activation == "sigmoid":
            weights = [1 / (1 + torch.exp(-logit)) for logit in logits]
        else:
            weights = [torch.exp(logit) / sum(torch.exp(other) for other in logits) for logit in logits]
        if config.activation == "sigmoid" and config.normalise == "mean":
            weights = [weight / len(read) for weight in weights]
        if config.activation == "softmax" and config.normalise == "sum":
            weights = [weight * len(read) for weight in weights]
        answers.append(
            sum((w * value_CTW[c, s, head] for w, (c, s) in zip(weights, read, strict=True)), torch.zeros(4))
        )
    return attention.output(torch.cat(answers))


def check_against_naive_loop(attention: Attention, num_queries: int, num_copies: int) -> None:
    query_BQ = torch.randn(2, num_queries, 16 if attention.config.mode == "cross" else 8)
    keys_BCTW = torch.randn(2, num_copies, 5, 8)

    actual_BTW = attention(query_BQ, keys_BCTW, MASK_BT)

    for user in range(2):
        for step in range(5):
            query = query_BQ[user].expand(5, -1)[step]
            expected_W = naive_answer(attention, query, keys_BCTW[user], MASK_BT[user], step)
            torch.testing.assert_close(actual_BTW[user, step], expected_W)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normalise", ["sum", "mean"])
@pytest.mark.parametrize("num_copies", [1, 2])
@every_mode
def test_attention_equals_the_equation_in_a_naive_loop(activation, normalise, num_copies, mode, num_queries):
    torch.manual_seed(0)
    attention = Attention(replace(CONFIG, activation=activation, normalise=normalise, mode=mode))

    check_against_naive_loop(attention, num_queries, num_copies)


@every_mode
def test_without_attention_the_result_is_a_mean(mode, num_queries):
    torch.manual_seed(0)

    check_against_naive_loop(Attention(replace(CONFIG, use_attention=False, mode=mode)), num_queries, num_copies=1)


@every_mode
def test_holistic_attention_equals_its_equations(mode, num_queries):
    torch.manual_seed(0)
    # If added to a trained embedding, its last layer would be zero.
    holistic = HolisticAttention(replace(CONFIG, mode=mode, item_representation="sem"))
    item_BTW, near_item_BTW = torch.randn(2, 2, 5, 8)
    user_BQW, near_user_BQW = torch.randn(2, 2, num_queries, 8)

    def ask(attention: Attention, query_BQW, asking_BTW, *keys):
        query_BTW = query_BQW.expand(2, 5, 8)
        query_BT = torch.cat([query_BTW, asking_BTW], -1) if mode == "cross" else query_BTW
        return attention(query_BT, torch.stack(keys, 1), MASK_BT)

    own_BTW = ask(holistic.self_attention, user_BQW, item_BTW, item_BTW)
    near_BTW = ask(holistic.similar_attention, near_user_BQW, near_item_BTW, near_item_BTW)
    both_BQW = holistic.global_query(torch.cat([user_BQW, near_user_BQW], -1))
    global_BTW = ask(holistic.global_attention, both_BQW, item_BTW, own_BTW, near_BTW)
    expected_BTD = holistic.mlp(torch.cat([item_BTW, own_BTW, near_BTW, global_BTW], -1))

    assert expected_BTD.shape == (2, 5, 6)
    torch.testing.assert_close(holistic(item_BTW, near_item_BTW, user_BQW, near_user_BQW, MASK_BT), expected_BTD)


def test_the_bias_starts_at_minus_log_length_or_zero():
    assert Attention(CONFIG).bias.item() == pytest.approx(-math.log(5))
    assert Attention(replace(CONFIG, sigmoid_bias="zero")).bias.item() == 0


def test_what_a_step_may_read_follows_the_mode_and_never_is_padding():
    mask_BT = torch.tensor([[False, True, True]])

    assert {mode: attention_mask(mode, mask_BT)[0].int().tolist() for mode in ("prefix", "cross", "gate", "full")} == {
        "prefix": [[0, 0, 0], [0, 1, 0], [0, 1, 1]],
        "cross": [[0, 0, 0], [0, 1, 0], [0, 1, 1]],
        "gate": [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        "full": [[0, 1, 1]] * 3,
    }
