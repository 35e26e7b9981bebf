"""What the history kernel weighs, settled on the validation targets once a ranker is fitted.

Shape suffixes:  B batch  T sequence length  N items  K kinds of nearness
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

NUM_RANDOM_ITEMS = 100  # items drawn at random, which a target has to beat for a kernel's weights to count as good
MAX_CALIBRATION_EVENTS = 2048  # each is ranked once for every choice of weights
# What the weights of the history kernel are chosen from; nothing is a choice too.
KERNEL_WEIGHT_GRID = {
    "semantic": (0.0, 1.0, 2.0, 4.0, 8.0),
    "transition": (0.0, 10.0, 20.0, 40.0),
    "cooccurrence": (0.0, 5.0, 10.0, 20.0),
}


@torch.inference_mode()
def calibrate_kernel(
    ranker: Ranker, kernel: HistoryKernel, training_set: TrainingSet, max_events: int = MAX_CALIBRATION_EVENTS
) -> None:
    """Set the weights of the ranker's history kernel to those that rank the validation targets best.

    Best is the mean of (1 - rank / N) ** 100, ranks from 0: the chance of beating a hundred items drawn at random. It
    holds up better on other users than NDCG@10 itself (docs/decisions/history-kernel.md). Of many targets, some count.
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
        parts_KBN = kernel.unweighted_scores(items_BT, ranker.num_items)[..., 1:]
        score_BN = torch.from_numpy(score(batch).copy())
        target_B = torch.tensor([event.target for event in batch]) - 1
        for row, event in enumerate(batch):
            score_BN[row, np.setdiff1d(event.history, event.target) - 1] = -torch.inf
        for place, weighed_BN in enumerate(_weighed(score_BN, list(zip(KINDS, parts_KBN, strict=True)))):
            rank_B = (weighed_BN > weighed_BN.gather(1, target_B[:, None])).sum(1)
            total[place] += ((1 - rank_B / score_BN.shape[1]) ** NUM_RANDOM_ITEMS).sum()
    kernel.weights_K.copy_(torch.tensor(choices[int(total.argmax())]))


def _weighed(score_BN: Tensor, parts: list[tuple[str, Tensor]]) -> Iterator[Tensor]:
    """Scores with every choice of weights, the last kind's changing fastest."""
    if not parts:
        yield score_BN
        return
    kind, part_BN = parts[0]
    for weight in KERNEL_WEIGHT_GRID[kind]:
        yield from _weighed(score_BN + weight * part_BN, parts[1:])
