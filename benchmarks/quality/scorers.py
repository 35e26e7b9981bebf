"""Scorers beside a trained ranker: controls, which are not trained, and additions to a ranker's scores.

Their settings are chosen on the validation events.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data.datasets import BenchmarkData
from benchmarks.quality.rows import Addition, FreshAddition
from training.data.training_set import TrainingSet, known_sequences
from training.evaluation import baselines
from training.evaluation.fresh_features import FreshFeatures
from training.evaluation.ranking import Event, RankerScorer, Scorer, with_fresh
from training.evaluation.state_votes import StateVotes
from training.fitting.fresh_calibration import (
    CHOICES,
    FreshChoice,
    calibration_events,
    candidates_of,
    fit_weights,
    only,
    set_weights,
)
from training.model.fresh_score import FreshScore

ADDED_WEIGHTS = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0)  # of STAR; 0 leaves it out
COSINE_WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
# The weights in the settings of a row with fresh features.
TAKERS, STORED_VOTES, STATE_VOTES, KERNEL = "takers", "stored_votes", "state_votes", "kernel"


@dataclass(frozen=True)
class FreshReads:
    """What a row with fresh features reads."""

    choice: str | None  # a key of CHOICES; None: what the training has chosen
    is_frozen: bool = False  # nothing is known after the day before the cut
    is_permuted: bool = False  # the item vectors that stored votes compare moments by are permuted among items


FRESH_ADDITIONS: Mapping[FreshAddition, FreshReads] = {
    "takers": FreshReads("takers"),
    "fresh": FreshReads("takers and state votes"),
    "takers_frozen": FreshReads("takers", is_frozen=True),
    "fresh_frozen": FreshReads("takers and state votes", is_frozen=True),
    "stored": FreshReads("takers and stored votes"),
    "stored_permuted": FreshReads("takers and stored votes", is_permuted=True),
    "fresh_chosen": FreshReads(None),
}


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


class SharedFeatures:
    """The fresh features of a data set's events that depend on no ranker, so that all rows share them."""

    def __init__(self, data: BenchmarkData) -> None:
        self.data = data
        self._known: dict[tuple[str, bool, bool], FreshFeatures] = {}

    def of(self, split: str, *, is_frozen: bool = False, is_permuted: bool = False) -> FreshFeatures:
        """The features of `validation` or `test` events. Raises `ValueError` when there is no cut to freeze them at."""
        key = (split, is_frozen, is_permuted)
        if key not in self._known:
            training_set = self.data.choosing if split == "validation" else self.data.training_set
            if is_permuted:
                training_set = with_permuted_vectors(training_set)
            frozen_day = self._day_before_cut() if is_frozen else None
            self._known[key] = FreshFeatures(training_set, split, frozen_day=frozen_day)
        return self._known[key]

    def _day_before_cut(self) -> int:
        if self.data.cut is None:
            raise ValueError("only by global time is there a cut at which features can be frozen")
        return self.data.cut.day - 1


def with_permuted_vectors(training_set: TrainingSet) -> TrainingSet:
    """Every item with the vector of another one, drawn at random; an item stays like itself."""
    order = np.random.default_rng(0).permutation(len(training_set.item_ids))
    return replace(training_set, item_semantic=training_set.item_semantic[order])


class FreshScorers:
    """A trained ranker's scores with fresh features. Their weights are fitted on validation events."""

    def __init__(
        self,
        base: RankerScorer,
        validated: RankerScorer,
        chosen: tuple[FreshScore, FreshChoice],
        features: SharedFeatures,
    ) -> None:
        """`validated`: the scores of the same ranker, fitted to what was known then. `chosen`: by its training."""
        self._base, self._validated, self._chosen, self._features = base, validated, chosen, features
        self._weights: dict[bool, Tensor] = {}

    def with_addition(self, addition: FreshAddition, kernel: Mapping[str, float]) -> ChosenScorer:
        """The scores with an addition of `FRESH_ADDITIONS`. The settings name the weights of the `kernel`, too."""
        asked, (weights, choice) = FRESH_ADDITIONS[addition], self._chosen
        settings: dict[str, object] = {}
        if asked.choice is None:
            settings = {"choice": choice.chosen, "gains": {name: asdict(gain) for name, gain in choice.gains.items()}}
        else:
            weights = self._fitted(asked.choice, asked.is_permuted)
        features = self._features.of("test", is_frozen=asked.is_frozen, is_permuted=asked.is_permuted)
        settings |= {
            TAKERS: weights.takers_weight_W.tolist(),
            STORED_VOTES: weights.vote_weight.item(),
            STATE_VOTES: weights.state_vote_weight.item(),
            KERNEL: dict(kernel),
        }
        score = with_fresh(self._base, weights, features, StateVotes(features, self._base.states))
        return ChosenScorer(score, settings, 1 if asked.choice else len(CHOICES))

    def _fitted(self, choice: str, is_permuted: bool) -> FreshScore:
        if is_permuted not in self._weights:
            features = self._features.of("validation", is_permuted=is_permuted)
            events = calibration_events(self._features.data.choosing)
            state_votes = StateVotes(features, self._validated.states)
            self._weights[is_permuted] = fit_weights(candidates_of(self._validated, features, state_votes, events))
        weights = FreshScore()
        set_weights(weights, only(self._weights[is_permuted], CHOICES[choice]))
        return weights


def weights_of(settings: Mapping[str, Any]) -> Tensor:
    """The weights of all features, (F,), from the settings of a row with fresh features."""
    return torch.tensor([*settings[TAKERS], settings[STORED_VOTES], settings[STATE_VOTES]])
