"""What recent takers add to the scores while a ranker is trained: a part of the softmax that no embedding has to learn.

    p(x) ~ exp(state . candidate_x + sum over windows w of weight_w * log(1 + takers_w(x)))

Takers are as of the day before each target, from training events. What was in fashion for a week explains itself, and
the embeddings learn what it does not explain. A ranker that was trained so is scored with takers, too: with these
weights while it is trained, and then with those that validation chooses (`fresh_calibration.py`).

Shape suffixes:  V steps with a target  P pairs of a step and a target  K negatives  D days  W windows of `TAKER_DAYS`
                 N items, column 0 is padding
"""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from training.data.event_log import EventLog
from training.model.fresh_score import takers_of


class TakersOffset:
    """The offsets of all items on the days of the targets, sparse: most items were not taken lately."""

    def __init__(self, log: EventLog, days: np.ndarray, num_items: int, weights_W: Tensor) -> None:
        """`days` are those of the targets."""
        self._day_D = np.unique(days)
        items, values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for day in self._day_D:
            item_A, takers_WA = log.takers(int(day) - 1)
            items.append(item_A)
            values.append((weights_W @ takers_of(torch.from_numpy(takers_WA))).numpy())
        ends = np.cumsum([len(each) for each in items])
        shape = (len(self._day_D), num_items + 1)
        self._offset_DN = sparse.csr_matrix((np.concatenate(values), np.concatenate(items), ends), shape=shape)

    def of_negatives(self, day_V: Tensor, item_K: Tensor) -> Tensor:
        """The offset of each negative on the day of each step, (V, K)."""
        day, place = np.unique(day_V.numpy(), return_inverse=True)
        offset_DK = self._offset_DN[np.searchsorted(self._day_D, day)][:, item_K.numpy()].toarray()
        return torch.from_numpy(offset_DK)[torch.from_numpy(place)]

    def of_targets(self, day_P: Tensor, item_P: Tensor) -> Tensor:
        """The offset of each pair's target on the day of its step, (P,)."""
        if not len(day_P):  # scipy has no array for no pairs
            return torch.zeros(0)
        row_P = np.searchsorted(self._day_D, day_P.numpy())
        found = self._offset_DN[row_P, item_P.numpy().copy()]  # scipy sets a flag of the array that it is given
        return torch.from_numpy(np.asarray(found, np.float32).ravel())
