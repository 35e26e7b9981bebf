"""Choice of the weights of the history kernel, on the validation targets of a fitted ranker.

Shape suffixes:  B batch  T sequence length  N items  K kinds of similarity
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from torch import Tensor

from training.data.training_set import TrainingSet, pad_left
from training.evaluation.ranking import BATCH_SIZE, evaluation_events, ranker_scorer
from training.model.history_kernel import KINDS, HistoryKernel
from training.model.ranker import Ranker

NUM_RANDOM_ITEMS = 100  # the criterion is the chance that a target beats this many random items
MAX_CALIBRATION_EVENTS = 2048  # each event is ranked once per combination of weights
# The weights that are tried for each kind of similarity; 0 switches the kind off.
KERNEL_WEIGHT_GRID = {
    "semantic": (0.0, 1.0, 2.0, 4.0, 8.0),
    "transition": (0.0, 10.0, 20.0, 40.0),
    "cooccurrence": (0.0, 5.0, 10.0, 20.0),
}


@torch.inference_mode()
def calibrate_kernel(
    ranker: Ranker, kernel: HistoryKernel, training_set: TrainingSet, max_events: int = MAX_CALIBRATION_EVENTS
) -> None:
    """Set the weights of the ranker's history kernel to the combination that ranks the validation targets best.

    The criterion is the mean of (1 - rank / N) ** 100, ranks from 0: the chance of beating a hundred random items. It
    generalises better to other users than NDCG@10 (docs/decisions/history-kernel.md). If there are more than
    `max_events` targets, a fixed random sample is used. Scores have no fresh features: with them, Beauty's NDCG@10 was
    lower (docs/decisions/fresh-features.md).
    """
    events = evaluation_events(training_set, "validation")
    if len(events) > max_events:
        drawn = np.random.default_rng(0).choice(len(events), max_events, replace=False)
        events = [events[place] for place in sorted(drawn)]
    score = ranker_scorer(ranker, training_set.item_ids, training_set, with_kernel=False)
    choices = list(product(*(KERNEL_WEIGHT_GRID[kind] for kind in KINDS)))
    total = torch.zeros(len(choices))
    for start in range(0, len(events), BATCH_SIZE):
        batch = events[start : start + BATCH_SIZE]
        items_BT = torch.from_numpy(pad_left([event.history[-kernel.length :] for event in batch]))
        kernel_KBN = kernel.unweighted_scores(items_BT, ranker.num_items)[..., 1:]
        score_BN = torch.from_numpy(score(batch).copy())
        target_B = torch.tensor([event.target for event in batch]) - 1
        for row, event in enumerate(batch):
            score_BN[row, np.setdiff1d(event.history, event.target) - 1] = -torch.inf
        for place, weighted_BN in enumerate(_weighted_scores(score_BN, list(zip(KINDS, kernel_KBN, strict=True)))):
            rank_B = (weighted_BN > weighted_BN.gather(1, target_B[:, None])).sum(1)
            total[place] += ((1 - rank_B / score_BN.shape[1]) ** NUM_RANDOM_ITEMS).sum()
    kernel.weights_K.copy_(torch.tensor(choices[int(total.argmax())]))


def _weighted_scores(score_BN: Tensor, kinds: list[tuple[str, Tensor]]) -> Iterator[Tensor]:
    """Scores for every combination of weights; the weight of the last kind changes fastest."""
    if not kinds:
        yield score_BN
        return
    kind, kind_BN = kinds[0]
    for weight in KERNEL_WEIGHT_GRID[kind]:
        yield from _weighted_scores(score_BN + weight * kind_BN, kinds[1:])
