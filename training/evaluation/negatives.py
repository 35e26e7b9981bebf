"""Items that a target is ranked against in the sampled protocol: drawn once, kept, and shared by every model.

Shape suffixes:  E events  K negatives of an event
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grasp.files import replacing
from training.evaluation.evaluate import Event

NUM_NEGATIVES = 100


def draw_negatives(events: Sequence[Event], num_items: int, num: int = NUM_NEGATIVES, seed: int = 0) -> np.ndarray:
    """Items to rank each target against: (E, num) distinct, uniform over 1..`num_items`, int32.

    Neither the history nor the target is among them, so that with one target per user a test event leaves out all
    that is known of the user, and a validation event may meet the test item. The same events and seed give the same
    items. Raises `ValueError` when a user leaves fewer than `num` items.
    """
    random = np.random.default_rng(seed)
    negatives_EK = np.empty((len(events), num), np.int32)
    for row, event in enumerate(events):
        known = np.unique(np.append(event.history, event.target))
        known = known[known > 0] - 1
        num_left = num_items - len(known)
        if num_left < num:
            raise ValueError(
                f"{num} negatives cannot be drawn for user {event.user}: {len(known)} of {num_items} items are known, "
                f"{num_left} are left"
            )
        place = random.choice(num_left, num, replace=False)
        # known[i] - i unknown items lie before known[i]: skip every known item that comes before the place-th unknown.
        negatives_EK[row] = place + np.searchsorted(known - np.arange(len(known)), place, side="right") + 1
    return negatives_EK


def save_negatives(file: Path, negatives: np.ndarray, events: Sequence[Event]) -> str:
    """Keep negatives for every model to share; returns their checksum, which also covers the events."""
    checksum = _negatives_checksum(negatives, events)
    with replacing(file) as handle:
        np.savez(handle, negatives=negatives, checksum=np.array(checksum))
    return checksum


def load_negatives(file: Path, events: Sequence[Event]) -> np.ndarray:
    """Negatives that were saved for just these events; raises `ValueError` when they were drawn for others."""
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
