"""The training loop, for every recipe and data set, in production and in benchmarks."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from grasp.progress import say
from training.data.cooccurrence import item_counts
from training.data.training_set import TrainingSet, training_sequences, training_steps
from training.evaluation.fresh_features import DEFAULT_WINDOW, FreshFeatures, MomentWindow
from training.evaluation.metrics import event_metrics
from training.evaluation.negatives import draw_negatives
from training.evaluation.ranking import RankerScorer, evaluation_events, rank_events, ranker_scorer
from training.fitting.batches import build_batch, cut_into_pieces, group_by_length
from training.fitting.fresh_calibration import FreshChoice, calibrate_fresh
from training.fitting.kernel_calibration import calibrate_kernel
from training.fitting.losses import batch_loss
from training.fitting.recipes import TrainConfig
from training.fitting.takers_offset import TakersOffset
from training.model.config import RankerConfig
from training.model.ranker import Ranker

MAX_EPOCH_CALIBRATION_EVENTS = 512  # after each epoch, where the weights only serve to compare epochs
FILTERED_NDCG = "ndcg@10"
KERNEL_NDCG = "ndcg@10 with kernel"
SAMPLED_NDCG = "sampled ndcg@10"
SELECTION_METRICS = {"filtered": FILTERED_NDCG, "with_kernel": KERNEL_NDCG, "sampled": SAMPLED_NDCG}  # by `selection`
MAX_COMPARED_ITEMS = 200_000  # comparing all pairs takes minutes on a few cores; for a million items, hours
ProgressCallback = Callable[[int, dict[str, float]], None]  # (epoch from 1, its loss and validation metrics)


class TrainingRun:
    """The state of a training run: ranker, optimiser and running mean. Trains one epoch at a time."""

    def __init__(self, training_set: TrainingSet, config: TrainConfig, random: np.random.Generator) -> None:
        self._training_set, self._config, self._random = training_set, config, random
        self._sequences, self._steps = training_sequences(training_set), training_steps(training_set)
        self._offset = takers_offset(training_set, self._steps, config)
        self._ranker = new_ranker(training_set, config)
        self._optimiser = torch.optim.AdamW(
            self._ranker.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        # The ranker that is validated and kept: the trained one, or a running mean of its weights.
        self.evaluated_ranker = copy.deepcopy(self._ranker) if config.averaging else self._ranker
        self._num_steps = 0

    def run_epoch(self) -> float:
        """One pass over the training targets; returns the mean loss. Raises `ValueError` if it is not finite."""
        config, ranker = self._config, self._ranker.train()
        total, num_steps = 0.0, 0
        pieces = cut_into_pieces(self._steps, config.shortest_piece, ranker.config.max_length + 1, self._random)
        for users, steps in group_by_length(pieces, config.batch_size, self._random):
            batch = build_batch(self._training_set, self._sequences, users, steps, config)
            loss = batch_loss(ranker, batch, config, self._offset)
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            if self.evaluated_ranker is not ranker:
                self._average()
            size = int(batch.valid_BT.sum())
            total, num_steps = total + loss.item() * size, num_steps + size
        if not np.isfinite(total):
            raise ValueError(f"the loss of recipe {config.name} is not finite: lower its learning rate")
        return total / max(num_steps, 1)

    @torch.no_grad()
    def _average(self) -> None:
        """Update the running mean of the weights, faster in the first steps so that the initial weights fade out.

        Only parameters are averaged. torch's `AveragedModel` would also copy every frozen vector at each step.
        """
        self._num_steps += 1
        kept = min(self._config.averaging, (1 + self._num_steps) / (10 + self._num_steps))
        for mean, weights in zip(self.evaluated_ranker.parameters(), self._ranker.parameters(), strict=True):
            mean.lerp_(weights, 1 - kept)


@dataclass(frozen=True)
class FittedRanker:
    """A ranker with the weights of its best epoch, and its validation metrics."""

    ranker: Ranker
    best_epoch: int
    num_epochs: int
    metrics: dict[str, float]  # with the history kernel, if there is one, and the recipe's offset
    metrics_without_kernel: dict[str, float]
    fresh: FreshChoice  # which fresh features are read, and what they gained on validation
    wall_seconds: float
    cpu_seconds: float
    fresh_cpu_seconds: float  # of the CPU seconds, the choice of fresh features


def fit(
    training_set: TrainingSet,
    config: TrainConfig,
    seed: int,
    progress: ProgressCallback,
    window: MomentWindow = DEFAULT_WINDOW,
) -> FittedRanker:
    """Train until the validation NDCG@10 named by `selection` has not improved for `patience` epochs.

    Also stops after `max_epochs`, and at the end of an epoch after `max_minutes`. Keeps the weights of the best epoch.
    `window` says which recent moments vote.
    Raises `ValueError` if there are no validation targets or the loss is not finite.
    """
    started, started_cpu = time.monotonic(), time.process_time()
    features = FreshFeatures(training_set, "validation", window)
    with deterministic(seed) as random:
        training = TrainingRun(training_set, config, random)
        ranker = training.evaluated_ranker
        in_loss = features if config.takers_offset else None
        negatives = _negatives(training_set) if config.selection == "sampled" else None
        criterion = SELECTION_METRICS[config.selection]
        best_epoch, best, weights = 0, {criterion: -1.0}, ranker.state_dict()
        end = started + 60 * config.max_minutes
        for epoch in range(1, config.max_epochs + 1):
            mean_loss = training.run_epoch()
            metrics = validate(ranker, training_set, with_kernel=False, negatives=negatives, fresh=in_loss)
            if config.selection == "with_kernel":
                metrics[KERNEL_NDCG] = _with_kernel(ranker, training_set, metrics, in_loss)
            progress(epoch, {"loss": mean_loss, **metrics})
            if metrics[criterion] > best[criterion]:
                best_epoch, best, weights = epoch, metrics, copy.deepcopy(ranker.state_dict())
            if epoch - best_epoch >= config.patience or time.monotonic() > end:
                break
    ranker.load_state_dict(weights)
    with_kernel = best
    if ranker.kernel is not None:
        calibrate_kernel(ranker, ranker.kernel, training_set)
        with_kernel = validate(ranker, training_set, fresh=in_loss)
    started_fresh = time.process_time()
    score = RankerScorer(ranker, training_set.item_ids, training_set)
    fresh = calibrate_fresh(ranker.fresh, score, features, training_set)
    ended_cpu = time.process_time()
    seconds = time.monotonic() - started, ended_cpu - started_cpu, ended_cpu - started_fresh
    return FittedRanker(ranker.eval(), best_epoch, epoch, with_kernel, best, fresh, *seconds)


def refit(training_set: TrainingSet, config: TrainConfig, seed: int, chosen: FittedRanker) -> FittedRanker:
    """Train anew, on later events, for as many epochs as `chosen`, with its weights of kernel and fresh features.

    Nothing is validated. The seconds are those of both trainings, the metrics those of `chosen`.
    """
    started, started_cpu = time.monotonic(), time.process_time()
    ranker = train_epochs(training_set, config, seed, chosen.best_epoch)
    if ranker.kernel is not None and chosen.ranker.kernel is not None:
        ranker.kernel.weights_K.copy_(chosen.ranker.kernel.weights_K)
    ranker.fresh.load_state_dict(chosen.ranker.fresh.state_dict())
    wall_seconds = chosen.wall_seconds + time.monotonic() - started
    cpu_seconds = chosen.cpu_seconds + time.process_time() - started_cpu
    return replace(chosen, ranker=ranker, wall_seconds=wall_seconds, cpu_seconds=cpu_seconds)


def train_epochs(training_set: TrainingSet, config: TrainConfig, seed: int, num_epochs: int) -> Ranker:
    """Train for a number of epochs and validate nothing. The weights of the kernel stay zero."""
    with deterministic(seed) as random:
        training = TrainingRun(training_set, config, random)
        for _ in range(num_epochs):
            training.run_epoch()
    return training.evaluated_ranker.eval()


def _with_kernel(
    ranker: Ranker, training_set: TrainingSet, without: dict[str, float], fresh: FreshFeatures | None
) -> float:
    """Validation NDCG@10 with the kernel calibrated for this epoch; without a kernel, the plain NDCG@10."""
    if ranker.kernel is None:
        return without[FILTERED_NDCG]
    calibrate_kernel(ranker, ranker.kernel, training_set, MAX_EPOCH_CALIBRATION_EVENTS)
    return validate(ranker, training_set, fresh=fresh)[FILTERED_NDCG]


@contextmanager
def deterministic(seed: int) -> Iterator[np.random.Generator]:
    """A context in which the same seed gives the same weights. Restores torch's settings afterwards."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # saves a tenth of the time; nothing reads uninitialised memory
    try:
        yield np.random.default_rng(seed)
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def takers_offset(training_set: TrainingSet, steps: list[np.ndarray], config: TrainConfig) -> TakersOffset | None:
    """The recipe's offset for the training targets; None for a recipe without one."""
    if not config.takers_offset:
        return None
    days = np.concatenate([np.zeros(0, np.int64), *(of_user[:, 1] for of_user in steps)])
    weights_W = torch.tensor(config.takers_offset)
    return TakersOffset(training_set.log("train"), days, len(training_set.item_ids), weights_W)


