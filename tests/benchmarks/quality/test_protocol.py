"""The test protocol: the same negatives every time, and how much attention goes to what is corrupted."""
# ruff: noqa: N803 - names carry shape suffixes

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from benchmarks.quality.protocol import attention_mass, load_protocol
from training.evaluation.negatives import draw_negatives
from training.evaluation.ranking import evaluation_events
from training.model.config import RankerConfig

WRONG = 3  # an item whose vector is not its own


@dataclass
class AttendingRanker:
    """Looks at `WRONG` a quarter as much as at all else."""

    config: RankerConfig

    def history_weights(self, items_BT: Tensor, *_: Tensor) -> Tensor:
        return torch.where(items_BT == WRONG, 0.2, 0.8)


def ranker(enhancer: str) -> AttendingRanker:
    return AttendingRanker(RankerConfig(num_items=12, semantic_size=6, num_components=6, enhancer=enhancer))


def test_attention_is_averaged_over_clean_and_over_corrupted_items(data_of, sequences):
    clean = data_of(sequences)
    wrong = clean.training_set.item_semantic.copy()
    wrong[WRONG - 1] += 1
    corrupted = replace(clean, training_set=replace(clean.training_set, item_semantic=wrong))
    events = evaluation_events(clean.training_set, "test")
    assert any(WRONG in event.history for event in events)

    mass = attention_mass(ranker("grasp"), corrupted, clean, events)

    assert mass == pytest.approx({"clean": 0.8, "corrupted": 0.2})
    assert attention_mass(ranker("grasp"), clean, clean, events).keys() == {"clean"}
    assert attention_mass(ranker("llm_esr"), corrupted, clean, events) is None


def test_negatives_are_drawn_once_and_shared(data_of, tmp_path, monkeypatch):
    data = data_of([[place + 1, place + 2, place + 3] for place in range(10)])
    seeds = []

    def few(events, num_items, seed):
        seeds.append(seed)
        return draw_negatives(events, num_items, num=5, seed=seed)

    monkeypatch.setattr("benchmarks.quality.protocol.draw_negatives", few)  # twelve items, not a hundred

    first, again = (load_protocol(data, tmp_path).negatives for _ in range(2))

    assert seeds == [0, 1, 2]
    assert [each.tolist() for each in first] == [each.tolist() for each in again]
    assert first[0].tolist() != first[1].tolist()
