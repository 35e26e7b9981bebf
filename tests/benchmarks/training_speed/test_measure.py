"""Planted measurements and a peer of a few lines: ratios, resuming, the clock and what is judged."""

import json
import sys

import numpy as np
import pytest

from benchmarks.core.store import Conditions, Measurement, Measurements, write_about
from benchmarks.peers import protocol, running
from benchmarks.peers.protocol import Data, Message, Request
from benchmarks.peers.running import RECBOLE, RECTOOLS, PeerError
from benchmarks.quality.matrix import TRIALS, matrix, with_trial
from benchmarks.quality.results import Results
from benchmarks.quality.rows import Row, RowInfo
from benchmarks.training_speed import measure, own_speed
from benchmarks.training_speed.figures import OWN, Curve, Race, figures, race, speeds
from benchmarks.training_speed.peer_speed import ndcg_at_10
from benchmarks.training_speed.report import REPORT
from training.evaluation.ranking import Event, Ranks

MACHINE = {"processor": "Some CPU", "num_cores": 2, "memory_gib": 8.0, "python": "3.11", "torch": "2"}
CONDITIONS = Conditions("d1", 2, MACHINE)
SLOW, FAST = "recbole, all items", "rectools, all items"


def plant(measurements: Measurements, kind: str, *, name: str = "", **found) -> None:
    name = name or f"{kind} {len(measurements.all())}"
    measurements.add(Measurement(name, kind, found, CONDITIONS, "abc1234"))


def plant_positions(measurements: Measurements, system: str, num_negatives: int | None, *rates: float) -> None:
    for rate in rates:
        found = {"system": system, "num_negatives": num_negatives, "seconds": 2.0, "num_targets": 2 * rate}
        plant(measurements, "positions", **found)


def plant_curve(measurements: Measurements, system: str, *points: tuple[float, float]) -> None:
    plant(measurements, "curve", system=system, setup_seconds=3.0, points=points)


def plant_all(folder) -> Measurements:
    """Positions 5 times (256) and 6 times (all) the fastest peer's; 4.5 times as fast to the target .03."""
    measurements = Measurements(folder)
    plant_positions(measurements, OWN, 256, 1000, 9000, 1100)
    plant_positions(measurements, "rectools", 256, 220)
    plant_positions(measurements, OWN, None, 600)
    plant_positions(measurements, "rectools", None, 50)
    plant_positions(measurements, "recbole", None, 100)
    plant_curve(measurements, OWN, (10, 0.02), (20, 0.031), (30, 0.05))
    plant_curve(measurements, FAST, (45, 0.01), (90, 0.032), (135, 0.04))
    plant_curve(measurements, SLOW, (200, 0.03), (400, 0.029))
    plant(measurements, "text_cost", ids_seconds=[10, 30, 10], text_seconds=[12, 12, 40])
    plant(measurements, "grasp_seed", minutes=12.0, slowest_minutes=13.0, epochs=[20, 22], source="quality")
    plant(measurements, "full_eval", seconds=[9.0, 7.0, 8.0], num_events=22363, num_items=12101)
    return measurements


def describe(folder, wanted: list[str]) -> None:
    shape = {"width": 64, "max_length": 50}
    counts = {"num_users": 5, "num_items": 7, "num_targets": 9, "num_validation_users": 3, "curve_minutes": 20}
    about = {"data": "beauty", "peers": ["recbole==1.2.1"], "shape": shape, "wanted": wanted}
    write_about(folder, about | counts | {"command": "python -m benchmarks.training_speed"})


def test_positions_are_compared_by_median_rounds_with_the_fastest_peer_at_each_number_of_negatives(tmp_path):
    sampled, every = speeds(plant_all(tmp_path))

    assert (sampled.num_negatives, sampled.fastest_peer, sampled.ratio) == (256, "rectools", 5.0)
    assert (every.num_negatives, every.fastest_peer, every.ratio) == (None, "recbole", 6.0)


def test_the_race_goes_to_what_the_one_that_came_least_far_reached(tmp_path):
    running_race = race(plant_all(tmp_path))

    assert running_race.target == 0.03
    assert running_race.ratios(0.03) == {FAST: 4.5, SLOW: 10.0}
    assert running_race.ratio == 4.5
    assert running_race.ratios(0.06) == {FAST: None, SLOW: None}


def test_a_curve_that_falls_again_has_reached_its_best_when_it_first_did():
    curve = Curve(SLOW, 0.0, [(1, 0.1), (2, 0.3), (3, 0.2), (4, 0.3)])

    assert curve.seconds_to(curve.best) == 2


def test_figures_take_the_smallest_ratio_and_medians(tmp_path):
    found = figures(plant_all(tmp_path), [])

    assert {name: figure.value for name, figure in found.items()} == {
        "speed_over_fastest_peer": 4.5,
        "text_cost_over_ids": 1.2,
        "grasp_seed_minutes": 12.0,
        "full_eval_seconds": 8.0,
    }
    assert all(figure.goal.is_met(figure.value) for figure in found.values())


