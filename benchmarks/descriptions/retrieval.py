"""Whether what lies near by its description is also near in what people take.

Of each item the nearest others: how many share a genre, and how often the same users take both. Of each user the
nearest others: how many of them have taken what the user takes next, which no description knows.

Shape suffixes:  N items  U users  S semantic size  K nearest
"""

# ruff: noqa: N803 - names carry the shape suffixes above

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.data.readers import Source
from benchmarks.data.vectors import nearest
from training.data.cooccurrence import item_cosine, user_items
from training.data.training_set import TrainingSet, known_sequences
from training.evaluation.evaluate import questions

NUM_NEAREST = 10


def measure(
    source: Source, near_items_NK: np.ndarray, near_users_UK: np.ndarray, known: TrainingSet
) -> dict[str, float]:
    """Means over items and users; a row without a neighbour, -1 throughout, does not count. NaN where none has one."""
    genres = genre_sets(source)
    together = item_cosine(known_sequences(known, "validation"), len(source.item_ids))
    pairs = [(item, int(near)) for item, row in enumerate(near_items_NK) for near in row if near >= 0]
    with_genres = [(item, near) for item, near in pairs if genres[item] and genres[near]]
    company = np.asarray(together[*np.array(pairs).T]).ravel() if pairs else np.zeros(0)
    return {
        "genre_share": _mean([bool(genres[item] & genres[near]) for item, near in with_genres]),
        "company": _mean(company),
        "next_item_share": next_item_share(near_users_UK, known),
    }


def next_item_share(near_users_UK: np.ndarray, known: TrainingSet) -> float:
    """Of a user's neighbours, who has taken the user's test target among the items that train; mean over users."""
    has_UN = user_items(known_sequences(known, "validation"), len(known.item_ids))
    events = [event for event in questions(known, "test") if (near_users_UK[event.user] >= 0).any()]
    shares = []
    for event in events:
        near = near_users_UK[event.user]
        shares.append(has_UN[near[near >= 0], event.target - 1].mean())
    return _mean(shares)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def genre_sets(source: Source) -> list[frozenset[str]]:
    attributes = [facts["attributes"].get("genres", "") for facts in source.items or []]
    return [frozenset(filter(None, text.split(", "))) for text in attributes]


def near(ids: Sequence[str], vectors_NS: np.ndarray, among: np.ndarray, cache: Path) -> np.ndarray:
    """The nearest of each among those that the mask (N,) names, -1 for all others: (N, K)."""
    rows = np.flatnonzero(among)
    found = np.full((len(ids), NUM_NEAREST), -1)
    if len(rows) > 1:
        within = nearest([ids[row] for row in rows.tolist()], vectors_NS[rows], cache)[:, :NUM_NEAREST]
        found[rows, : within.shape[1]] = np.where(within >= 0, rows[within], -1)
    return found


def by_chance(num: int, among: np.ndarray, seed: int = 0) -> np.ndarray:
    """Others at random: what every description has to be better than, (N, K)."""
    random, rows = np.random.default_rng(seed), np.flatnonzero(among)
    found = np.full((num, NUM_NEAREST), -1)
    for row in rows:
        others = rows[rows != row]
        drawn = random.choice(others, min(NUM_NEAREST, len(others)), replace=False)
        found[row, : len(drawn)] = drawn
    return found
