"""The test of a system: the same negatives every time, who is new, and how much attention goes to what is corrupted."""
# ruff: noqa: N803 - names carry shape suffixes

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.data.datasets import Cut
from benchmarks.quality.protocol import TestProtocol, attention_mass, load_protocol, popular_for_new_users
from training.evaluation.negatives import draw_negatives
from training.evaluation.ranking import Event, evaluation_events
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


def test_events_are_grouped_by_who_is_new_and_by_days_since_the_cut(data_of, sequences):
    data = data_of(sequences)
    known = replace(data.training_set, user_ids=data.training_set.user_ids[:5], item_ids=data.training_set.item_ids[:9])
    data = replace(data, cut=Cut(100, known, known))
    none, some = np.zeros(0, np.int64), np.array([1, 2])
    events = [Event(0, some, 9, 100), Event(0, some, 10, 109), Event(4, some, 3, 110), Event(5, none, 12, 150)]
    protocol = TestProtocol(data, events, [])

    found = {name: np.flatnonzero(mask).tolist() for name, mask in protocol.groups.items()}

    assert {"overall", "head items", "repeat"} <= found.keys()
    assert (found["known users"], found["cold users"], found["cold items"]) == ([0, 1, 2], [3], [1, 3])
    by_day = {name: events for name, events in found.items() if name.startswith("days")}
    assert by_day == {
        "days 1-10": [0, 1],
        "days 11-20": [2],
        "days 21-30": [],
        "days 31-40": [],
        "days 41-50": [],
        "days from 51 on": [3],
    }
    assert {name: each.tolist() for name, each in protocol.units.items()} == {
        "user": [0, 0, 4, 5],
        "item": [9, 10, 3, 12],
    }


def test_when_one_is_left_out_nobody_is_new(data_of, sequences):
    data = data_of(sequences)
    protocol = TestProtocol(data, evaluation_events(data.training_set, "test"), [])

    assert "cold users" not in protocol.groups
    assert protocol.units is None


def test_users_without_a_history_are_answered_with_what_is_popular():
    asked = []

    def score(events):
        asked.extend(event.user for event in events)
        return np.full((len(events), 3), 0.5, np.float32)

    def popular(events):
        return np.broadcast_to(np.array([3.0, 1.0, 2.0]), (len(events), 3))

    none, some = np.zeros(0, np.int64), np.array([1])
    scored = popular_for_new_users(score, popular)

    assert scored([Event(0, some, 1), Event(1, none, 1)]).tolist() == [[0.5] * 3, [3, 1, 2]]
    assert scored([Event(2, none, 1)]).tolist() == [[3, 1, 2]]
    assert scored([Event(3, some, 1)]).tolist() == [[0.5] * 3]
    assert asked == [0, 3]