def test_no_speed_over_peers_is_claimed_while_a_measurement_is_missing(tmp_path):
    measurements = plant_all(tmp_path)

    assert figures(measurements, ["curve, rectools"])["speed_over_fastest_peer"].value is None
    plant_positions(measurements, OWN, 1024, 500)  # no peer yet
    assert figures(measurements, [])["speed_over_fastest_peer"].value is None


def test_no_figure_is_known_of_nothing(tmp_path):
    assert {figure.value for figure in figures(Measurements(tmp_path), []).values()} == {None}
    assert Race([Curve(SLOW, 0.0, [(1, 0.1)])]).ratio is None


def test_the_report_says_all_of_it_and_is_the_same_again(tmp_path):
    plant_all(tmp_path)
    describe(tmp_path, ["positions 0", "curve 99"])
    REPORT.write(tmp_path)
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    REPORT.write(tmp_path)

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    report = (tmp_path / "report.md").read_text()
    assert "| all items | 600 (600 to 600) | 100 (100 to 100) | 50 (50 to 50) | 6.0 |" in report
    assert f"| {FAST} | 0.0400 | 135 | 90 | 4.5 | 4.5 | 3 |" in report
    assert "1 of 2 missing (`curve 99`)" in report
    assert "1.20 times" in report
    assert "<svg" in (tmp_path / "race.svg").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["figures"]["full_eval_seconds"] == {"value": 8.0, "goal": 10.0, "met": True}
    assert summary["figures"]["speed_over_fastest_peer"]["met"] is False  # one is missing
    assert summary["machine"] == MACHINE


# --- peers


def new_request(folder, **changed) -> Request:
    values = {
        "data": str(folder / "data.npz"),
        "scores": str(folder / "scores.npy"),
        "num_threads": 1,
        "seed": 0,
        "num_negatives": None,
        "seconds": 1.0,
        "export_seconds": 0.5,
        "width": 4,
        "num_blocks": 1,
        "num_heads": 1,
        "max_length": 5,
        "dropout": 0.0,
        "learning_rate": 0.1,
    }
    return Request(**(values | changed))


def test_messages_survive_among_a_librarys_own_talk():
    message = Message(1.5, 0.5, 100, 3)

    assert protocol.parse(protocol.as_line(message)) == message
    assert protocol.parse("GPU available: False\n") is None


def test_data_comes_back_as_it_was_saved(tmp_path):
    protocol.save_data(tmp_path / "data.npz", Data([np.array([3, 1]), np.array([2])], np.array([1]), 3))

    found = protocol.load_data(tmp_path / "data.npz")

    assert [items.tolist() for items in found.sequences] == [[3, 1], [2]]
    assert (found.asked_users.tolist(), found.num_items) == ([1], 3)


def test_items_and_users_that_a_peer_does_not_know_come_last():
    full = protocol.full_scores(np.array([[5.0, 7.0]]), np.array([1]), np.array([3, 1]), (2, 3))

    assert full.tolist() == [[4, 4, 4], [7, 4, 5]]


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(protocol.time, "perf_counter", lambda: self.now)


