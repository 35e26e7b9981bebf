"""Choice of the weights of fresh features, on the validation targets of a fitted ranker.

    total(x) = score(x) + weights . features(x), as of the day before the target's

The weights are searched, one after another in ever smaller steps from zero, for the criterion by which the history
kernel is calibrated: the chance that the target beats a hundred random items. A likelihood would be convex, but follows
the many targets that nothing predicts: on Beauty its weights gave a test NDCG@10 of .0410 where these give .0437
(docs/decisions/fresh-features.md).

Users are dealt into two halves: the weights of one half give the NDCG@10 of the other, so that a choice of features is
judged by users that it was not fitted to. Features that do not help there keep the weight 0.

Shape suffixes:  E events  C candidates of an event, 0 is none  F features (takers of each window, then the votes)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grasp.tables import TAKER_DAYS
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import FreshFeatures
from training.evaluation.metrics import Interval, bootstrap_interval
from training.evaluation.ranking import BATCH_SIZE, Event, Scorer, evaluation_events
from training.fitting.kernel_calibration import NUM_RANDOM_ITEMS
from training.model.fresh_score import FreshScore, takers_of, votes_of

NUM_BEST, NUM_HOTTEST = 1000, 500  # candidates by score, and by takers of the longest window
MAX_CALIBRATION_EVENTS = 4096
FIRST_STEP, LAST_STEP = 0.4, 0.05  # of the search for weights
CUTOFF = 10  # of the NDCG that choices are judged by
CHOICES = {"none": 0, "takers": len(TAKER_DAYS), "takers and votes": len(TAKER_DAYS) + 1}  # leading features each reads
LEAST_SCORE = -1e9  # of no candidate: below every target
LEAST_GAIN = 1.0  # standard errors by which more features must be better than fewer


@dataclass(frozen=True)
class FreshChoice:
    """What was chosen, and the NDCG@10 of each choice on users it was not fitted to, minus that of none."""

    chosen: str
    gains: dict[str, Interval]


@dataclass(frozen=True)
class Candidates:
    """Scores and features of the candidates of all events. The target is the first candidate."""

    score_EC: Tensor  # LEAST_SCORE where an event has fewer candidates
    feature_ECF: Tensor
    user_E: np.ndarray
    num_items: int


def calibrate_fresh(
    fresh: FreshScore, score: Scorer, features: FreshFeatures, training_set: TrainingSet
) -> FreshChoice:
    """Choose which features are read and fit their weights to all validation targets. `score` is the ranker's own."""
    candidates = candidates_of(score, features, calibration_events(training_set))
    values = {name: cross_fitted(candidates, num) for name, num in CHOICES.items()}
    chosen = choose(values, candidates.user_E)
    set_weights(fresh, fit_weights(candidates, CHOICES[chosen]))
    gains = {name: bootstrap_interval(values[name] - values["none"], candidates.user_E) for name in CHOICES}
    return FreshChoice(chosen, gains)


def choose(values: Mapping[str, np.ndarray], user_E: np.ndarray) -> str:
    """The last choice that is better than the one chosen before it by `LEAST_GAIN` standard errors.

    `values` are the NDCG of each event by choice, (E,), in the order of `CHOICES`.
    """
    chosen = "none"
    for name in CHOICES:
        gain_E = values[name] - values[chosen]
        if gain_E.mean() > LEAST_GAIN * _standard_error(gain_E, user_E):
            chosen = name
    return chosen


def calibration_events(training_set: TrainingSet) -> list[Event]:
    """The validation targets that weights are fitted to: those with a history, of many a fixed random sample."""
    events = [each for each in evaluation_events(training_set, "validation") if len(each.history)]
    if len(events) > MAX_CALIBRATION_EVENTS:
        drawn = np.random.default_rng(0).choice(len(events), MAX_CALIBRATION_EVENTS, replace=False)
        events = [events[place] for place in sorted(drawn)]
    return events


def set_weights(fresh: FreshScore, weights_F: Tensor) -> None:
    """Give a score the weights of all features."""
    fresh.takers_weight_W.copy_(weights_F[:-1])
    fresh.vote_weight.copy_(weights_F[-1])


