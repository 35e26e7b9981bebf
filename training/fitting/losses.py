"""The loss of a batch. It compares the targets of each step with negatives: items that the user never had.

    cross_entropy    against all items
    sampled_softmax  against uniform negatives shared by the batch
    bce              one uniform negative per step (SASRec)
    gbce             shared negatives; the probability of the positive to the power of beta (gSASRec, arXiv 2308.07192)

The two softmax losses can have several targets per step: the next item and those after it, with decaying weights.
This helps if the order is partly random, as among purchases of one day (similar to the dense all-action loss of
PinnerFormer, arXiv 2205.04507, section 3.3).

Shape suffixes:  B batch  T sequence length  V steps with a target  P pairs of a step and one of its targets
                 N items  K negatives  D state width
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.fitting.batches import Batch
from training.fitting.recipes import TrainConfig
from training.fitting.takers_offset import TakersOffset
from training.model.config import PADDING
from training.model.ranker import Ranker

MAX_DRAWS = 50  # of a bce negative; a user with nearly all items may then have no negative


def batch_loss(ranker: Ranker, batch: Batch, config: TrainConfig, offset: TakersOffset | None = None) -> Tensor:
    """Mean loss over the steps with a target, plus the auxiliary loss of the enhancer.

    The softmax losses add an `offset` to the scores, the others have none.
    """
    state_BTD = ranker(batch.items_BT, batch.semantic_BS, batch.neighbour_BS)
    target_V, state_VD = batch.target_BT[batch.valid_BT], state_BTD[batch.valid_BT]
    row_V = torch.arange(len(batch.user_B))[:, None].expand_as(batch.items_BT)[batch.valid_BT]
    num_items = ranker.config.num_items
    if config.loss == "bce":
        loss = _bce(ranker, batch, state_VD, target_V, row_V)
    else:
        use_all = config.loss == "cross_entropy" or config.num_negatives >= num_items
        negative_K = torch.arange(1, num_items + 1) if use_all else sample_items(num_items, config.num_negatives)
        target_VD, negative_KD = _candidate_vectors(ranker, target_V, negative_K)
        is_own_BK = _is_own(batch.known_BT, negative_K, num_items)
        score_VK, is_own_VK = state_VD @ negative_KD.T, is_own_BK[row_V]
        if config.loss == "gbce":
            beta = gbce_power(num_negatives=len(negative_K), num_items=num_items, calibration=config.calibration)
            positive_V = (state_VD * target_VD).sum(-1)
            score_VK = score_VK.masked_fill(is_own_VK, -torch.inf)
            loss = -(beta * F.logsigmoid(positive_V) + F.logsigmoid(-score_VK).sum(1)).mean()
        else:
            if offset is not None:
                score_VK = score_VK + offset.of_negatives(batch.day_BT[batch.valid_BT], negative_K)
            negatives_V: Tensor = MaskedLogSumExp.apply(score_VK, is_own_VK)
            loss = _softmax(state_VD, target_VD, negatives_V, batch, config, offset=offset)
    auxiliary = ranker.enhancer.auxiliary_loss(target_V.unique(), state_BTD[:, -1], batch.user_B)
    return loss if auxiliary is None else loss + auxiliary


class MaskedLogSumExp(torch.autograd.Function):
    """`score_VK.masked_fill(is_masked_VK, -inf).logsumexp(1)`, (V,), in half the time. It overwrites the scores.

    The scores of all items are most of a step's memory. So they are changed in place, and their softmax, which is the
    gradient, is kept instead of computed again.
    """

    @staticmethod
    def forward(ctx: Any, score_VK: Tensor, is_masked_VK: Tensor) -> Tensor:  # type: ignore[override]
        weight_VK = score_VK.masked_fill_(is_masked_VK, -torch.inf)
        # A row that is masked as a whole: its sum is 0, not NaN.
        highest_V1 = weight_VK.amax(1, keepdim=True).clamp_(min=torch.finfo(weight_VK.dtype).min)
        sum_V1 = weight_VK.sub_(highest_V1).exp_().sum(1, keepdim=True)
        weight_VK.div_(sum_V1.clamp(min=torch.finfo(weight_VK.dtype).tiny))
        ctx.save_for_backward(weight_VK)
        return (sum_V1.log() + highest_V1).squeeze(1)

    @staticmethod
    def backward(ctx: Any, gradient_V: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weight_VK,) = ctx.saved_tensors
        return weight_VK * gradient_V[:, None], None


def sample_items(num_items: int, num_negatives: int) -> Tensor:
    """Distinct uniform item indices, (K,)."""
    return torch.randperm(num_items)[:num_negatives] + 1


def gbce_power(*, num_negatives: int, num_items: int, calibration: float) -> float:
    """beta = a (t (1 - 1/a) + 1/a) with a = K / (N - 1) and t the calibration (gSASRec, section 5)."""
    rate = num_negatives / (num_items - 1)
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def _softmax(
    state_VD: Tensor,
    target_VD: Tensor,
    negatives_V: Tensor,
    batch: Batch,
    config: TrainConfig,
    *,
    offset: TakersOffset | None,
) -> Tensor:
    """Mean over steps of -log softmax of each target; `negatives_V` is the log-sum-exp of the negatives' scores."""
    valid_BT, num_steps = batch.valid_BT, batch.valid_BT.shape[1]
    target_V, day_V = batch.target_BT[valid_BT], batch.day_BT[valid_BT]
    place_BT = (valid_BT.flatten().cumsum(0) - 1).view_as(valid_BT)  # index of a step among those with a target
    total = torch.zeros(())
    for distance in range(min(config.num_targets, num_steps)):
        both = valid_BT[:, : num_steps - distance] & valid_BT[:, distance:]
        step_P, later_P = place_BT[:, : num_steps - distance][both], place_BT[:, distance:][both]
        positive_P = (state_VD[step_P] * target_VD[later_P]).sum(-1)
        if offset is not None:
            positive_P = positive_P + offset.of_targets(day_V[step_P], target_V[later_P])
        loss_P = torch.logaddexp(negatives_V[step_P], positive_P) - positive_P
        total = total + config.target_decay**distance * loss_P.sum()
    return total / len(state_VD)


