"""A peer's target positions per second, and its validation NDCG@10 during training.

Shape suffixes:  E events  N items
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.protocol import Data, Message, Request, save_data
from benchmarks.peers.running import Peer, make_environment, run
from benchmarks.training_speed.own_speed import SEED, SHAPE
from grasp.progress import say
from training.data.training_set import TrainingSet, training_sequences
from training.evaluation.metrics import event_metrics
from training.evaluation.ranking import Event, evaluation_events, rank_events

LEARNING_RATE = 1e-3  # the default of both, and ours


@dataclass(frozen=True)
class PeerSpeed:
    """Where peers are installed, what they train on, and with how many threads."""

    home: Path
    training_set: TrainingSet
    num_threads: int

    def positions(self, peer: Peer, num_negatives: int | None, seconds: float) -> dict[str, Any]:
        """The target positions of a bounded time, after a few steps that do not count."""
        last = self._run(peer, num_negatives, seconds, None, lambda *_: None)
        return {
            "system": peer.name,
            "num_negatives": num_negatives,
            "seconds": last.seconds,
            "num_targets": last.num_targets,
            "num_steps": last.num_steps,
        }

    def curve(
        self, peer: Peer, num_negatives: int | None, system: str, minutes: float, export_seconds: float
    ) -> dict[str, Any]:
        """Validation NDCG@10 after every `export_seconds` of training, by the project's own evaluation."""
        points, events = list[tuple[float, float]](), evaluation_events(self.training_set, "validation")

        def judge(message: Message, scores: Path) -> None:
            points.append((message.seconds, ndcg_at_10(np.load(scores, mmap_mode="r"), events)))
            say(f"{system}: {message.seconds:.0f} s, {message.num_steps} steps, NDCG@10 {points[-1][1]:.4f}")

        last = self._run(peer, num_negatives, 60 * minutes, export_seconds, judge)
        return {"system": system, "setup_seconds": last.setup_seconds, "points": points}

    def _run(
        self,
        peer: Peer,
        num_negatives: int | None,
        seconds: float,
        export_seconds: float | None,
        judge: Callable[[Message, Path], None],
    ) -> Message:
        python = make_environment(peer, self.home)
        with tempfile.TemporaryDirectory(dir=self.home, prefix=f".{peer.name}-") as name:
            folder = Path(name).resolve()
            data, scores = folder / "data.npz", folder / "scores.npy"
            save_data(data, exported(self.training_set))
            request = Request(
                data=str(data),
                scores=str(scores),
                num_threads=self.num_threads,
                seed=SEED,
                num_negatives=num_negatives,
                seconds=seconds,
                export_seconds=export_seconds,
                learning_rate=LEARNING_RATE,
                **SHAPE,  # type: ignore[arg-type]
            )
            return run([str(python), str(peer.script)], request, folder, lambda message: judge(message, scores))


def exported(training_set: TrainingSet) -> Data:
    """What a peer sees: the training sequences, and the users who validate, without their targets."""
    asked = [event.user for event in evaluation_events(training_set, "validation")]
    return Data(training_sequences(training_set), np.array(asked, np.int64), len(training_set.item_ids))


def ndcg_at_10(scores: np.ndarray, events: Sequence[Event]) -> float:
    """Mean filtered NDCG@10 of exported scores (E, N), one row per event. Raises `ValueError` for other rows."""
    if len(scores) != len(events):
        raise ValueError(f"a peer exported the scores of {len(scores)} users, {len(events)} were asked")
    row = {event.user: place for place, event in enumerate(events)}

    def scorer(batch: Sequence[Event]) -> np.ndarray:
        return np.asarray(scores[[row[event.user] for event in batch]])

    return float(event_metrics(rank_events(scorer, events).filtered)["ndcg@10"].mean())
