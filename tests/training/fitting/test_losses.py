# ruff: noqa: N803 - shape suffixes as in training/fitting/losses.py
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.fitting.batches import Batch
from training.fitting.losses import MaskedLogSumExp, batch_loss, gbce_power, sample_items
from training.fitting.recipes import TrainConfig
from training.model.config import RankerConfig

NUM_ITEMS = 6
# Two users; the second has padding, and an item (4) that is in no piece of this batch.
ITEMS_BT = torch.tensor([[1, 2, 3], [0, 5, 1]])
TARGET_BT = torch.tensor([[2, 3, 4], [0, 1, 2]])
DAY_BT = torch.tensor([[10, 11, 12], [0, 11, 20]])
KNOWN_BT = torch.tensor([[1, 2, 3, 4], [4, 5, 1, 2]])
STEPS = [(0, 0, 2), (0, 1, 3), (0, 2, 4), (1, 1, 1), (1, 2, 2)]  # row, step, target
LOSSES = ("cross_entropy", "sampled_softmax", "bce", "gbce")


def batch(known_BT: Tensor = KNOWN_BT) -> Batch:
    return Batch(torch.tensor([7, 3]), ITEMS_BT, TARGET_BT, ITEMS_BT != 0, DAY_BT, known_BT, *torch.zeros(2, 2, 4))


class FixedStates:
    """A ranker (and its enhancer) with given states and candidate vectors."""

    def __init__(self, *, scale: float = 1.0, auxiliary: Tensor | None = None) -> None:
        random = torch.Generator().manual_seed(0)
        self.state_BTD = scale * torch.randn(2, 3, 5, generator=random)
        self.candidate_ND = torch.randn(NUM_ITEMS + 1, 5, generator=random)
        self.config = RankerConfig(NUM_ITEMS, 4)
        self.enhancer = self
        self.auxiliary, self.seen = auxiliary, None

    def __call__(self, *_: Tensor) -> Tensor:
        return self.state_BTD

    def candidate_vectors(self, items_N: Tensor) -> Tensor:
        return self.candidate_ND[items_N]

    def auxiliary_loss(self, *seen: Tensor) -> Tensor | None:
        self.seen = seen
        return self.auxiliary

    def score(self, row: int, step: int, item: int) -> float:
        return float(self.state_BTD[row, step] @ self.candidate_ND[item])


class ProductOffset:
    """An offset that tells all days and items apart: a hundredth of their product."""

    def of_negatives(self, day_V: Tensor, item_K: Tensor) -> Tensor:
        return day_V[:, None] * item_K / 100

    def of_targets(self, day_P: Tensor, item_P: Tensor) -> Tensor:
        return day_P * item_P / 100


def loss_of(
    ranker: FixedStates, config: TrainConfig, given: Batch | None = None, offset: ProductOffset | None = None
) -> float:
    torch.manual_seed(0)
    return batch_loss(ranker, given or batch(), config, offset).item()


def config_of(loss: str, **changed: object) -> TrainConfig:
    return replace(TrainConfig("x"), loss=loss, **changed)


def naive_softmax(
    ranker: FixedStates, negatives: list[int], num_targets: int = 1, decay: float = 0.5, *, has_offset: bool = False
) -> float:
    """Each target against the negatives unknown to its user, in a loop."""

    def score(row: int, step: int, item: int) -> float:
        return ranker.score(row, step, item) + has_offset * int(DAY_BT[row, step]) * item / 100

    total = 0.0
    for row, step, _ in STEPS:
        for distance, target in enumerate(TARGET_BT[row, step : step + num_targets].tolist()):
            items = [target, *(item for item in negatives if item not in KNOWN_BT[row].tolist())]
            log_sum = math.log(sum(math.exp(score(row, step, item)) for item in items))
            total += decay**distance * (log_sum - score(row, step, target))
    return total / len(STEPS)


def test_cross_entropy_of_equal_scores_is_the_log_of_the_number_of_candidates():
    # Of six items each user has had four: the target and two others are candidates.
    assert loss_of(FixedStates(scale=0), config_of("cross_entropy")) == pytest.approx(math.log(3))
    nothing_known = batch(torch.zeros_like(KNOWN_BT))
    assert loss_of(FixedStates(scale=0), config_of("cross_entropy"), nothing_known) == pytest.approx(math.log(7))


