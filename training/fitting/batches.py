"""Batches: training sequences are cut into pieces, grouped by length, and given their targets.

A step is an item and its day (`training_set.training_steps`).

Shape suffixes:  B batch  T sequence length  S semantic size
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.data.training_set import TrainingSet, pad_left
from training.fitting.recipes import TrainConfig
from training.model.config import MASK, PADDING


@dataclass(frozen=True)
class Batch:
    """Input sequences, and the targets at the steps where `valid_BT` is true."""

    user_B: Tensor
    items_BT: Tensor
    target_BT: Tensor
    valid_BT: Tensor
    day_BT: Tensor  # of each target, in days since 1970-01-01
    known_BT: Tensor  # all training items of each user, padded
    semantic_BS: Tensor
    neighbour_BS: Tensor


def cut_into_pieces(
    steps: list[np.ndarray], shortest: int, longest: int, random: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """Cut each user's training steps into pieces of `shortest` to `longest` steps, at new places in every epoch.

    Lengths are log-uniform: short pieces are cheap and give more optimiser steps, long pieces train every position.
    Adjacent pieces share one step: the last target of one piece is the first input of the next.
    """
    result = []
    for user, of_user in enumerate(steps):
        end = len(of_user)
        while end > 1:
            size = int(np.exp(random.uniform(np.log(min(shortest, longest)), np.log(longest + 1))))
            result.append((user, of_user[max(0, end - size) : end]))
            end -= size - 1
    return result


def group_by_length(
    pieces: list[tuple[int, np.ndarray]], batch_size: int, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Users (B,) and steps (B, T, 2). Pieces of similar length share a batch, to reduce padding."""
    order = random.permutation(len(pieces))
    order = order[np.argsort([len(pieces[place][1]) for place in order], kind="stable")]
    for start in random.permutation(np.arange(0, len(order), batch_size)):
        chosen = [pieces[place] for place in order[start : start + batch_size]]
        yield np.array([user for user, _ in chosen]), pad_left([steps for _, steps in chosen])


def build_batch(
    training_set: TrainingSet, sequences: list[np.ndarray], users: np.ndarray, steps: np.ndarray, config: TrainConfig
) -> Batch:
    """Inputs and targets of pieces (B, T, 2). Targets are the next items, or for BERT4Rec the hidden items."""
    items_BT, day_BT = torch.from_numpy(steps).unbind(-1)
    if config.backbone == "bert4rec":
        valid_BT, target_BT = mask_items(items_BT, config.mask_share), items_BT
        items_BT = items_BT.masked_fill(valid_BT, MASK)
    else:
        items_BT, target_BT, day_BT = items_BT[:, :-1], items_BT[:, 1:], day_BT[:, 1:]
        valid_BT = items_BT != PADDING
        if config.targets == "last":
            valid_BT = torch.zeros_like(valid_BT)
            valid_BT[:, -1] = True
    return Batch(
        torch.from_numpy(users),
        items_BT,
        target_BT,
        valid_BT,
        day_BT,
        torch.from_numpy(pad_left([sequences[user] for user in users])),
        torch.from_numpy(training_set.user_semantic[users]),
        torch.from_numpy(training_set.user_neighbour[users]),
    )


def mask_items(items_BT: Tensor, share: float) -> Tensor:
    """Which items BERT4Rec has to predict. Half of the sequences hide only their last item, as inference does."""
    hidden_BT = (torch.rand(items_BT.shape) < share) & (items_BT != PADDING)
    only_last_B = (torch.rand(len(items_BT)) < 0.5) | ~hidden_BT.any(1)
    hidden_BT[only_last_B] = False
    hidden_BT[only_last_B, -1] = True
    return hidden_BT
