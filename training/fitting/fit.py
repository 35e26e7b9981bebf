"""The training loop: every recipe, every data set, production and benchmark alike.

Shape suffixes:  B batch  T sequence length  N items  K kinds of nearness
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grasp.progress import say
from training.data.cooccurrence import occurrences
from training.data.training_set import TrainingSet
from training.evaluation.evaluate import metrics, pad, questions, rank_events, ranker_scorer
from training.evaluation.negatives import draw_negatives
from training.fitting.calibration import calibrate
from training.fitting.losses import Batch, batch_loss
from training.fitting.recipes import TrainConfig
from training.model.config import MASK, PADDING, RankerConfig
from training.model.ranker import Ranker

MAX_EPOCH_CALIBRATION_EVENTS = 512  # after an epoch, where the weights only serve to compare it with others
FILTERED_NDCG = "ndcg@10"
KERNEL_NDCG = "ndcg@10 with kernel"
SAMPLED_NDCG = "sampled ndcg@10"
CRITERIA = {"filtered": FILTERED_NDCG, "with_kernel": KERNEL_NDCG, "sampled": SAMPLED_NDCG}  # by `selection`
MAX_COMPARED_ITEMS = 200_000  # some minutes on a few cores; a million would take hours
Progress = Callable[[int, dict[str, float]], None]  # epoch from 1, its loss and validation metrics


class Training:
    """A recipe that is being fitted, an epoch at a time."""

    def __init__(self, training_set: TrainingSet, config: TrainConfig, random: np.random.Generator) -> None:
        self._training_set, self._config, self._random = training_set, config, random
        self._sequences = training_sequences(training_set)
        self._ranker = new_ranker(training_set, config)
        self._optimiser = torch.optim.AdamW(
            self._ranker.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        # The ranker whose weights count: the one that is trained, or a running mean of its weights.
        self.judged = copy.deepcopy(self._ranker) if config.averaging else self._ranker
        self._num_steps = 0

    def epoch(self) -> float:
        """One pass over the training targets; returns the mean loss. Raises `ValueError` when it is not finite."""
        config, ranker = self._config, self._ranker.train()
        total, num_steps = 0.0, 0
        pieces = pieces_of(self._sequences, config.shortest_piece, ranker.config.max_length + 1, self._random)
        for users, items in batches(pieces, config.batch_size, self._random):
            batch = as_batch(self._training_set, self._sequences, users, items, config)
            loss = batch_loss(ranker, batch, config)
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            if self.judged is not ranker:
                self._average()
            size = int(batch.valid_BT.sum())
            total, num_steps = total + loss.item() * size, num_steps + size
        if not np.isfinite(total):
            raise ValueError(f"the loss of recipe {config.name} is not finite: lower its learning rate")
        return total / max(num_steps, 1)

    @torch.no_grad()
    def _average(self) -> None:
        """Let the running mean of the weights follow, faster in the first steps: it should not keep the start.

        Parameters alone; torch's `AveragedModel` would also copy every frozen vector at each step.
        """
        self._num_steps += 1
        kept = min(self._config.averaging, (1 + self._num_steps) / (10 + self._num_steps))
        for mean, weights in zip(self.judged.parameters(), self._ranker.parameters(), strict=True):
            mean.lerp_(weights, 1 - kept)


@dataclass(frozen=True)
class Fitted:
    """A ranker with the weights of its best epoch."""

    ranker: Ranker
    epoch: int
    num_epochs: int
    metrics: dict[str, float]  # on the validation targets, with the history kernel where there is one
    metrics_without_kernel: dict[str, float]
    wall_seconds: float
    cpu_seconds: float


def fit(training_set: TrainingSet, config: TrainConfig, seed: int, progress: Progress) -> Fitted:
    """Fit until the validation NDCG@10 of the recipe's `selection` has not risen for `patience` epochs.

    Keeps the best epoch's weights. Also ends after `max_epochs` and, at the end of an epoch, after `max_minutes`.
    Raises `ValueError` when there is nothing to validate on or the loss is not finite.
    """
    started, started_cpu = time.monotonic(), time.process_time()
    with repeatable(seed) as random:
        training = Training(training_set, config, random)
        ranker = training.judged
        negatives = _negatives(training_set) if config.selection == "sampled" else None
        criterion = CRITERIA[config.selection]
        best_epoch, best, weights = 0, {criterion: -1.0}, ranker.state_dict()
        end = started + 60 * config.max_minutes
        for epoch in range(1, config.max_epochs + 1):
            mean_loss = training.epoch()
            found = validate(ranker, training_set, with_kernel=False, negatives=negatives)
            if config.selection == "with_kernel":
                found[KERNEL_NDCG] = _with_kernel(ranker, training_set, found)
            progress(epoch, {"loss": mean_loss, **found})
            if found[criterion] > best[criterion]:
                best_epoch, best, weights = epoch, found, copy.deepcopy(ranker.state_dict())
            if epoch - best_epoch >= config.patience or time.monotonic() > end:
                break
    ranker.load_state_dict(weights)
    with_kernel = best
    if ranker.kernel is not None:
        calibrate(ranker, ranker.kernel, training_set)
        with_kernel = validate(ranker, training_set)
    seconds = time.monotonic() - started, time.process_time() - started_cpu
    return Fitted(ranker.eval(), best_epoch, epoch, with_kernel, best, *seconds)


def _with_kernel(ranker: Ranker, training_set: TrainingSet, without: dict[str, float]) -> float:
    """Validation NDCG@10 with the kernel calibrated for this epoch; a ranker that has no kernel goes by its own."""
    if ranker.kernel is None:
        return without[FILTERED_NDCG]
    calibrate(ranker, ranker.kernel, training_set, MAX_EPOCH_CALIBRATION_EVENTS)
    return validate(ranker, training_set)[FILTERED_NDCG]


@contextmanager
def repeatable(seed: int) -> Iterator[np.random.Generator]:
    """Within it the same seed gives the same weights; afterwards torch may choose its algorithms again."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a tenth of the time, for memory nobody reads
    try:
        yield np.random.default_rng(seed)
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def new_ranker(training_set: TrainingSet, config: TrainConfig) -> Ranker:
    """An unfitted ranker with the set's items attached, started from its vectors and its training sequences.

    Beyond `MAX_COMPARED_ITEMS` it goes without what compares all items with all others.
    """
    num_items, semantic_size = training_set.item_semantic.shape
    switches: dict[str, Any] = dict(config.ranker)
    if num_items > MAX_COMPARED_ITEMS and (switches.get("kernel_length") or switches.get("num_lenders")):
        say(f"{num_items:,} items are too many to compare all with all: no history kernel, no lenders")
        switches |= {"kernel_length": 0, "num_lenders": 0}
    ranker = Ranker(RankerConfig(num_items, semantic_size, config.backbone, enhancer=config.enhancer, **switches))
    item_semantic, user_semantic, item_neighbour = (
        torch.from_numpy(each)
        for each in (training_set.item_semantic, training_set.user_semantic, training_set.item_neighbour)
    )
    sequences = training_sequences(training_set)
    ranker.enhancer.start_from(item_semantic, user_semantic, torch.from_numpy(occurrences(sequences, num_items)))
    ranker.attach_items(item_semantic, item_neighbour)
    if ranker.kernel is not None:
        ranker.kernel.start_from(training_set.item_semantic, sequences)
    return ranker