def _candidate_vectors(ranker: Ranker, target_V: Tensor, negative_K: Tensor) -> tuple[Tensor, Tensor]:
    """Candidate vectors of the targets, (V, D), and of the shared negatives, (K, D). Each item is computed once."""
    item_N, place = torch.cat([target_V, negative_K]).unique(return_inverse=True)
    candidate_ND = ranker.candidate_vectors(item_N)
    place_V, place_K = place.split([len(target_V), len(negative_K)])
    return candidate_ND[place_V], candidate_ND[place_K]


def _is_own(known_BT: Tensor, negative_K: Tensor, num_items: int) -> Tensor:
    """Whether a user already has a negative, (B, K)."""
    column_N = torch.full((num_items + 1,), len(negative_K))
    column_N[negative_K] = torch.arange(len(negative_K))
    column_N[PADDING] = len(negative_K)
    is_own_BK = torch.zeros(len(known_BT), len(negative_K) + 1, dtype=torch.bool)
    is_own_BK.scatter_(1, column_N[known_BT], value=True)
    return is_own_BK[:, :-1]


def _bce(ranker: Ranker, batch: Batch, state_VD: Tensor, target_V: Tensor, row_V: Tensor) -> Tensor:
    """One uniform negative per step, drawn again if the user already has it."""
    negative_V, known_VT = torch.zeros_like(target_V), batch.known_BT[row_V]
    is_own_V = torch.ones(len(target_V), dtype=torch.bool)
    for _ in range(MAX_DRAWS):
        negative_V[is_own_V] = torch.randint(1, ranker.config.num_items + 1, (int(is_own_V.sum()),))
        is_own_V = (known_VT == negative_V[:, None]).any(1)
        if not is_own_V.any():
            break
    item_N, place = torch.cat([target_V, negative_V]).unique(return_inverse=True)
    positive_VD, negative_VD = ranker.candidate_vectors(item_N)[place].split(len(target_V))
    positive_V, score_V = (state_VD * positive_VD).sum(-1), (state_VD * negative_VD).sum(-1)
    return -(F.logsigmoid(positive_V) + F.logsigmoid(-score_V) * ~is_own_V).mean()