def candidates_of(score: Scorer, features: FreshFeatures, events: Sequence[Event]) -> Candidates:
    """The candidates of each event, with its history left out."""
    items, scores, values, num_items = [], [], [], 1
    votes = features.votes(events)
    for start in range(0, len(events), BATCH_SIZE):
        batch = events[start : start + BATCH_SIZE]
        for score_N, event, voted in zip(score(batch), batch, votes[start:], strict=False):
            taken_A, takers_WA = features.takers(event)
            hottest = taken_A[np.argsort(-takers_WA[-1], kind="stable")[:NUM_HOTTEST]]
            num_items = len(score_N)
            num_best = min(NUM_BEST, num_items)
            best = np.argpartition(-score_N, num_best - 1)[:num_best] + 1
            others = np.setdiff1d(np.concatenate([best, hottest, voted.items]), [*event.history, event.target, 0])
            item_C = np.concatenate([[event.target], others])
            feature_CF = np.zeros((len(item_C), len(TAKER_DAYS) + 1), np.float32)
            place_A, is_found_A = _places(taken_A, item_C)
            feature_CF[is_found_A, :-1] = takers_of(torch.from_numpy(takers_WA[:, place_A[is_found_A]])).T.numpy()
            order = np.argsort(voted.items)
            place_V, is_found_V = _places(voted.items[order], item_C)
            weight_V = torch.from_numpy(voted.weights[order][place_V[is_found_V]])
            feature_CF[is_found_V, -1] = votes_of(weight_V).numpy()
            items.append(item_C)
            scores.append(score_N[item_C - 1].astype(np.float32))
            values.append(feature_CF)
    width = max((len(each) for each in items), default=1)
    score_EC = torch.full((len(items), width), LEAST_SCORE)
    feature_ECF = torch.zeros(len(items), width, len(TAKER_DAYS) + 1)
    for row, (score_C, feature_CF) in enumerate(zip(scores, values, strict=True)):
        score_EC[row, : len(score_C)] = torch.from_numpy(score_C)
        feature_ECF[row, : len(score_C)] = torch.from_numpy(feature_CF)
    return Candidates(score_EC, feature_ECF, np.array([event.user for event in events]), num_items)


def _places(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted item stands among the known ones, which ascend, and whether it does."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return place, known[place] == wanted


def fit_weights(candidates: Candidates, num_features: int, rows: np.ndarray | None = None) -> Tensor:
    """The weights of the features, (F,), fitted to some events (by default to all); those from `num_features` on are 0.

    No weight is below 0: more takers or votes never speak against an item.
    """
    weights_F = torch.zeros(candidates.feature_ECF.shape[-1])
    chosen = slice(None) if rows is None else torch.from_numpy(np.flatnonzero(rows))
    score_EC, feature_ECF = candidates.score_EC[chosen], candidates.feature_ECF[chosen]

    def chance(total_EC: Tensor) -> float:
        other_EC, target_E1 = total_EC[:, 1:], total_EC[:, :1]
        rank_E = (other_EC > target_E1).sum(1) + (other_EC == target_E1).sum(1) / 2
        return float(((1 - rank_E / candidates.num_items) ** NUM_RANDOM_ITEMS).mean())

    best = chance(score_EC) if len(score_EC) else 0.0
    step = FIRST_STEP if len(score_EC) else 0.0
    while step >= LAST_STEP:
        before = best
        for feature in range(num_features):
            for change in (step, -step):
                tried_F = weights_F.clone()
                tried_F[feature] = (tried_F[feature] + change).clamp(min=0)
                if (
                    tried_F[feature] != weights_F[feature]
                    and (found := chance(score_EC + feature_ECF @ tried_F)) > best
                ):
                    best, weights_F = found, tried_F
                    break
        if best == before:
            step /= 2
    return weights_F


def cross_fitted(candidates: Candidates, num_features: int) -> np.ndarray:
    """NDCG@10 among the candidates, (E,): the weights for each half of the users come from the other half."""
    half_of = np.random.default_rng(0).integers(0, 2, candidates.user_E.max(initial=0) + 1)
    half_E, values = half_of[candidates.user_E], np.zeros(len(candidates.user_E))
    for half in (0, 1):
        weights_F = fit_weights(candidates, num_features, rows=half_E != half)
        values[half_E == half] = _ndcg(candidates, weights_F)[half_E == half]
    return values


def _ndcg(candidates: Candidates, weights_F: Tensor) -> np.ndarray:
    total_EC = candidates.score_EC + candidates.feature_ECF @ weights_F
    rank_E = (total_EC[:, 1:] >= total_EC[:, :1]).sum(1).numpy()
    ndcg_E: np.ndarray = np.where(rank_E < CUTOFF, 1 / np.log2(rank_E + 2), 0)
    return ndcg_E


def _standard_error(values_E: np.ndarray, user_E: np.ndarray) -> float:
    """Of the mean, with the values of one user taken together."""
    _, place_E = np.unique(user_E, return_inverse=True)
    total = np.bincount(place_E, values_E - values_E.mean())
    return float(np.sqrt(np.square(total).sum()) / max(len(values_E), 1))
