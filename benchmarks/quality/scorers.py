"""Scorers beside a trained ranker: controls, which are not trained, and additions to a ranker's scores.

Their settings are chosen on the validation events.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.data.datasets import BenchmarkData
from benchmarks.quality.rows import Addition
from training.data.training_set import TrainingSet, known_sequences
from training.evaluation import baselines
from training.evaluation.ranking import Event, Scorer

ADDED_WEIGHTS = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0)  # of STAR; 0 leaves it out
COSINE_WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class ChosenScorer:
    """A scorer, the settings that validation chose, and how many settings were tried."""

    score: Scorer
    settings: Mapping[str, object] | None
    num_trials: int


def control(model: str, data: BenchmarkData, validation: Sequence[Event]) -> ChosenScorer:
    """A control for the test events."""
    if model == "star":
        settings = _star_settings(data, validation)
        score = star(data.training_set, settings, "test", mean=True)
        return ChosenScorer(score, settings._asdict(), len(baselines.STAR_GRID))
    build: dict[str, Callable[[list[np.ndarray], int], Scorer]] = {
        "popularity": baselines.popularity,
        "repeat": baselines.repeat_popularity,
        "markov": baselines.markov_popularity,
        "knn": baselines.knn if data.has_texts else baselines.knn_repeat_popularity,
        "knn_markov": baselines.knn_markov,
        "knn_markov_popularity": baselines.knn_markov_popularity,
    }
    known = known_sequences(data.training_set, "test")
    return ChosenScorer(build[model](known, len(data.training_set.item_ids)), None, 1)


def with_addition(
    base: Scorer, validated: Scorer, addition: Addition, data: BenchmarkData, validation: Sequence[Event]
) -> ChosenScorer:
    """A ranker's scores with an addition; the kernel is not added here.

    Validation chooses its weight, with `validated`: the same ranker, fitted to what was known then.
    """
    if addition == "max_cosine":
        before, cosine = (baselines.max_cosine(each.item_semantic) for each in (data.choosing, data.training_set))
        weight = baselines.best_added_weight(validated, before, validation, COSINE_WEIGHTS)
        return ChosenScorer(baselines.with_added_scores(base, cosine, weight), {"weight": weight}, len(COSINE_WEIGHTS))
    if addition != "star":
        return ChosenScorer(base, None, 1)
    settings = _star_settings(data, validation)
    before = star(data.choosing, settings, "validation", mean=False)
    weight = baselines.best_added_weight(validated, before, validation, ADDED_WEIGHTS)
    score = baselines.with_added_scores(base, star(data.training_set, settings, "test", mean=False), weight)
    return ChosenScorer(score, {"weight": weight, **settings._asdict()}, len(baselines.STAR_GRID) + len(ADDED_WEIGHTS))


def _star_settings(data: BenchmarkData, validation: Sequence[Event]) -> baselines.StarSettings:
    scorers = {settings: star(data.choosing, settings, "validation", mean=True) for settings in baselines.STAR_GRID}
    return baselines.best_scorer(scorers, validation)


def star(training_set: TrainingSet, settings: baselines.StarSettings, known_for: str, *, mean: bool) -> Scorer:
    """STAR from what is known before the split `known_for`; the mean over the history, or the sum."""
    known = known_sequences(training_set, known_for)
    return baselines.star(known, training_set.item_semantic, **settings._asdict(), mean=mean)
