"""Scores beside those of a trained ranker: controls without training, and what is added at score level.

Whatever has settings is settled on the validation events.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.data.datasets import BenchmarkData
from benchmarks.quality.rows import Addition
from training.data.training_set import known_sequences
from training.evaluation import controls
from training.evaluation.evaluate import Event, Scorer

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
        return Scored(star(data, settings, "test", mean=True), settings._asdict(), len(controls.STAR_GRID))
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
    weight = controls.choose_weight(base, star(data, settings, "validation", mean=False), validation, ADDED_WEIGHTS)
    score = controls.plus(base, star(data, settings, "test", mean=False), weight)
    return Scored(score, {"weight": weight, **settings._asdict()}, len(controls.STAR_GRID) + len(ADDED_WEIGHTS))


def _star_settings(data: BenchmarkData, validation: Sequence[Event]) -> controls.StarSettings:
    scorers = {settings: star(data, settings, "validation", mean=True) for settings in controls.STAR_GRID}
    return controls.choose(scorers, validation)


def star(data: BenchmarkData, settings: controls.StarSettings, known_for: str, *, mean: bool) -> Scorer:
    """STAR by what is known when the split `known_for` is asked; the mean over the history, or the sum."""
    known = known_sequences(data.training_set, known_for)
    semantic = data.training_set.item_semantic
    return controls.star(known, semantic, **settings._asdict(), mean=mean)