def new_ranker(training_set: TrainingSet, config: TrainConfig) -> Ranker:
    """An untrained ranker with the items attached, initialised from the vectors and training sequences.

    With more than `MAX_COMPARED_ITEMS` items it has no history kernel and no lenders, which compare all pairs of items.
    """
    num_items, semantic_size = training_set.item_semantic.shape
    switches: dict[str, Any] = dict(config.ranker)
    if num_items > MAX_COMPARED_ITEMS and (switches.get("kernel_length") or switches.get("num_lenders")):
        say(f"{num_items:,} items are too many to compare all pairs: no history kernel and no lenders")
        switches |= {"kernel_length": 0, "num_lenders": 0}
    ranker = Ranker(RankerConfig(num_items, semantic_size, config.backbone, enhancer=config.enhancer, **switches))
    item_semantic, user_semantic, item_neighbour = (
        torch.from_numpy(each)
        for each in (training_set.item_semantic, training_set.user_semantic, training_set.item_neighbour)
    )
    sequences = training_sequences(training_set)
    ranker.enhancer.initialise_from(item_semantic, user_semantic, torch.from_numpy(item_counts(sequences, num_items)))
    ranker.attach_items(item_semantic, item_neighbour)
    if ranker.kernel is not None:
        ranker.kernel.initialise_from(training_set.item_semantic, sequences)
    if config.takers_offset:
        ranker.fresh.takers_weight_W.copy_(torch.tensor(config.takers_offset))
    return ranker


def _negatives(training_set: TrainingSet) -> np.ndarray:
    """Negatives of the validation targets in the sampled protocol, the same for every recipe."""
    return draw_negatives(evaluation_events(training_set, "validation"), len(training_set.item_ids))


def validate(
    ranker: Ranker,
    training_set: TrainingSet,
    *,
    with_kernel: bool = True,
    negatives: np.ndarray | None = None,
    fresh: FreshFeatures | None = None,
) -> dict[str, float]:
    """Mean of every filtered metric over the validation targets.

    With `negatives`, one row per target, also the NDCG@10 among these negatives.
    """
    events = evaluation_events(training_set, "validation")
    if not events:
        raise ValueError("the training set has no validation target: no user has three interactions before the cutoff")
    score = ranker_scorer(ranker, training_set.item_ids, training_set, with_kernel=with_kernel, fresh=fresh)
    ranking = rank_events(score, events, [] if negatives is None else [negatives])
    metrics = {name: float(values.mean()) for name, values in event_metrics(ranking.filtered).items()}
    for sampled in ranking.sampled:
        metrics[SAMPLED_NDCG] = float(event_metrics(sampled)["ndcg@10"].mean())
    return metrics
