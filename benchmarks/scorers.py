"""Scores beside those of a trained ranker: controls without training, and what is added at score level.

Whatever has settings is settled on the validation events.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.datasets import BenchmarkData
from benchmarks.rows import Addition
from training import controls
from training.dataset import known_sequences
from training.evaluate import Event, Scorer

ADDED_WEIGHTS = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0)  # of STAR; nothing is a choice too
COSINE_WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Scored:
    """A scorer, what validation settled on, and from how many settings."""

    score: Scorer
    settings: Mapping[str, object] | None
    num_trials: int


def control(model: str, data: BenchmarkData, validation: Sequence[Event]) -> Scored:
    """A control as it answers test events."""
    if model == "star":
        settings = _star_settings(data, validation)
        named = dict(zip(("semantic_share", "decay", "last"), settings, strict=True))
        return Scored(_star(data, settings, "test", mean=True), named, len(controls.STAR_GRID))
    build: dict[str, Callable[[list[np.ndarray], int], Scorer]] = {
        "popularity": controls.popularity,
        "repeat": controls.repeat_popularity,
        "markov": controls.markov_popularity,
        "knn": controls.knn if data.has_texts else controls.knn_repeat_popularity,
        "knn_markov": controls.knn_markov,
        "knn_markov_popularity": controls.knn_markov_popularity,
    }
    known = known_sequences(data.training_set, "test")
    return Scored(build[model](known, len(data.training_set.item_ids)), None, 1)


def with_addition(base: Scorer, addition: Addition, data: BenchmarkData, validation: Sequence[Event]) -> Scored:
    """A ranker's scores with nothing, the nearest cosine of texts or STAR added, the weight by validation."""
    if addition == "max_cosine":
        cosine = controls.max_cosine(data.training_set.item_semantic)
        weight = controls.choose_weight(base, cosine, validation, COSINE_WEIGHTS)
        return Scored(controls.plus(base, cosine, weight), {"weight": weight}, len(COSINE_WEIGHTS))
    if addition != "star":
        return Scored(base, None, 1)
    settings = _star_settings(data, validation)
    weight = controls.choose_weight(base, _star(data, settings, "validation", mean=False), validation, ADDED_WEIGHTS)
    named = dict(zip(("semantic_share", "decay", "last"), settings, strict=True))
    score = controls.plus(base, _star(data, settings, "test", mean=False), weight)
    return Scored(score, {"weight": weight, **named}, len(controls.STAR_GRID) + len(ADDED_WEIGHTS))


def _star_settings(data: BenchmarkData, validation: Sequence[Event]) -> tuple[float, float, int]:
    scorers = {settings: _star(data, settings, "validation", mean=True) for settings in controls.STAR_GRID}
    return controls.choose(scorers, validation)


def _star(data: BenchmarkData, settings: tuple[float, float, int], known_for: str, *, mean: bool) -> Scorer:
    """STAR by what is known when `known_for` is asked; the mean over the history, or the sum."""
    share, decay, last = settings
    known = known_sequences(data.training_set, known_for)
    semantic = data.training_set.item_semantic
    return controls.star(known, semantic, semantic_share=share, decay=decay, last=last, mean=mean)
