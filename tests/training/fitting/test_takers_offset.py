from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from training.data.event_log import event_log
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import FreshFeatures
from training.fitting.takers_offset import TakersOffset
from training.fitting.training_loop import KERNEL_NDCG, fit, validate

DAY = 10_000
WEIGHTS_W = torch.tensor([0.0, 0.0, 1.0, 0.0, 2.0])  # of the windows of 7 and of 30 days


@pytest.fixture
def offset() -> TakersOffset:
    """Item 1 was taken by two users, 3 and 9 days before `DAY`; item 2 on `DAY` itself."""
    log = event_log(
        [np.array([1]), np.array([1, 2])],
        [np.array([DAY - 3]), np.array([DAY - 9, DAY])],
    )
    return TakersOffset(log, np.array([DAY, DAY + 1, DAY]), 3, WEIGHTS_W)


def test_the_offset_is_what_takers_of_the_day_before_add(offset: TakersOffset):
    found = offset.of_negatives(torch.tensor([DAY, DAY + 1, DAY]), torch.tensor([3, 1, 2]))

    before, after = [0, np.log(2) + 2 * np.log(3), 0], [0, np.log(2) + 2 * np.log(3), 3 * np.log(2)]
    assert found.numpy() == pytest.approx(np.array([before, after, before]), abs=1e-5)


def test_a_target_has_the_offset_of_the_day_of_its_step(offset: TakersOffset):
    found = offset.of_targets(torch.tensor([DAY, DAY + 1]), torch.tensor([2, 2]))

    assert found.tolist() == pytest.approx([0, 3 * np.log(2)], abs=1e-5)
    assert offset.of_targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)).tolist() == []


@pytest.fixture
def one_a_day(training_set: TrainingSet) -> TrainingSet:
    return replace(training_set, days=[DAY + np.arange(len(items)) for items in training_set.sequences])


def test_a_recipe_with_an_offset_is_validated_with_it(one_a_day, tiny):
    weights = (0.0, 0.0, 0.0, 0.0, -9.0)
    config = tiny("sasrec", takers_offset=weights, max_epochs=1, selection="with_kernel").with_switches(kernel_length=2)

    fitted = fit(one_a_day, config, 0, lambda *_: None)

    fitted.ranker.fresh.takers_weight_W.copy_(torch.tensor(weights))
    for votes in (fitted.ranker.fresh.vote_weight, fitted.ranker.fresh.state_vote_weight):
        votes.zero_()
    ask, features = partial(validate, fitted.ranker, one_a_day), FreshFeatures(one_a_day, "validation")
    with_kernel = {KERNEL_NDCG: fitted.metrics["ndcg@10"]}
    assert fitted.metrics == ask(fresh=features) != ask()
    assert fitted.metrics_without_kernel == ask(with_kernel=False, fresh=features) | with_kernel
    assert fitted.metrics_without_kernel != ask(with_kernel=False) | with_kernel


def test_a_recipe_with_an_offset_trains_other_weights(one_a_day, tiny):
    with_offset, without = (
        fit(one_a_day, tiny("sasrec", takers_offset=weights), 0, lambda *_: None).ranker
        for weights in ((0.0, 0.0, 0.0, 0.0, 5.0), ())
    )

    assert not torch.equal(with_offset.enhancer.item.weight, without.enhancer.item.weight)