def training_sequences(training_set: TrainingSet) -> list[np.ndarray]:
    """Each user's items of the training split, oldest first."""
    return [
        sequence[splits == "train"]
        for sequence, splits in zip(training_set.sequences, training_set.splits, strict=True)
    ]


def pieces_of(
    sequences: list[np.ndarray], shortest: int, longest: int, random: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """Each user's training items in pieces of `shortest` to `longest` items, cut elsewhere in every epoch.

    Lengths are log-uniform: short pieces are cheap and give an epoch more steps, long ones teach every position.
    Neighbouring pieces share one item: the last target of one is the first input of the next.
    """
    result = []
    for user, items in enumerate(sequences):
        end = len(items)
        while end > 1:
            size = int(np.exp(random.uniform(np.log(min(shortest, longest)), np.log(longest + 1))))
            result.append((user, items[max(0, end - size) : end]))
            end -= size - 1
    return result


def batches(
    pieces: list[tuple[int, np.ndarray]], batch_size: int, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Users (B,) and items (B, T): pieces of like length together, so that little is padding, in random order."""
    order = random.permutation(len(pieces))
    order = order[np.argsort([len(pieces[place][1]) for place in order], kind="stable")]
    for start in random.permutation(np.arange(0, len(order), batch_size)):
        chosen = [pieces[place] for place in order[start : start + batch_size]]
        yield np.array([user for user, _ in chosen]), pad([items for _, items in chosen])


def as_batch(
    training_set: TrainingSet, sequences: list[np.ndarray], users: np.ndarray, items: np.ndarray, config: TrainConfig
) -> Batch:
    """Inputs and targets of pieces (B, T): the next items, or for BERT4Rec the hidden ones."""
    items_BT = torch.from_numpy(items)
    if config.backbone == "bert4rec":
        valid_BT, target_BT = mask_items(items_BT, config.mask_share), items_BT
        items_BT = items_BT.masked_fill(valid_BT, MASK)
    else:
        items_BT, target_BT = items_BT[:, :-1], items_BT[:, 1:]
        valid_BT = items_BT != PADDING
        if config.targets == "last":
            valid_BT = torch.zeros_like(valid_BT)
            valid_BT[:, -1] = True
    return Batch(
        torch.from_numpy(users),
        items_BT,
        target_BT,
        valid_BT,
        torch.from_numpy(pad([sequences[user] for user in users])),
        torch.from_numpy(training_set.user_semantic[users]),
        torch.from_numpy(training_set.user_neighbour[users]),
    )


def mask_items(items_BT: Tensor, share: float) -> Tensor:
    """BERT4Rec's question: which items are hidden. Every other sequence hides its last one, as inference does."""
    hidden_BT = (torch.rand(items_BT.shape) < share) & (items_BT != PADDING)
    only_last_B = (torch.rand(len(items_BT)) < 0.5) | ~hidden_BT.any(1)
    hidden_BT[only_last_B] = False
    hidden_BT[only_last_B, -1] = True
    return hidden_BT


def _negatives(training_set: TrainingSet) -> np.ndarray:
    """What the validation targets are ranked against in the sampled protocol, the same for every recipe."""
    return draw_negatives(questions(training_set, "validation"), len(training_set.item_ids))


def validate(
    ranker: Ranker, training_set: TrainingSet, *, with_kernel: bool = True, negatives: np.ndarray | None = None
) -> dict[str, float]:
    """Mean of every metric over the validation targets, by full ranking with the history left out.

    With `negatives`, one row per target, also the NDCG@10 among them.
    """
    events = questions(training_set, "validation")
    if not events:
        raise ValueError("the training set has no validation target: no user has three interactions before the cutoff")
    score = ranker_scorer(ranker, training_set.item_ids, training_set, with_kernel=with_kernel)
    ranking = rank_events(score, events, [] if negatives is None else [negatives])
    found = {name: float(values.mean()) for name, values in metrics(ranking.filtered).items()}
    for sampled in ranking.sampled:
        found[SAMPLED_NDCG] = float(metrics(sampled)["ndcg@10"].mean())
    return found
