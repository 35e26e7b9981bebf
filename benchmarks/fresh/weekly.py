"""What training anew every week is worth, by global time.

The test is cut into blocks of seven days. For each block GRASP is trained anew on all that is known before it, and
answers the block's events. Recipe, epochs and the weights of kernel and fresh features stay those that were chosen at
the cut. Fresh features are as of the day before each event, as in the row that it is compared with: the weights of the
cut on the same events.

A block's ranks are kept below --cache, so that an interrupted run goes on with the next block.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fresh.entries import BLOCK_DAYS, weekly_row
from benchmarks.quality.matrix import MatrixEntry
from benchmarks.quality.measure import QualityBenchmark
from benchmarks.quality.scorers import KERNEL, weights_of
from grasp.files import replacing
from grasp.progress import say
from grasp.versions import digest
from training.data.training_set import TrainingSet
from training.evaluation.ranking import Event, RankingResult, Ranks, ranker_scorer
from training.fitting.fresh_calibration import set_weights
from training.fitting.recipes import RECIPE_VERSION
from training.fitting.training_loop import train_epochs
from training.model.history_kernel import KINDS
from training.model.ranker import Ranker

SECONDS = ("wall_seconds", "cpu_seconds")


def blocks_of(events: Sequence[Event], cut_day: int) -> dict[int, np.ndarray]:
    """The rows of the events of each block, by the block's first day. Blocks without events are left out."""
    block_E = (np.array([event.day for event in events]) - cut_day) // BLOCK_DAYS
    return {cut_day + BLOCK_DAYS * int(block): np.flatnonzero(block_E == block) for block in np.unique(block_E)}


class WeeklyRetraining:
    """The weekly weights of one seed. `entry` is GRASP's, trained at the cut."""

    def __init__(self, benchmark: QualityBenchmark, entry: MatrixEntry) -> None:
        """Raises `ValueError` while the weights of the cut are not measured, which say how to train."""
        assert entry.config is not None
        self._benchmark = benchmark
        self._config = benchmark.settle(entry, entry.config, [entry])
        self._seed, self.row = entry.row.seed, weekly_row(entry.row)
        at_cut = replace(entry.row, addition="fresh").row_id
        finished = {each.row.row_id: each.info for each in benchmark.results.rows()}
        if at_cut not in finished:
            raise ValueError(f"{at_cut} is not measured yet: measure {entry.row.protocol} before weekly")
        self._at_cut = finished[at_cut]
        assert self._at_cut.chosen is not None
        self._weights: Mapping[str, Any] = self._at_cut.chosen["added"]

    def run(self, end: float) -> None:
        """Train and test block after block, until `end` on the monotonic clock; after the last one store the row."""
        cut = self._benchmark.data.cut
        assert cut is not None
        blocks = blocks_of(self._benchmark.protocol.events, cut.day)
        for number, (first_day, rows) in enumerate(blocks.items(), start=1):
            if self._file(first_day).exists():
                continue
            if time.monotonic() > end:
                say(f"time is over: {len(blocks) - number + 1} weeks of {self.row.row_id} are left for the next run")
                return
            say(f"{self.row.row_id}: week {number} of {len(blocks)}, {len(rows):,} events")
            found = self._block(first_day, rows)
            with replacing(self._file(first_day)) as handle:
                np.savez(handle, **found)
        parts = []
        for first_day in blocks:
            with np.load(self._file(first_day)) as kept:
                parts.append(dict(kept))
        self._store(parts, list(blocks.values()))

    def _block(self, first_day: int, rows: np.ndarray) -> dict[str, Any]:
        """The ranks of a block's events by weights that know all before its first day, and the seconds they took."""
        started, started_cpu = time.monotonic(), time.process_time()
        data = self._benchmark.load(fitting_day=first_day)
        assert data.cut is not None
        ranker = self._trained(data.cut.fitting)
        features = self._benchmark.features.of("test")
        score = ranker_scorer(ranker, data.cut.fitting.item_ids, data.training_set, fresh=features)
        ranking = self._benchmark.protocol.rank(score, rows)
        seconds = time.monotonic() - started, time.process_time() - started_cpu
        return to_arrays(ranking) | dict(zip(SECONDS, seconds, strict=True))

    def _trained(self, fitting: TrainingSet) -> Ranker:
        ranker = train_epochs(fitting, self._config, self._seed, self._at_cut.best_epoch)
        if ranker.kernel is not None:
            ranker.kernel.weights_K.copy_(torch.tensor([self._weights[KERNEL][kind] for kind in KINDS]))
        set_weights(ranker.fresh, weights_of(self._weights))
        return ranker

    def _store(self, parts: Sequence[Mapping[str, np.ndarray]], rows: Sequence[np.ndarray]) -> None:
        found = self._benchmark.protocol.result(from_arrays(parts, rows))
        known = asdict(self._at_cut) | {"fresh_cpu_seconds": None}
        known |= {name: sum(float(part[name]) for part in parts) for name in SECONDS}
        for of_test in ("num_threads", "commit", "data_checksum", "coverage_at_10", "cross_category_share_at_10"):
            del known[of_test]
        self._benchmark.store(self.row, found, **known)

    def _file(self, first_day: int) -> Path:
        """One file for each block, below the hash of all that its ranks depend on."""
        known = [
            self._benchmark.data.checksum,
            BLOCK_DAYS,
            asdict(self._config),
            RECIPE_VERSION,
            self._seed,
            self._at_cut.best_epoch,
            self._weights,
        ]
        return Path(self._benchmark.given.cache) / "weekly" / digest(known)[:16] / f"{first_day}.npz"


def to_arrays(ranking: RankingResult) -> dict[str, Any]:
    """What a file keeps of a block's ranks."""
    ranks = [ranking.filtered, ranking.unfiltered, *ranking.sampled]
    return {
        "num_greater": np.stack([each.num_greater for each in ranks]),
        "num_tied": np.stack([each.num_tied for each in ranks]),
        "top": ranking.top,
    }


def from_arrays(parts: Sequence[Mapping[str, np.ndarray]], rows: Sequence[np.ndarray]) -> RankingResult:
    """The ranks of all events from those of the blocks; `rows` are the places of each block's events."""
    place = np.argsort(np.concatenate(rows))
    greater, tied = (
        np.concatenate([part[name] for part in parts], axis=1)[:, place] for name in ("num_greater", "num_tied")
    )
    filtered, unfiltered, *sampled = (Ranks(*each) for each in zip(greater, tied, strict=True))
    return RankingResult(filtered, unfiltered, sampled, np.concatenate([part["top"] for part in parts])[place])
