"""The store of finished rows: nothing computed twice, nothing half written read, nothing of other data mixed in."""

import fcntl
import json
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest

from benchmarks.quality.results import OtherDataError, OtherRecipesError, Results
from benchmarks.quality.rows import Row, RowInfo
from training.evaluation.metrics import event_metrics
from training.evaluation.ranking import MISSED, Ranks

INFO = RowInfo(
    wall_seconds=60.0,
    cpu_seconds=90.0,
    num_parameters=1000,
    num_epochs=8,
    best_epoch=5,
    validation_ndcg_at_10=0.05,
    num_trials=2,
    num_threads=2,
    commit="abc1234",
    data_checksum="d1",
    coverage_at_10=0.5,
    cross_category_share_at_10=None,
    attention_mass={"clean": 0.8, "corrupted": 0.2},
)
GROUPS = {
    "overall": np.array([True] * 4),
    "tail items": np.array([True, False, False, True]),
    "head users": np.zeros(4, dtype=bool),
}
PLACES = Ranks(np.array([0, 9, 10, MISSED]), np.array([1, 0, 3, 70_000]))
RANKINGS = {
    "filtered": PLACES,
    "sampled_0": Ranks(np.array([0, 0, 0, 0]), np.zeros(4, int)),
    "sampled_1": Ranks(np.array([0, 30, 30, 30]), np.zeros(4, int)),
}


def sasrec(seed: int = 0) -> Row:
    return Row("sasrec", seed, "main", backbone="sasrec")


def test_a_row_is_named_by_what_was_computed_not_by_the_table_that_asked():
    row = Row("sasrec_grasp", 1, "ablations", "sasrec", "grasp", "star", 0.2, "activation=softmax,normalise=sum")

    assert row.row_id == "sasrec_grasp__+star__activation=softmax,normalise=sum__corruption=0.2__seed=1"
    assert replace(row, section="main").row_id == row.row_id
    assert sasrec().row_id == "sasrec__seed=0"


def test_a_row_is_named_by_its_protocol_unless_it_is_the_published_one():
    assert replace(sasrec(), protocol="global-time").row_id == "sasrec__global-time__seed=0"
    assert replace(sasrec(), protocol="published").row_id == sasrec().row_id


@pytest.mark.parametrize("changed", [{"model": "a/b"}, {"ablation": "k=5__seed=1"}, {"ablation": "two words"}])
def test_a_name_that_cannot_be_a_files_is_refused(changed):
    with pytest.raises(ValueError, match="must be usable in a file name"):
        replace(sasrec(), **changed)


def test_what_was_added_is_found_again(tmp_path):
    Results(tmp_path).add(sasrec(), RANKINGS, GROUPS, INFO)

    results = Results(tmp_path, data_checksum="d1")
    [found] = results.rows()
    assert results.finished("sasrec__seed=0")
    assert not results.finished("sasrec__seed=1")
    assert (found.row, found.info) == (sasrec(), INFO)
    assert found.num_events == {"overall": 4, "tail items": 2}  # a group without events has no line
    assert {name: mask.tolist() for name, mask in results.groups().items()} == {
        name: mask.tolist() for name, mask in GROUPS.items()
    }


def test_the_stored_ranks_give_every_metric_exactly(tmp_path):
    results = Results(tmp_path)
    results.add(sasrec(), RANKINGS, GROUPS, INFO)

    for name, expected in event_metrics(PLACES).items():
        assert results.per_event("sasrec__seed=0", "filtered", name).tolist() == expected.tolist()
        assert results.rows()[0].value("filtered", name) == pytest.approx(expected.mean(), abs=1e-6)
    tail = results.rows()[0].value("filtered", "hr@1", "tail items")
    assert tail == pytest.approx(0.25)  # first with one tied, and missed