def test_the_clock_stands_still_while_scores_are_exported(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(protocol.sys, "stdin", open_lines(tmp_path, protocol.GO_ON, protocol.GO_ON))

    def export() -> np.ndarray:
        clock.now += 100
        return np.zeros((1, 2))

    training = protocol.Training(new_request(tmp_path), export)
    training.start()
    goes_on = []
    for _ in range(4):
        clock.now += 0.25
        goes_on.append(training.step(10))

    said = [protocol.parse(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each.seconds, each.num_targets) for each in said] == [(0.5, 20), (1.0, 40)]
    assert goes_on == [True, True, True, False]


def test_first_steps_do_not_count_where_speed_is_measured(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    training = protocol.Training(new_request(tmp_path, export_seconds=None), lambda: np.zeros((1, 2)))
    training.start()
    goes_on = True
    while goes_on:
        clock.now += 0.5
        goes_on = training.step(10)

    (said,) = [protocol.parse(line) for line in capsys.readouterr().out.splitlines()]
    assert (said.seconds, said.num_targets, said.num_steps) == (1.0, 20, 2)


def test_a_peer_stops_when_the_benchmark_is_gone(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(protocol.sys, "stdin", open_lines(tmp_path))
    training = protocol.Training(new_request(tmp_path), lambda: np.zeros((1, 2)))
    training.start()
    clock.now += 0.6

    assert not training.step(10)


def open_lines(folder, *lines: str):
    (folder / "answers").write_text("".join(f"{line}\n" for line in lines))
    return (folder / "answers").open()


SCRIPT = """
import sys
sys.path.insert(0, {peers!r})
import numpy as np
from protocol import Training, load_data, read_request
request = read_request()
print("the library talks")
training = Training(request, lambda: np.full((1, 2), 7.0))
training.start()
while training.step(5):
    pass
{end}
"""


def run_script(folder, end: str, judge) -> Message:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(peers=str(running.FOLDER), end=end))
    request = new_request(folder, seconds=0.2, export_seconds=0.01)
    return running.run([sys.executable, str(script)], request, folder, judge)


def test_a_peer_is_judged_between_its_steps(tmp_path):
    judged = []

    last = run_script(tmp_path, "", lambda message: judged.append((message, np.load(tmp_path / "scores.npy").tolist())))

    assert judged[-1] == (last, [[7.0, 7.0]])
    assert len(judged) >= 2
    assert last.seconds >= 0.2
    assert "the library talks" in (tmp_path / "talk.log").read_text()


def test_a_peer_that_fails_is_quoted(tmp_path):
    with pytest.raises(PeerError, match="out of luck"):
        run_script(tmp_path, "raise SystemExit('out of luck')", lambda _: None)


def test_every_side_gets_as_many_threads_and_none_that_spins():
    found = running.thread_environment({"OMP_NUM_THREADS": "7", "HOME": "/h"}, 2)

    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"], found["HOME"]) == ("2", "2", "/h")
    assert found["OMP_WAIT_POLICY"] == "passive"


def test_an_environment_is_made_once_for_its_pins(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        running, "_checked", lambda command: commands.append(command) or (tmp_path / "rectools").mkdir(exist_ok=True)
    )
    first = running.make_environment(RECTOOLS, tmp_path)
    num_commands = len(commands)

    assert running.make_environment(RECTOOLS, tmp_path) == first
    assert len(commands) == num_commands
    assert commands[-1][-1] == "rectools==0.19.0"


@pytest.mark.parametrize("peer", [RECBOLE, RECTOOLS], ids=lambda peer: peer.name)
def test_peers_have_exact_pins_and_the_projects_torch(peer):
    pins = [line for line in peer.requirements.read_text().splitlines() if not line.startswith("#")]

    assert all("==" in pin for pin in pins)
    assert running.TORCH in pins
    assert peer.script.is_file()


def test_exported_scores_are_judged_without_the_history():
    history = np.array([1, 2])
    events = [Event(4, history, 3), Event(9, history, 4)]
    scores = np.array([[9.0, 8.0, 7.0, 6.0], [9.0, 8.0, 7.0, 6.0]], np.float32)

    assert ndcg_at_10(scores, events) == pytest.approx((1 + 1 / np.log2(3)) / 2)
    with pytest.raises(ValueError, match="1 users, 2 were asked"):
        ndcg_at_10(scores[:1], events)


# --- our own side


def test_only_seeds_that_patience_ended_tell_how_long_one_takes(tmp_path):
    results = Results(tmp_path)
    for seed, seconds, best_epoch in ((0, 600.0, 12), (1, 900.0, 19), (2, 720.0, 11)):
        add_seed(results, seed, seconds, best_epoch)
        add_seed(results, seed, seconds, best_epoch, addition="kernel")  # another row of the same training

    found = own_speed.seed_minutes(results, num_threads=2)

    assert (found["minutes"], found["slowest_minutes"], found["epochs"]) == (11.0, 12.0, [20, 20])
    assert own_speed.seed_minutes(results, num_threads=4) is None


def add_seed(results: Results, seed: int, seconds: float, best_epoch: int, addition: str = "none") -> None:
    info = RowInfo(
        wall_seconds=seconds,
        cpu_seconds=seconds,
        num_parameters=1,
        num_epochs=20,
        best_epoch=best_epoch,
        validation_ndcg_at_10=0.1,
        num_trials=1,
        num_threads=2,
        commit="abc1234",
        data_checksum="d1",
        coverage_at_10=0.1,
        cross_category_share_at_10=None,
        patience=8,
    )
    zeros = np.zeros(2, int)
    row = Row("sasrec_grasp", seed, "main", "sasrec", "grasp", addition)
    results.add(row, {"filtered": Ranks(zeros, zeros)}, {"overall": np.ones(2, dtype=bool)}, info)


@pytest.mark.parametrize("model", ["sasrec", "sasrec_grasp"])
def test_the_cost_of_text_is_that_of_what_the_quality_benchmark_trains(model):
    [job] = [job for job in matrix("beauty", 1) if job.row.row_id == f"{model}__seed=0"]

    assert own_speed.as_measured(model) in [with_trial(job.config, settings) for settings in TRIALS]


def test_every_side_is_measured_as_often_and_recbole_only_with_all_items(tmp_path):
    given = measure.parser().parse_args(["--data", "d", "--out", "o", "--rounds", "2"])

    names = [each.name for each in measure.planned(FakeData(), tmp_path, given)]

    assert len(names) == len(set(names))
    for side, number in ((OWN, 6), ("rectools", 6), ("recbole", 2)):
        assert sum(name.startswith(f"positions, {side}, ") for name in names) == number
    assert [name for name in names if name.startswith("curve")] == [
        f"curve, {OWN}",
        "curve, rectools, all items",
        "curve, rectools, 256 negatives",
        "curve, recbole, all items",
    ]


class FakeData:
    training_set = None
    checksum = "d1"
