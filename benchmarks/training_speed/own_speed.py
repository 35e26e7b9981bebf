"""Our side of the training-speed benchmark: the cost of the project's own training and evaluation."""

import time
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.quality.matrix import AS_GRASP, trained_entry, with_trial
from benchmarks.quality.results import Results
from benchmarks.quality.rows import FinishedRow
from benchmarks.training_speed.figures import OWN
from grasp.progress import say
from training.data.training_set import TrainingSet, training_sequences
from training.evaluation.ranking import evaluation_events, rank_events, ranker_scorer
from training.fitting.recipes import DEFAULT, TrainConfig, recipe
from training.fitting.training_loop import TrainingRun, deterministic, fit, new_ranker, validate

SEED = 0
SHAPE = {"width": 64, "num_blocks": 2, "num_heads": 1, "max_length": 50, "dropout": 0.2}  # 50: RecBole's default
WIDE: dict[str, object] = {"width": 128, "dropout": 0.5}  # one of the trials of `benchmarks.quality.matrix`
NUM_EVALUATIONS = 3
SEED_LIMITS = {"max_epochs": 200, "patience": 8, "max_minutes": 120.0}  # patience alone should end it


def timed_epoch(training: TrainingRun) -> float:
    """Train an epoch; returns its seconds."""
    started = time.perf_counter()
    training.run_epoch()
    return time.perf_counter() - started


def same_shape(config: TrainConfig) -> TrainConfig:
    """A recipe with the width, depth and length of all sides."""
    return config.with_switches(**SHAPE)


def as_measured(model: str) -> TrainConfig:
    """A recipe as the quality benchmark trains it, at the width that most of its trials choose."""
    config = trained_entry(model, SEED, "main").config
    assert config is not None
    return with_trial(config, WIDE)


def num_targets(training_set: TrainingSet) -> int:
    """Training positions with a next item. An epoch has each of them once."""
    return sum(max(len(items) - 1, 0) for items in training_sequences(training_set))


def positions(training_set: TrainingSet, num_negatives: int | None) -> dict[str, Any]:
    """A whole epoch of `sasrec`: batches differ in length, so an average over some of them would not be fair.

    As at the peers, sequences are cut only where they are longer than the model reads: a position of a shorter piece
    sees less and costs less.
    """
    config = same_shape(recipe("sasrec"))
    config = replace(config, shortest_piece=int(SHAPE["max_length"]))
    if num_negatives is None:
        config = replace(config, loss="cross_entropy")
    else:
        config = replace(config, loss="sampled_softmax", num_negatives=num_negatives)
    with deterministic(SEED) as random:
        seconds = timed_epoch(TrainingRun(training_set, config, random))
    count = num_targets(training_set)
    return {"system": OWN, "num_negatives": num_negatives, "seconds": seconds, "num_targets": count}


def curve(training_set: TrainingSet, minutes: float) -> dict[str, Any]:
    """Validation NDCG@10 of `sasrec` after every epoch, until `patience` epochs were no better or time is over."""
    config, points = same_shape(recipe("sasrec")), list[tuple[float, float]]()
    started, seconds, best_epoch = time.perf_counter(), 0.0, 0
    with deterministic(SEED) as random:
        training = TrainingRun(training_set, config, random)
        setup_seconds = time.perf_counter() - started
        while seconds < 60 * minutes and len(points) - best_epoch < config.patience:
            seconds += timed_epoch(training)
            points.append((seconds, validate(training.evaluated_ranker, training_set)["ndcg@10"]))
            say(f"{OWN}: {seconds:.0f} s, validation NDCG@10 {points[-1][1]:.4f}")
            best_epoch = 1 + int(np.argmax([value for _, value in points]))
    return {"system": OWN, "setup_seconds": setup_seconds, "points": points}


def text_cost(training_set: TrainingSet, num_epochs: int) -> dict[str, Any]:
    """Epochs of GRASP, and of ids alone trained in the same way, in turns. The first of each does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    text = as_measured(DEFAULT)
    # Several targets and averaged weights cost the same without text.
    ids = replace(as_measured("sasrec"), **{name: getattr(text, name) for name in AS_GRASP})  # type: ignore[arg-type]
    with deterministic(SEED) as random:
        sides = [TrainingRun(training_set, config, random) for config in (ids, text)]
        for number in range(num_epochs + 1):
            for side, found in zip(sides, seconds, strict=True):
                found.append(timed_epoch(side))
            say(f"text cost, epoch {number}: ids {seconds[0][-1]:.1f} s, text {seconds[1][-1]:.1f} s")
    return {"ids_seconds": seconds[0][1:], "text_seconds": seconds[1][1:]}


def full_evaluation(training_set: TrainingSet) -> dict[str, Any]:
    """Rank all items for every test event by the default recipe. Untrained weights cost as much as trained ones."""
    events, seconds = evaluation_events(training_set, "test"), []
    with deterministic(SEED):
        ranker = new_ranker(training_set, as_measured(DEFAULT))
    for _ in range(NUM_EVALUATIONS):
        started = time.perf_counter()
        rank_events(ranker_scorer(ranker, training_set.item_ids, training_set), events)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "num_events": len(events), "num_items": len(training_set.item_ids)}


def grasp_seed(training_set: TrainingSet, quality: Results | None) -> dict[str, Any]:
    """Minutes of the default recipe to early stopping: from the quality benchmark, or else trained here."""
    if quality and (found := seed_minutes(quality, torch.get_num_threads())):
        return found
    config = replace(as_measured(DEFAULT), **SEED_LIMITS)  # type: ignore[arg-type]
    started = time.perf_counter()
    fitted = fit(training_set, config, SEED, _say_epoch)
    minutes = (time.perf_counter() - started) / 60
    return {"minutes": minutes, "slowest_minutes": minutes, "epochs": [fitted.num_epochs], "source": "trained here"}


def seed_minutes(quality: Results, num_threads: int) -> dict[str, Any] | None:
    """Training minutes of the default recipe's finished seeds that patience ended; None when there are none.

    A seed that a time limit cut short does not tell how long it would have taken.
    """
    ended = [each for each in quality.rows() if _is_default(each) and _ended_by_patience(each, num_threads)]
    if not ended:
        say(f"{quality.file} has no {DEFAULT} that patience ended with {num_threads} threads: training one")
        return None
    minutes = [each.info.wall_seconds / 60 for each in ended]
    commits = ", ".join(sorted({each.info.commit for each in ended}))
    return {
        "minutes": mean(minutes),
        "slowest_minutes": max(minutes),
        "epochs": [each.info.num_epochs for each in ended],
        "source": f"quality benchmark, commit {commits}",
    }


def _is_default(each: FinishedRow) -> bool:
    row = each.row
    return (row.model, row.addition, row.ablation, row.corruption) == (DEFAULT, "none", "", 0.0)


def _ended_by_patience(each: FinishedRow, num_threads: int) -> bool:
    return each.info.num_threads == num_threads and not each.info.is_cut_short


def _say_epoch(epoch: int, found: dict[str, float]) -> None:
    say(f"{DEFAULT} epoch {epoch}: validation NDCG@10 {found['ndcg@10']:.4f}")
