"""Planted rows and measurements: the report must find their effects, and never call met what was not measured."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.core.store import Conditions, Measurement, Measurements, write_about
from benchmarks.fresh.figures import WITHOUT, Place, figures, grasp, places
from benchmarks.fresh.report import REPORT
from benchmarks.quality.results import Results
from benchmarks.quality.rows import Row, RowInfo
from training.evaluation import metrics
from training.evaluation.ranking import Ranks

NUM = 400
DAY = np.arange(NUM) % 60
IS_KNOWN = np.arange(NUM) % 4 > 0
MACHINE = {"processor": "Some CPU", "num_cores": 2, "memory_gib": 8.0, "python": "3.11", "torch": "2"}
CONDITIONS = Conditions("d1", 1, MACHINE)
GROUPS = {
    "overall": np.ones(NUM, bool),
    "known users": IS_KNOWN,
    "cold users": ~IS_KNOWN,
    **{f"days {first}-{first + 9}": first // 10 == DAY // 10 for first in range(1, 51, 10)},
    "days from 51 on": DAY >= 50,
}
UNITS = {"user": np.arange(NUM, dtype=np.int32) // 2, "item": np.arange(NUM, dtype=np.int32) % 20}
KERNEL = {"semantic": 1.0, "transition": 10.0, "cooccurrence": 5.0}
FRESH = {"takers": [0.1, 0.2, 0.3, 0.4, 0.5], "stored_votes": 0.75, "state_votes": 4.0, "kernel": KERNEL}
SKILLS = {  # of the systems by global time: the share of targets that they rank first on the first day
    ("kernel", "no_takers_offset"): 0.4,
    ("takers", "no_takers_offset"): 0.55,
    ("takers", ""): 0.6,
    ("fresh", ""): 0.75,
    ("takers_frozen", ""): 0.5,
    ("fresh_frozen", ""): 0.58,
    ("stored", ""): 0.7,
    ("stored_permuted", ""): 0.64,
    ("fresh_chosen", ""): 0.72,
    ("fresh", "weekly"): 0.9,
}
RIVAL_SKILLS = {
    ("sasrec", "kernel", "as_grasp,no_takers_offset"): 0.3,
    ("sasrec", "takers", "as_grasp,no_takers_offset"): 0.4,
    ("sasrec", "takers", "as_grasp"): 0.52,
    ("sasrec_llm_init", "kernel", "as_grasp,no_takers_offset"): 0.35,
    ("sasrec_llm_init", "takers", "as_grasp,no_takers_offset"): 0.45,
    ("sasrec_llm_init", "takers", "as_grasp"): 0.55,
    ("sasrec_llm_init", "none", ""): 0.25,
}
LEFT_OUT_SKILLS = {"kernel": 0.4, "takers": 0.45, "fresh": 0.5, "fresh_chosen": 0.52}  # of MovieLens
LUCK = np.arange(NUM) * 0.618034 % 1  # of each event, evenly spread over any group of events


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(metrics, "NUM_RESAMPLES", 200)


def info(row: Row) -> RowInfo:
    added = {"none": None, "kernel": KERNEL}.get(row.addition, FRESH)
    if row.addition == "fresh_chosen":
        added = FRESH | {"choice": "takers and state votes", "gains": {}}
    return RowInfo(
        wall_seconds=500.0,
        cpu_seconds=100.0 if row.ablation == "no_takers_offset" else 120.0 if row.protocol == "global-time" else 900.0,
        fresh_cpu_seconds=20.0,
        num_trials=1,
        num_threads=1,
        commit="abc1234",
        data_checksum="d1",
        coverage_at_10=0.5,
        cross_category_share_at_10=None,
        chosen={"settings": {}, "added": added},
        recipe_version=1,
    )


def add(folder: Path, row: Row, skill: float) -> None:
    """A row that ranks more targets of known users first the more skill it has, and fewer each day."""
    is_hit = np.where(IS_KNOWN, skill * (1 - DAY / 100), 0.05) > LUCK
    ranks = Ranks(np.where(is_hit, 0, 30), np.zeros(NUM, int))
    is_by_time = row.protocol == "global-time"
    groups = GROUPS if is_by_time else {"overall": GROUPS["overall"]}
    rankings = dict.fromkeys(("filtered", "unfiltered", "sampled_0"), ranks)
    Results(folder).add(row, rankings, groups, info(row), UNITS if is_by_time else None)


def describe(folder: Path, *more: str, command: str = "python -m benchmarks.fresh --data $GRASP_DATA/beauty --out DIR"):
    counts = {"num_users": 200, "num_items": 1000, "num_interactions": 9 * NUM, "num_events": NUM}
    wanted = [*(each.row.row_id for each in Results(folder).rows()), *more]
    about = {"data": "beauty", "command": command, "machine": MACHINE, "wanted": wanted}
    write_about(folder, about | counts)


def fill_by_time(folder: Path, num_seeds: int = 2) -> None:
    for seed in range(num_seeds):
        for (addition, ablation), skill in SKILLS.items():
            row = Row("sasrec_grasp", seed, "fresh", "sasrec", "grasp", addition, 0.0, ablation, "global-time")
            add(folder, row, skill)
    for (model, addition, ablation), skill in RIVAL_SKILLS.items():
        enhancer, section = {"sasrec": "none"}.get(model, "llm_init"), "rivals" if ablation else "fresh"
        add(folder, Row(model, 0, section, "sasrec", enhancer, addition, 0.0, ablation, "global-time"), skill)
    describe(folder, "sasrec_grasp__+kernel__no_takers_offset__global-time__seed=2")


def measure(folder: Path, kind: str, found: dict[str, object]) -> None:
    Measurements(folder).add(Measurement(kind, kind, found, CONDITIONS, "abc1234"))


def future_facts(num_different: int, num_later: int = 7) -> dict[str, object]:
    counts = {"num_days": 10, "num_events": 50, "num_planted": 20_000, "num_values": 1000}
    return counts | {"num_different": num_different, "num_different_later": num_later}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    fill_by_time(folder / "beauty-global-time")
    for addition, skill in LEFT_OUT_SKILLS.items():
        ablation = "no_takers_offset" if addition == "kernel" else ""
        row = Row("sasrec_grasp", 0, "fresh", "sasrec", "grasp", addition, 0.0, ablation, "shuffled-ties")
        add(folder / "movielens-shuffled-ties", row, skill)
    describe(folder / "movielens-shuffled-ties", command="python -m benchmarks.fresh --data movielens --out DIR")
    write_about(folder, {"online": {"added_online_p50_ms": 0.5, "online_moment_search_ms": None}})
    return folder


@pytest.fixture
def filled(planted: Path, tmp_path: Path) -> Path:
    """A copy, for measurements of its own."""
    return shutil.copytree(planted, tmp_path / "fresh")


def values(folder: Path) -> dict[str, float | None]:
    return {name: figure.value for name, figure in figures(folder, places(folder)).items()}


def test_planted_gains_are_found(filled):
    found = values(filled)

    planted = {
        "time_gain": 0.6 / 0.4,
        "time_gain_frozen": 0.5 / 0.4,
        "moments_gain": 0.75 / 0.6,
        "stored_votes_gain": 0.7 / 0.6,
        "moments_true_over_permuted_text": 0.7 / 0.64,
        "recipe_over_llm_init_published": 0.75 / 0.25,
        "ids_time_gain": 0.52 / 0.3,
        "llm_init_time_gain": 0.55 / 0.35,
        "weekly_retraining_gain": 0.9 / 0.75,
        "movielens_time_gain_shuffled": 0.45 / 0.4,
        "movielens_moments_gain_shuffled": 0.5 / 0.45,
        "movielens_chosen_gain_shuffled": 0.52 / 0.4,
    }
    assert {name: found[name] for name in planted} == pytest.approx(planted, rel=0.07)
    assert 1 < found["moments_gain_low"] < found["moments_gain"]
    assert found["train_seconds_over_today"] == pytest.approx(120 / 80)  # of Beauty alone
    assert found["added_online_p50_ms"] == 0.5


def test_what_was_not_measured_is_missing_and_meets_no_goal(filled):
    found = figures(filled, places(filled))

    missing = {name for name, figure in found.items() if figure.value is None}
    assert missing == {
        "recipe_over_llm_init_published_leave_one_out",
        "time_gain_shuffled",
        "moments_gain_shuffled",
        "chosen_gain_shuffled",
        "movielens_time_gain",
        "movielens_moments_gain",
        "movielens_chosen_gain",
        "online_moment_search_ms",
        "moments_job_share",
        "future_facts_seen",
    }
    assert not any(found[name].is_met for name in missing)


def test_gains_are_of_known_users_and_of_the_seeds_that_both_sides_have(tmp_path):
    fill_by_time(tmp_path / "beauty-global-time", num_seeds=1)
    place = Place(tmp_path / "beauty-global-time")
    before = place.ratio(grasp("takers"), WITHOUT)
    row = Row("sasrec_grasp", 1, "fresh", "sasrec", "grasp", "kernel", 0.0, "no_takers_offset", "global-time")
    add(place.folder, row, 0.01)  # a bad second seed of one side alone

    again = Place(place.folder)
    assert len(again.find(WITHOUT).rows) == 2
    assert again.ratio(grasp("takers"), WITHOUT) == before
    everyone = again.ratio(grasp("takers"), WITHOUT, np.ones(NUM, bool))
    assert everyone != before


def test_the_best_width_stands_for_llm_init_as_published_where_it_was_tried(filled):
    before = values(filled)["recipe_over_llm_init_published"]
    folder = filled / "beauty-global-time"
    row = Row("sasrec_llm_init", 0, "fresh", "sasrec", "llm_init", "none", 0.0, "best_width", "global-time")
    add(folder, row, 0.6)

    assert values(filled)["recipe_over_llm_init_published"] < before


@pytest.mark.parametrize(
    ("measured", "value"), [([(0, 7), (0, 9)], 0), ([(0, 7), (3, 9)], 3), ([(0, 7), (0, 0)], None)]
)
def test_future_facts_are_counted_where_the_check_would_have_seen_one(filled, measured, value):
    for place, counts in zip(places(filled), measured, strict=True):
        measure(place.folder, "future_facts", future_facts(*counts))

    assert values(filled)["future_facts_seen"] == value


def test_the_share_of_the_moments_job_is_that_of_its_measurement(filled):
    seconds = {"ingest": 20.0, "find_moments": 10.0, "build_features": 10.0}
    measure(filled, "moments_job", {"cpu_seconds": seconds})

    assert values(filled)["moments_job_share"] == 0.25


def section(text: str, title: str) -> list[str]:
    return text.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0].splitlines()


def cells(lines: list[str], first: str) -> list[str]:
    [found] = [line for line in lines if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_report_shows_systems_days_weights_costs_and_what_is_missing(filled):
    measure(filled / "beauty-global-time", "future_facts", future_facts(0))
    REPORT.write(filled)
    text = (filled / "report.md").read_text()

    assert text.startswith("# What fresh features are worth\n")
    assert "1 of 28 wanted ones missing (`sasrec_grasp__+kernel__no_takers_offset__global-time__seed=2`)" in text
    assert "Command: `python -m benchmarks.fresh --data movielens --out DIR`." in text
    assert "- Machine: Some CPU, 2 cores" in text
    systems = section(text, "beauty-global-time")
    assert cells(systems, "sasrec_grasp, weekly + fresh")[1] == "2"
    assert cells(systems, "sasrec_grasp, no_takers_offset + kernel")[4] == "–"
    for system in ("sasrec_grasp + takers", "sasrec_grasp, no_takers_offset + takers"):
        assert float(cells(systems, system)[4].split()[0]) > 1.1
    assert float(cells(systems, "sasrec_llm_init, as_grasp + takers")[4].split()[0]) > 1.2
    assert float(cells(systems, "sasrec_grasp + fresh")[5].split()[0]) < float(
        cells(systems, "sasrec_grasp + fresh")[2].split()[0]
    )  # all users, new ones among them, against known ones
    days = section(text, "beauty-global-time, by days since the cut")
    header = cells(days, "days since the cut")
    assert len(header) == 7
    assert header[1].startswith("1-10 (")
    assert float(cells(days, "fresh")[1]) > float(cells(days, "fresh")[6])
    assert float(cells(days, "trained weekly over fresh")[3].split()[0]) > 0.9
    assert (filled / "beauty-global-time-days.svg").exists()
    weights = section(text, "Weights")
    assert sum(line.startswith("| beauty-global-time | sasrec_grasp + fresh |") for line in weights) == 2
    assert not any("frozen" in line for line in weights if line.startswith("|"))
    assert any(
        "takers and state votes | 0.100 | 0.200 | 0.300 | 0.400 | 0.500 | 0.750 | 4.000 |" in line for line in weights
    )
    costs = section(text, "Costs")
    assert "- `added_online_p50_ms`, which `benchmarks.serving` measures: 0.5." in costs
    assert "- `online_moment_search_ms`, which `benchmarks.serving` measures: not measured yet." in costs
    assert any("takes 1.500 times the CPU " in line for line in costs)
    assert any("Of 1,000 values" in line for line in section(text, "Future facts"))
    summary = json.loads((filled / "summary.json").read_text())
    assert summary["figures"]["future_facts_seen"] == {"value": 0.0, "goal": 0.0, "met": True}
    assert summary["figures"]["moments_job_share"] == {"value": None, "goal": 0.5, "met": False}


def test_a_folder_without_rows_says_what_makes_them(tmp_path):
    with pytest.raises(SystemExit, match=r"run python -m benchmarks\.fresh first"):
        REPORT.main([str(tmp_path)])