def test_cross_entropy_equals_a_naive_loop():
    ranker = FixedStates()
    assert loss_of(ranker, config_of("cross_entropy")) == pytest.approx(naive_softmax(ranker, [*range(1, 7)]), rel=1e-5)


@pytest.mark.parametrize("num_targets", [2, 3, 9])
def test_later_targets_of_a_step_have_smaller_weights(num_targets):
    ranker = FixedStates()
    found = loss_of(ranker, config_of("cross_entropy", num_targets=num_targets, target_decay=0.5))

    assert found == pytest.approx(naive_softmax(ranker, [*range(1, 7)], num_targets), rel=1e-5)
    assert found > loss_of(ranker, config_of("cross_entropy"))


@pytest.mark.parametrize("num_targets", [1, 3])
def test_all_candidates_of_a_step_have_the_offset_of_the_day_of_its_own_target(num_targets):
    """Later targets have it, too: on their own days more would be known than negatives are judged by."""
    ranker, config = FixedStates(), config_of("cross_entropy", num_targets=num_targets, target_decay=0.5)

    found = loss_of(ranker, config, offset=ProductOffset())

    assert found == pytest.approx(naive_softmax(ranker, [*range(1, 7)], num_targets, has_offset=True), rel=1e-5)
    assert found != pytest.approx(loss_of(ranker, config), rel=1e-2)


@pytest.mark.parametrize("loss", ["bce", "gbce"])
def test_losses_without_a_softmax_have_no_offset(loss):
    assert loss_of(FixedStates(), config_of(loss), offset=ProductOffset()) == loss_of(FixedStates(), config_of(loss))


@pytest.mark.parametrize("num_negatives", [1, 3, 5])
def test_sampled_softmax_equals_a_naive_loop_over_what_was_drawn(num_negatives):
    ranker = FixedStates()
    torch.manual_seed(0)
    drawn = sample_items(NUM_ITEMS, num_negatives).tolist()

    found = loss_of(ranker, config_of("sampled_softmax", num_negatives=num_negatives))

    assert found == pytest.approx(naive_softmax(ranker, drawn), rel=1e-5)


def test_sampled_softmax_over_all_items_is_cross_entropy():
    every = [loss_of(FixedStates(), config_of("sampled_softmax", num_negatives=num)) for num in (6, 2048)]

    assert every == [loss_of(FixedStates(), config_of("cross_entropy"))] * 2


@pytest.mark.parametrize("loss", LOSSES)
def test_a_users_own_items_are_never_negatives(loss):
    """Their scores have no effect: for user 3 these are items 1, 2, 4 and 5, whether targets or not."""
    ranker, changed = FixedStates(), FixedStates()
    own_only = replace(batch(), valid_BT=torch.tensor([[False] * 3, [False, True, False]]))  # target 1
    changed.candidate_ND[[2, 4, 5]] += 100
    seeds = range(5)

    before = [loss_of(ranker, config_of(loss, num_negatives=3 + seed % 3), own_only) for seed in seeds]
    after = [loss_of(changed, config_of(loss, num_negatives=3 + seed % 3), own_only) for seed in seeds]

    assert before == after
    changed.candidate_ND[[3, 6]] += 100  # ... while the others are
    assert loss_of(changed, config_of(loss, num_negatives=6), own_only) != before[0]


def test_the_positive_of_a_drawn_target_counts_once():
    """A target among the shared negatives belongs to the user and so is not a negative."""
    ranker = FixedStates()
    one_step = replace(batch(), valid_BT=torch.tensor([[True, False, False], [False] * 3]))
    others = [math.exp(ranker.score(0, 0, item)) for item in (5, 6)]
    own = math.exp(ranker.score(0, 0, 2))

    found = loss_of(ranker, config_of("cross_entropy"), one_step)

    assert found == pytest.approx(-math.log(own / (own + sum(others))), rel=1e-5)


