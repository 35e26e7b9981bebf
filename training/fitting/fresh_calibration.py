"""Choice of the weights of fresh features, on the validation targets of a fitted ranker.

    total(x) = score(x) + weights . features(x), as of the day before the target's

The weights are searched, one after another in ever smaller steps from zero, for the criterion by which the history
kernel is calibrated: the chance that the target beats a hundred random items. A likelihood would be convex, but follows
the many targets that nothing predicts: on Beauty its weights gave a test NDCG@10 of .0410 where these give .0437
(docs/decisions/fresh-features.md). Takers come first. Stored votes and state votes are each fitted beside takers alone,
because a score has the one or the other.

Users are dealt into two halves: the weights of one half give the NDCG@10 of the other, so that a choice of features is
judged by users that it was not fitted to. Features that do not help there keep the weight 0.

Shape suffixes:  E events  C candidates of an event, 0 is none  V voted items
                 F features (takers of each window, the stored votes, the state votes)
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grasp.moments import Votes
from grasp.tables import TAKER_DAYS
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import FreshFeatures
from training.evaluation.metrics import Interval, bootstrap_interval
from training.evaluation.ranking import BATCH_SIZE, Event, RankerScorer, Scorer, evaluation_events
from training.evaluation.state_votes import StateVotes
from training.fitting.kernel_calibration import NUM_RANDOM_ITEMS
from training.model.fresh_score import FreshScore, state_votes_of, takers_of, votes_of

NUM_BEST, NUM_HOTTEST = 1000, 500  # candidates by score, and by takers of the longest window
MAX_CALIBRATION_EVENTS = 4096
FIRST_STEP, LAST_STEP = 0.4, 0.05  # of the search for weights
CUTOFF = 10  # of the NDCG that choices are judged by
TAKERS = tuple(range(len(TAKER_DAYS)))  # columns of the features
STORED_VOTES, STATE_VOTES = len(TAKERS), len(TAKERS) + 1
NUM_FEATURES = len(TAKERS) + 2
CHOICES: dict[str, tuple[int, ...]] = {  # the features that each reads
    "none": (),
    "takers": TAKERS,
    "takers and stored votes": (*TAKERS, STORED_VOTES),
    "takers and state votes": (*TAKERS, STATE_VOTES),
}
LEAST_SCORE = -1e9  # of no candidate: below every target
LEAST_GAIN = 1.0  # standard errors by which more features must be better than fewer


@dataclass(frozen=True)
class FreshChoice:
    """What was chosen, and the NDCG@10 of each choice on users it was not fitted to, minus that of none."""

    chosen: str  # a key of CHOICES
    gains: dict[str, Interval]


@dataclass(frozen=True)
class Candidates:
    """Scores and features of the candidates of all events. The target is the first candidate."""

    score_EC: Tensor  # LEAST_SCORE where an event has fewer candidates
    feature_ECF: Tensor
    user_E: np.ndarray
    num_items: int


def calibrate_fresh(
    fresh: FreshScore, score: RankerScorer, features: FreshFeatures, training_set: TrainingSet
) -> FreshChoice:
    """Choose which features are read and fit their weights to all validation targets. `score` is the ranker's own.

    A ranker that reads state votes also gets the weight of the stored ones, if these help: they count where no state
    votes can be had. A ranker with takers in its loss, whose `fresh` has their weights, reads takers in any case.
    """
    state_votes = StateVotes(features, score.states)
    candidates = candidates_of(score, features, state_votes, calibration_events(training_set))
    values = cross_fitted(candidates)
    chosen, weighted = choose(values, candidates.user_E, with_takers=fresh.reads_takers)
    set_weights(fresh, only(fit_weights(candidates), weighted))
    gains = {name: bootstrap_interval(values[name] - values["none"], candidates.user_E) for name in CHOICES}
    return FreshChoice(chosen, gains)


def choose(values: Mapping[str, np.ndarray], user_E: np.ndarray, *, with_takers: bool = False) -> tuple[str, set[int]]:
    """The choice, and the features that get a weight: its own, and the stored votes if they help.

    More features help if they are better than fewer by `LEAST_GAIN` standard errors; votes are compared with the choice
    before them, state votes come first. `values` are the NDCG of each event by choice, (E,). `with_takers`: the ranker
    was trained with them in its loss, so its embeddings lack what they say.
    """

    def helps(name: str, before: str) -> bool:
        gain_E = values[name] - values[before]
        return bool(gain_E.mean() > LEAST_GAIN * _standard_error(gain_E, user_E))

    base = "takers" if with_takers or helps("takers", "none") else "none"
    helpful = [name for name in list(CHOICES)[2:] if helps(name, base)]
    chosen = [base, *helpful]
    return chosen[-1], {feature for name in chosen for feature in CHOICES[name]}


def calibration_events(training_set: TrainingSet) -> list[Event]:
    """The validation targets that weights are fitted to: those with a history, of many a fixed random sample."""
    events = [each for each in evaluation_events(training_set, "validation") if len(each.history)]
    if len(events) > MAX_CALIBRATION_EVENTS:
        drawn = np.random.default_rng(0).choice(len(events), MAX_CALIBRATION_EVENTS, replace=False)
        events = [events[place] for place in sorted(drawn)]
    return events


def set_weights(fresh: FreshScore, weights_F: Tensor) -> None:
    """Give a score the weights of all features."""
    fresh.takers_weight_W.copy_(weights_F[list(TAKERS)])
    fresh.vote_weight.copy_(weights_F[STORED_VOTES])
    fresh.state_vote_weight.copy_(weights_F[STATE_VOTES])


def only(weights_F: Tensor, features: Collection[int]) -> Tensor:
    """The weights of some features; the others are 0."""
    kept_F = torch.zeros_like(weights_F)
    kept_F[list(features)] = weights_F[list(features)]
    return kept_F


def candidates_of(
    score: Scorer, features: FreshFeatures, state_votes: StateVotes, events: Sequence[Event]
) -> Candidates:
    """The candidates of each event, with its history left out."""
    items, scores, values, num_items = [], [], [], 1
    for start in range(0, len(events), BATCH_SIZE):
        batch = events[start : start + BATCH_SIZE]
        voted = zip(features.votes(batch), state_votes.votes(batch), strict=True)
        for score_N, event, (stored, by_state) in zip(score(batch), batch, voted, strict=True):
            taken_A, takers_WA = features.takers(event)
            hottest = taken_A[np.argsort(-takers_WA[-1], kind="stable")[:NUM_HOTTEST]]
            num_items = len(score_N)
            num_best = min(NUM_BEST, num_items)
            best = np.argpartition(-score_N, num_best - 1)[:num_best] + 1
            others = np.concatenate([best, hottest, stored.items, by_state.items])
            item_C = np.concatenate([[event.target], np.setdiff1d(others, [*event.history, event.target, 0])])
            feature_CF = np.zeros((len(item_C), NUM_FEATURES), np.float32)
            place_A, is_found_A = _places(taken_A, item_C)
            takers_WC = takers_of(torch.from_numpy(takers_WA[:, place_A[is_found_A]]))
            feature_CF[is_found_A, : len(TAKERS)] = takers_WC.T.numpy()
            is_found_V, weight_V = _weights_of(stored, item_C)
            feature_CF[is_found_V, STORED_VOTES] = votes_of(weight_V).numpy()
            is_found_V, weight_V = _weights_of(by_state, item_C)
            feature_CF[is_found_V, STATE_VOTES] = state_votes_of(weight_V).numpy()
            items.append(item_C)
            scores.append(score_N[item_C - 1].astype(np.float32))
            values.append(feature_CF)
    width = max((len(each) for each in items), default=1)
    score_EC = torch.full((len(items), width), LEAST_SCORE)
    feature_ECF = torch.zeros(len(items), width, NUM_FEATURES)
    for row, (score_C, feature_CF) in enumerate(zip(scores, values, strict=True)):
        score_EC[row, : len(score_C)] = torch.from_numpy(score_C)
        feature_ECF[row, : len(score_C)] = torch.from_numpy(feature_CF)
    return Candidates(score_EC, feature_ECF, np.array([event.user for event in events]), num_items)


def _weights_of(votes: Votes, item_C: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """Which candidates are voted for, (C,), and their weights."""
    order = np.argsort(votes.items)
    place_C, is_found_C = _places(votes.items[order], item_C)
    return is_found_C, torch.from_numpy(votes.weights[order][place_C[is_found_C]])


def _places(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted item stands among the known ones, which ascend, and whether it does."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return place, known[place] == wanted


def fit_weights(candidates: Candidates, rows: np.ndarray | None = None) -> Tensor:
    """The weights of the features, (F,), fitted to some events, by default to all.

    No weight is below 0: more takers or votes never speak against an item.
    """
    chosen = slice(None) if rows is None else torch.from_numpy(np.flatnonzero(rows))
    score_EC, feature_ECF = candidates.score_EC[chosen], candidates.feature_ECF[chosen]
    weights_F = torch.zeros(NUM_FEATURES)
    if not len(score_EC):
        return weights_F
    weights_F[list(TAKERS)], with_takers_EC = _search(score_EC, feature_ECF, TAKERS, candidates.num_items)
    for votes in (STORED_VOTES, STATE_VOTES):
        weights_F[votes], _ = _search(with_takers_EC, feature_ECF, (votes,), candidates.num_items)
    return weights_F


def _search(score_EC: Tensor, feature_ECF: Tensor, features: Sequence[int], num_items: int) -> tuple[Tensor, Tensor]:
    """The weights of some features, and the scores with them."""

    def chance(total_EC: Tensor) -> float:
        other_EC, target_E1 = total_EC[:, 1:], total_EC[:, :1]
        rank_E = (other_EC > target_E1).sum(1) + (other_EC == target_E1).sum(1) / 2
        return float(((1 - rank_E / num_items) ** NUM_RANDOM_ITEMS).mean())

    weights = torch.zeros(len(features))
    columns = [feature_ECF[..., feature].contiguous() for feature in features]
    total_EC, best, step = score_EC, chance(score_EC), FIRST_STEP
    while step >= LAST_STEP:
        before = best
        for place, feature_EC in enumerate(columns):
            for change in (step, -step):
                tried = (weights[place] + change).clamp(min=0)
                if tried == weights[place]:
                    continue
                tried_EC = total_EC + (tried - weights[place]) * feature_EC
                found = chance(tried_EC)
                if found > best:
                    best, total_EC, weights[place] = found, tried_EC, tried
                    break
        if best == before:
            step /= 2
    return weights, total_EC


def cross_fitted(candidates: Candidates) -> dict[str, np.ndarray]:
    """NDCG@10 of each choice among the candidates, (E,): the weights for half of the users come from the other half."""
    half_of = np.random.default_rng(0).integers(0, 2, candidates.user_E.max(initial=0) + 1)
    half_E, values = half_of[candidates.user_E], {name: np.zeros(len(candidates.user_E)) for name in CHOICES}
    for half in (0, 1):
        weights_F = fit_weights(candidates, rows=half_E != half)
        for name, features in CHOICES.items():
            values[name][half_E == half] = _ndcg(candidates, only(weights_F, features))[half_E == half]
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