def test_sampled_is_the_mean_over_the_draws(tmp_path):
    results = Results(tmp_path)
    results.add(sasrec(), RANKINGS, GROUPS, INFO)

    assert results.per_event("sasrec__seed=0", "sampled", "hr@10").tolist() == [1, 0.5, 0.5, 0.5]
    assert results.rows()[0].value("sampled", "hr@10") == pytest.approx((1 + 0.25) / 2)
    with pytest.raises(KeyError, match="no ranking unfiltered, only filtered, sampled_0, sampled_1"):
        results.rows()[0].value("unfiltered", "hr@10")


def test_a_row_costs_kilobytes(tmp_path):
    num = 20_000
    places = np.random.default_rng(0).integers(0, 200, num)
    Results(tmp_path).add(sasrec(), {"filtered": Ranks(places, places)}, {"overall": np.ones(num, bool)}, INFO)

    assert (tmp_path / "ranks" / "sasrec__seed=0.parquet").stat().st_size < 15_000


def test_a_finished_row_is_not_replaced(tmp_path):
    results = Results(tmp_path)
    results.add(sasrec(), RANKINGS, GROUPS, INFO)
    before = (tmp_path / "ranks" / "sasrec__seed=0.parquet").read_bytes()

    with pytest.raises(ValueError, match="finished already"):
        Results(tmp_path).add(sasrec(), {"filtered": RANKINGS["sampled_0"]}, GROUPS, INFO)
    assert (tmp_path / "ranks" / "sasrec__seed=0.parquet").read_bytes() == before


def test_lines_from_before_there_were_protocols_are_of_the_published_one(tmp_path):
    file = tmp_path / "results.jsonl"
    Results(tmp_path).add(sasrec(), RANKINGS, GROUPS, INFO)
    now = Results(tmp_path).rows()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["protocol"] = line.pop("ranking")
        for name in ("recipe", "recipe_version"):
            del line[name]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    assert Results(tmp_path).rows() == now
    assert Results(tmp_path).protocol == "published"


def test_the_recipe_is_kept_once_a_row(tmp_path):
    info = replace(INFO, recipe={"name": "sasrec", "ranker": {"width": 64}}, recipe_version=3)
    Results(tmp_path).add(sasrec(), RANKINGS, GROUPS, info)

    assert Results(tmp_path).rows()[0].info == info
    assert (tmp_path / "results.jsonl").read_text().count('"width"') == 1


def test_trained_rows_of_another_recipe_version_are_refused(tmp_path):
    Results(tmp_path).add(Row("popularity", 0, "main"), RANKINGS, GROUPS, INFO)  # a control has no recipe
    assert Results(tmp_path, "d1", 2).finished("popularity__seed=0")

    Results(tmp_path).add(sasrec(), RANKINGS, GROUPS, replace(INFO, recipe_version=1))
    assert Results(tmp_path, "d1", 1).finished("sasrec__seed=0")
    with pytest.raises(OtherRecipesError, match="holds sasrec__seed=0 of recipe version 1, now it is 2"):
        Results(tmp_path, "d1", 2)


def test_users_are_resampled_and_items_where_they_are_new(tmp_path):
    results, groups = Results(tmp_path), {**GROUPS, "cold items": np.array([False, True, True, True])}
    units = {"user": np.array([7, 7, 8, 9], np.int32), "item": np.array([1, 2, 2, 3], np.int32)}
    results.add(sasrec(), RANKINGS, groups, INFO, units)

    assert results.groups().keys() == groups.keys()
    assert results.units("overall").tolist() == [7, 7, 8, 9]
    assert results.units("cold items").tolist() == [2, 2, 3]
    with pytest.raises(ValueError, match="events or groups are not those"):
        results.add(sasrec(1), RANKINGS, groups, INFO, units | {"user": np.array([7, 8, 8, 9], np.int32)})


def test_without_units_every_event_is_of_another_user(tmp_path):
    results = Results(tmp_path)
    results.add(sasrec(), RANKINGS, GROUPS, INFO)

    assert results.units("tail items").tolist() == [0, 3]