@pytest.mark.parametrize(
    ("num_negatives", "num_items", "calibration", "power"),
    [
        (10, 101, 0.0, 1.0),  # not calibrated: plain BCE
        (10, 101, 1.0, 0.1),  # fully: the sampling rate
        (10, 101, 0.75, 0.325),
        (256, 3417, 0.75, 0.25 + 0.75 * 256 / 3416),  # 256 negatives on MovieLens-1M
        (100, 101, 0.75, 1.0),  # every item drawn: nothing to correct
    ],
)
def test_the_power_of_gbce_follows_the_paper(num_negatives, num_items, calibration, power):
    found = gbce_power(num_negatives=num_negatives, num_items=num_items, calibration=calibration)
    assert found == pytest.approx(power)


def test_gbce_equals_a_naive_loop():
    ranker = FixedStates()
    torch.manual_seed(0)
    drawn = sample_items(NUM_ITEMS, 4).tolist()
    total = 0.0
    for row, step, target in STEPS:
        total -= 0.85 * math.log(1 / (1 + math.exp(-ranker.score(row, step, target))))  # 1 - 0.75 (1 - 4/5)
        for item in set(drawn) - set(KNOWN_BT[row].tolist()):
            total -= math.log(1 - 1 / (1 + math.exp(-ranker.score(row, step, item))))

    assert loss_of(ranker, config_of("gbce", num_negatives=4)) == pytest.approx(total / len(STEPS), rel=1e-5)


def test_bce_draws_unknown_items_and_no_negative_if_there_is_none():
    ranker = FixedStates()
    # The first user has all items; for the second only item 6 is left.
    known_BT = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 0]])
    total = 0.0
    for row, step, target in STEPS:
        total -= math.log(1 / (1 + math.exp(-ranker.score(row, step, target))))
        if row == 1:
            total -= math.log(1 - 1 / (1 + math.exp(-ranker.score(row, step, 6))))

    assert loss_of(ranker, config_of("bce"), batch(known_BT)) == pytest.approx(total / len(STEPS), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_auxiliary_loss_is_added(loss):
    plain, added = FixedStates(), FixedStates(auxiliary=torch.tensor(0.25))

    assert loss_of(added, config_of(loss)) == pytest.approx(loss_of(plain, config_of(loss)) + 0.25)
    item_N, state_BD, user_B = added.seen
    assert item_N.tolist() == [1, 2, 3, 4]
    assert torch.equal(state_BD, added.state_BTD[:, -1])
    assert user_B.tolist() == [7, 3]


def test_negatives_are_distinct_items_without_padding():
    assert sorted(sample_items(5, 5).tolist()) == [1, 2, 3, 4, 5]
    assert len(set(sample_items(50, 20).tolist())) == 20


def test_a_batch_whose_negatives_are_all_known_still_has_a_gradient():
    ranker = FixedStates()
    ranker.state_BTD.requires_grad_()
    everything = torch.arange(1, 7).expand(2, 6)

    for loss in LOSSES:
        ranker.state_BTD.grad = None
        batch_loss(ranker, batch(everything), config_of(loss)).backward()
        assert ranker.state_BTD.grad.isfinite().all(), loss


def test_bce_of_equal_scores_is_twice_log_two():
    assert loss_of(FixedStates(scale=0), config_of("bce")) == pytest.approx(-2 * float(F.logsigmoid(torch.tensor(0.0))))


def test_the_masked_log_sum_exp_is_that_of_torch_with_its_gradient():
    torch.manual_seed(0)
    state_VD, item_KD = torch.randn(7, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    is_masked_VK = torch.rand(7, 9) < 0.4
    is_masked_VK[:, 0] = False
    weight_V = torch.randn(7)
    gradients = []
    for log_sum_exp in (MaskedLogSumExp.apply, lambda score, mask: score.masked_fill(mask, -torch.inf).logsumexp(1)):
        value_V = log_sum_exp(100 * state_VD @ item_KD.T, is_masked_VK)
        gradients.append((value_V.detach(), *torch.autograd.grad((weight_V * value_V).sum(), (state_VD, item_KD))))
    for ours, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs)


def test_a_user_with_all_items_has_no_negatives_and_a_finite_gradient():
    score_VK = torch.zeros(1, 3, requires_grad=True)
    value_V = MaskedLogSumExp.apply(score_VK * 1, torch.ones(1, 3, dtype=torch.bool))
    assert value_V.tolist() == [-math.inf]
    [gradient_VK] = torch.autograd.grad(torch.logaddexp(value_V, torch.ones(1)).sum(), score_VK)
    assert gradient_VK.tolist() == [[0, 0, 0]]
