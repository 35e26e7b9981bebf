"""How fast training is, side by side with RecBole's and RecTools' SASRec.

    python -m benchmarks.training_speed --data FOLDER --out docs/benchmarks/training-speed

Reads:   a folder of the data contract; with --quality the finished rows of `benchmarks.quality`
Writes:  measurements.jsonl, report.md with a plot, and summary.json in --out; the peers' environments below GRASP_HOME

All sides have the same training sequences, threads, width, blocks, heads, dropout and longest sequence. Peers export
their scores, and the evaluation of every other benchmark judges them here. A side's clock runs only while it trains,
not while it sets up, exports or is judged. Every measurement is one line of measurements.jsonl and is never made again:
delete its line to measure again.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.core import command
from benchmarks.core.machine import machine
from benchmarks.core.store import Conditions, Measurements, PlannedMeasurement, write_about
from benchmarks.data import datasets
from benchmarks.data.datasets import BenchmarkData
from benchmarks.data.readers import source_folder
from benchmarks.peers.running import PEERS
from benchmarks.quality.results import Results
from benchmarks.training_speed import own_speed
from benchmarks.training_speed.figures import OWN
from benchmarks.training_speed.peer_speed import PeerSpeed
from benchmarks.training_speed.report import REPORT
from grasp.settings import Settings
from training.data.training_set import training_sequences
from training.evaluation.ranking import evaluation_events

NEGATIVES = (256, 1024, None)  # None: all items, the only loss that every side has
CURVE_NEGATIVES = (None, 256)  # of peers that can: RecTools' default, and the published strong SASRec
KINDS = ("positions", "curve", "text_cost", "full_eval", "grasp_seed")


def planned(data: BenchmarkData, peers: Path, given: argparse.Namespace) -> list[PlannedMeasurement]:
    """Sides take turns, so that a busy machine slows all of them."""
    peer_speed = PeerSpeed(peers, data.training_set, given.threads)
    return [*_positions(data, peer_speed, given), *_curves(data, peer_speed, given), *_own_costs(data, given)]


def _positions(data: BenchmarkData, peer_speed: PeerSpeed, given: argparse.Namespace) -> Iterator[PlannedMeasurement]:
    for number in range(given.rounds):
        for negatives in NEGATIVES:
            sides = {OWN: partial(own_speed.positions, data.training_set, negatives)}
            for peer in PEERS:
                if negatives is None or peer.can_sample:
                    sides[peer.name] = partial(peer_speed.positions, peer, negatives, given.seconds)
            for system, measure_side in sides.items():
                name = f"positions, {system}, {_drawn(negatives)}, round {number}"
                yield PlannedMeasurement(name, "positions", measure_side)


def _curves(data: BenchmarkData, peer_speed: PeerSpeed, given: argparse.Namespace) -> Iterator[PlannedMeasurement]:
    yield PlannedMeasurement(f"curve, {OWN}", "curve", partial(own_speed.curve, data.training_set, given.minutes))
    for peer in PEERS:
        for negatives in CURVE_NEGATIVES:
            if negatives is None or peer.can_sample:
                system = f"{peer.name}, {_drawn(negatives)}"
                curve = partial(peer_speed.curve, peer, negatives, system, given.minutes, given.export_seconds)
                yield PlannedMeasurement(f"curve, {system}", "curve", curve)


def _own_costs(data: BenchmarkData, given: argparse.Namespace) -> Iterator[PlannedMeasurement]:
    quality = Results(given.quality, data.checksum) if given.quality else None
    training_set = data.training_set
    yield PlannedMeasurement("text cost", "text_cost", partial(own_speed.text_cost, training_set, given.epochs))
    yield PlannedMeasurement("full evaluation", "full_eval", partial(own_speed.full_evaluation, training_set))
    yield PlannedMeasurement("seed of GRASP", "grasp_seed", partial(own_speed.grasp_seed, training_set, quality))


def _drawn(num_negatives: int | None) -> str:
    return "all items" if num_negatives is None else f"{num_negatives} negatives"


def measure(given: argparse.Namespace, settings: Settings) -> None:
    """Make the wanted measurements that are missing, and write the report."""
    torch.set_num_threads(given.threads)
    data = datasets.load(source_folder(given.data, settings), cache=given.cache, settings=settings)
    peers = settings.home / "benchmarks" / "peers"
    peers.mkdir(parents=True, exist_ok=True)
    measurements, conditions = Measurements(given.out), Conditions(data.checksum, given.threads, machine())
    measurements.require(conditions)
    every = planned(data, peers, given)
    about = {
        "data": data.name,
        "num_users": len(training_sequences(data.training_set)),
        "num_items": len(data.training_set.item_ids),
        "num_targets": own_speed.num_targets(data.training_set),
        "num_validation_users": len(evaluation_events(data.training_set, "validation")),
        "peers": [peer.distribution for peer in PEERS],
        "shape": own_speed.SHAPE,  # of every side's model
        "curve_minutes": given.minutes,
        "command": given.command,
        "wanted": [each.name for each in every],
    }
    write_about(given.out, about)
    measurements.make_missing(every, given.only, conditions)
    REPORT.write(given.out, given.command)


def parser() -> argparse.ArgumentParser:
    result = command.new_parser("benchmarks.training_speed", __doc__, KINDS, has_data=True)
    result.add_argument("--quality", type=Path, help="folder of the quality benchmark: its seeds are not trained again")
    result.add_argument("--threads", type=int, default=2, help="of every side")
    result.add_argument("--rounds", type=int, default=3, help="of target positions per second")
    result.add_argument("--seconds", type=float, default=60.0, help="of a peer's training in a round")
    result.add_argument("--minutes", type=float, default=20.0, help="most training time of a curve")
    result.add_argument("--export-seconds", type=float, default=20.0, help="of training between two points of a peer")
    result.add_argument("--epochs", type=int, default=5, help="of each side of the text cost")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(command.parse(parser(), arguments), measure)
