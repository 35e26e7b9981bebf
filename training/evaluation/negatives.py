"""Negatives of the sampled ranking: items that a target is ranked against. Drawn once and shared by every model.

Shape suffixes:  E events  K negatives of an event
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grasp.files import replacing
from training.evaluation.ranking import Event

NUM_NEGATIVES = 100


def draw_negatives(events: Sequence[Event], num_items: int, num: int = NUM_NEGATIVES, seed: int = 0) -> np.ndarray:
    """Items to rank each target against: (E, num) distinct, uniform over 1..`num_items`, int32.

    History and target are excluded. With one target per user, the negatives of a test event therefore contain no item
    of the user; those of a validation event may contain the test item. The same events and seed give the same
    negatives. Raises `ValueError` if fewer than `num` items are left for a user.
    """
    random = np.random.default_rng(seed)
    negatives_EK = np.empty((len(events), num), np.int32)
    for row, event in enumerate(events):
        known = np.unique(np.append(event.history, event.target))
        known = known[known > 0] - 1
        num_left = num_items - len(known)
        if num_left < num:
            raise ValueError(
                f"cannot draw {num} negatives for user {event.user}: {len(known)} of {num_items} items are known, "
                f"{num_left} are left"
            )
        place = random.choice(num_left, num, replace=False)
        # known[i] - i unknown items precede known[i]: shift each draw by the number of known items before it.
        negatives_EK[row] = place + np.searchsorted(known - np.arange(len(known)), place, side="right") + 1
    return negatives_EK


def save_negatives(file: Path, negatives: np.ndarray, events: Sequence[Event]) -> str:
    """Save the negatives and return their checksum, which also covers the events."""
    checksum = _negatives_checksum(negatives, events)
    with replacing(file) as handle:
        np.savez(handle, negatives=negatives, checksum=np.array(checksum))
    return checksum


def load_negatives(file: Path, events: Sequence[Event]) -> np.ndarray:
    """Load the negatives of these events. Raises `ValueError` if they were drawn for other events."""
    with np.load(file) as saved:
        negatives, checksum = saved["negatives"], str(saved["checksum"])
    if checksum != _negatives_checksum(negatives, events):
        raise ValueError(f"{file} is damaged or holds the negatives of other events: delete it to draw them again")
    return negatives


def _negatives_checksum(negatives: np.ndarray, events: Sequence[Event]) -> str:
    content = hashlib.sha256(np.ascontiguousarray(negatives, np.int32).tobytes())
    for event in events:
        content.update(np.array([event.user, event.target, *event.history], np.int64).tobytes())
    return content.hexdigest()
