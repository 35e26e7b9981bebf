"""How fast training is, side by side with RecBole's and RecTools' SASRec; what is measured is never measured again.

    python -m benchmarks.training_speed --data FOLDER --out docs/benchmarks/training-speed

Reads:   a folder of the data contract; with --quality the finished rows of `benchmarks.quality`
Writes:  measurements.jsonl, report.md with a plot, and summary.json in --out; the peers' environments below GRASP_HOME

All sides have the same training sequences, threads, width, blocks, heads, dropout and longest sequence. What the peers'
models are worth is judged here, by the evaluation of every other benchmark, from the scores that they export. The
clock of a side runs while it trains: not while it sets up, exports or is judged.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.core import invocation
from benchmarks.core.machine import machine
from benchmarks.core.measurements import Conditions, Job, Measurements, chosen_kinds, measure_missing
from benchmarks.data import datasets
from benchmarks.data.datasets import BenchmarkData
from benchmarks.data.readers import MOVIELENS, source_folder
from benchmarks.peers.running import PEERS, PeerError
from benchmarks.quality.results import Results
from benchmarks.training_speed import own_speed
from benchmarks.training_speed import report as speed_report
from benchmarks.training_speed.peer_speed import PeerBench
from benchmarks.training_speed.report import About
from benchmarks.training_speed.results import OWN
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from spark_jobs.source.reader import SourceError
from training.evaluation.evaluate import questions
from training.fitting.fit import training_sequences

NEGATIVES = (256, 1024, None)  # None: all items, the only loss that all sides know
CURVE_NEGATIVES = (None, 256)  # of the peers that can: RecTools' default, and the published strong SASRec
KINDS = ("positions", "curve", "text_cost", "full_eval", "grasp_seed")


def jobs(data: BenchmarkData, peers: Path, given: argparse.Namespace) -> list[Job]:
    """In the order in which they are made: sides take turns, so that a busy machine slows all of them."""
    bench = PeerBench(peers, data.training_set, given.threads)
    return [*position_jobs(data, bench, given), *curve_jobs(data, bench, given), *own_jobs(data, given)]


def position_jobs(data: BenchmarkData, bench: PeerBench, given: argparse.Namespace) -> Iterator[Job]:
    for number in range(given.rounds):
        for negatives in NEGATIVES:
            ours = partial(own_speed.positions, data.training_set, negatives)
            yield Job(f"positions, {OWN}, {drawn(negatives)}, round {number}", "positions", ours)
            for peer in PEERS:
                if negatives is None or peer.can_sample:
                    name = f"positions, {peer.name}, {drawn(negatives)}, round {number}"
                    yield Job(name, "positions", partial(bench.positions, peer, negatives, given.seconds))


def curve_jobs(data: BenchmarkData, bench: PeerBench, given: argparse.Namespace) -> Iterator[Job]:
    yield Job(f"curve, {OWN}", "curve", partial(own_speed.curve, data.training_set, given.minutes))
    for peer in PEERS:
        for negatives in CURVE_NEGATIVES:
            if negatives is None or peer.can_sample:
                system = f"{peer.name}, {drawn(negatives)}"
                measure = partial(bench.curve, peer, negatives, system, given.minutes, given.export_seconds)
                yield Job(f"curve, {system}", "curve", measure)


def own_jobs(data: BenchmarkData, given: argparse.Namespace) -> Iterator[Job]:
    quality = Results(given.quality, data.checksum) if given.quality else None
    yield Job("text cost", "text_cost", partial(own_speed.text_cost, data.training_set, given.epochs))
    yield Job("full evaluation", "full_eval", partial(own_speed.full_evaluation, data.training_set))
    yield Job("seed of GRASP", "grasp_seed", partial(own_speed.grasp_seed, data.training_set, quality))


def drawn(num_negatives: int | None) -> str:
    return "all items" if num_negatives is None else f"{num_negatives} negatives"


def run_all(given: argparse.Namespace, settings: Settings) -> None:
    """Make what is missing of the wanted measurements, each written as soon as it is made, and the report."""
    torch.set_num_threads(given.threads)
    data = datasets.load(source_folder(given.data, settings), cache=given.cache, settings=settings)
    peers = settings.home / "benchmarks" / "peers"
    peers.mkdir(parents=True, exist_ok=True)
    measurements, conditions = Measurements(given.out), Conditions(data.checksum, given.threads, machine())
    measurements.require(conditions)
    every = jobs(data, peers, given)
    speed_report.describe(given.out, about(data, [job.name for job in every], given))
    measure_missing(every, given.only, measurements, conditions)
    speed_report.write(given.out)
    say(f"report: {given.out / speed_report.REPORT_FILE}")


def about(data: BenchmarkData, wanted: list[str], given: argparse.Namespace) -> About:
    """What the report's first lines say of this run."""
    return About(
        data=data.name,
        num_users=len(training_sequences(data.training_set)),
        num_items=len(data.training_set.item_ids),
        num_targets=own_speed.num_targets(data.training_set),
        num_validation_users=len(questions(data.training_set, "validation")),
        peers=[peer.distribution for peer in PEERS],
        shape=own_speed.SHAPE,
        curve_minutes=given.minutes,
        command=given.command,
        wanted=wanted,
    )


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.training_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--data", required=True, help=f"folder of the data contract, or {MOVIELENS}")
    result.add_argument("--out", type=Path, required=True, help="folder of the report")
    result.add_argument("--quality", type=Path, help="the quality benchmark's folder: a seed that is there is not run")
    result.add_argument("--cache", type=Path, help="vectors of texts (default: below GRASP_HOME)")
    result.add_argument("--only", default=",".join(KINDS), help=f"of {', '.join(KINDS)}; the others another time")
    result.add_argument("--threads", type=int, default=2, help="of every side")
    result.add_argument("--rounds", type=int, default=3, help="of target positions per second")
    result.add_argument("--seconds", type=float, default=60.0, help="of a peer's training in a round")
    result.add_argument("--minutes", type=float, default=20.0, help="of training for a curve, at most")
    result.add_argument("--export-seconds", type=float, default=20.0, help="of training between two points of a peer")
    result.add_argument("--epochs", type=int, default=5, help="of the text cost, for either side")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    try:
        given.command = invocation.command(parser(), given, left_out={"cache", "only"})
        settings = Settings.load()
        given.only = chosen_kinds(given.only, KINDS)
        given.cache = given.cache or settings.home / "benchmarks"
        run_all(given, settings)
    except (SettingsError, SourceError, PeerError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