@pytest.mark.parametrize("num_kept", [1, 2, 40, 700, 1500])
def test_a_crash_in_the_middle_of_a_row_costs_that_row_only(tmp_path, capsys, num_kept):
    file = tmp_path / "results.jsonl"
    Results(tmp_path).add(sasrec(0), RANKINGS, GROUPS, INFO)
    whole = file.read_bytes()
    Results(tmp_path).add(sasrec(1), RANKINGS, GROUPS, INFO)
    file.write_bytes(file.read_bytes()[: len(whole) + num_kept])

    results = Results(tmp_path)
    assert f"cut short after {num_kept:,} bytes" in capsys.readouterr().out
    assert [row.row.seed for row in results.rows()] == [0]
    assert file.stat().st_size == len(whole) + num_kept  # a reader changes nothing

    results.add(sasrec(1), RANKINGS, GROUPS, INFO)
    assert [row.row.seed for row in Results(tmp_path).rows()] == [0, 1]
    assert all(json.loads(line)["num_lines"] == 6 for line in file.read_text().splitlines())


def test_whole_lines_of_an_unfinished_row_do_not_make_it_finished(tmp_path):
    file = tmp_path / "results.jsonl"
    Results(tmp_path).add(sasrec(), RANKINGS, GROUPS, INFO)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))

    assert not Results(tmp_path).finished("sasrec__seed=0")


@pytest.mark.parametrize("damage", ["<<<<<<< HEAD\n", '{"half": \n'])
def test_damage_before_the_end_is_an_error_and_nothing_is_cut(tmp_path, damage):
    file = tmp_path / "results.jsonl"
    Results(tmp_path).add(sasrec(), RANKINGS, GROUPS, INFO)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], damage, *lines[1:]]))

    with pytest.raises(ValueError, match="line 2 is damaged"):
        Results(tmp_path)


def test_a_line_missing_in_the_middle_is_an_error(tmp_path):
    file = tmp_path / "results.jsonl"
    Results(tmp_path).add(sasrec(), RANKINGS, GROUPS, INFO)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], *lines[2:]]))

    with pytest.raises(ValueError, match="line 2 does not follow"):
        Results(tmp_path)


def test_rows_of_other_data_are_refused(tmp_path):
    results = Results(tmp_path)
    results.add(sasrec(), RANKINGS, GROUPS, INFO)

    with pytest.raises(OtherDataError, match="rows of the data d1, these are d2"):
        results.add(sasrec(1), RANKINGS, GROUPS, replace(INFO, data_checksum="d2"))
    with pytest.raises(OtherDataError):
        Results(tmp_path, data_checksum="d2")
    assert len(Results(tmp_path).rows()) == 1


def test_rows_of_other_events_are_refused(tmp_path):
    results = Results(tmp_path)
    results.add(sasrec(), RANKINGS, GROUPS, INFO)
    other = GROUPS | {"tail items": ~GROUPS["tail items"]}

    with pytest.raises(ValueError, match="events or groups are not those"):
        results.add(sasrec(1), RANKINGS, other, INFO)


def test_two_runs_may_add_to_one_store(tmp_path):
    first, second = Results(tmp_path), Results(tmp_path)
    first.add(sasrec(0), RANKINGS, GROUPS, INFO)
    second.add(sasrec(1), RANKINGS, GROUPS, INFO)

    with pytest.raises(ValueError, match="finished already"):
        first.add(sasrec(1), RANKINGS, GROUPS, INFO)
    assert [row.row.seed for row in Results(tmp_path).rows()] == [0, 1]


def add_seed(folder, seed):
    Results(folder).add(sasrec(seed), RANKINGS, GROUPS, INFO)


def test_a_run_waits_while_another_writes(tmp_path):
    with (tmp_path / "results.jsonl").open("wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        other = Thread(target=add_seed, args=(tmp_path, 1), daemon=True)
        other.start()
        other.join(timeout=0.3)
        assert other.is_alive()
    other.join(timeout=30)

    assert [row.row.seed for row in Results(tmp_path).rows()] == [1]
