"""What lies near is counted as it says, and the report says plainly what the rankers gain."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.core.measurements import Conditions, Measurement, Measurements
from benchmarks.data.readers import Source
from benchmarks.data.vectors import user_facts
from benchmarks.descriptions import report as descriptions_report
from benchmarks.descriptions import retrieval, written
from benchmarks.descriptions.report import RECIPES
from grasp import partitions, tables
from grasp.partitions import Content
from grasp.versions import Versions
from training.data.training_set import TrainingSet

MACHINE = {"processor": "test", "num_cores": 2, "memory_gib": 4, "python": "3.11", "torch": "2"}


def source() -> Source:
    """Films 1 and 2 are dramas, 3 a comedy, 4 has no genre. Everyone's last two items are held out."""
    genres = ["Drama, War", "Drama", "Comedy", ""]
    items = [{"title": f"Film {n}", "attributes": {"genres": text} if text else {}} for n, text in enumerate(genres, 1)]
    sequences = [np.array(each) for each in ([1, 2, 3, 4], [1, 2, 4, 3], [3, 4, 1, 2])]
    return Source("small", (), list("1234"), items, genres, ["a", "b", "c"], [{}, {}, {}], sequences)


def training_set() -> TrainingSet:
    splits = [np.array(["train", "train", "validation", "test"], dtype=object)] * 3
    return TrainingSet(
        item_ids=list("1234"),
        item_semantic=np.eye(4, dtype=np.float32),
        item_neighbour=np.eye(4, dtype=np.float32),
        popularity=np.array([2, 2, 1, 1]),
        item_is_tail=np.zeros(4, dtype=bool),
        user_ids=["a", "b", "c"],
        user_semantic=np.eye(3, dtype=np.float32),
        user_neighbour=np.eye(3, dtype=np.float32),
        user_is_tail=np.zeros(3, dtype=bool),
        sequences=source().sequences,
        splits=splits,
    )


def test_neighbours_are_judged_by_genre_company_and_what_a_user_takes_next():
    near_items = np.array([[1], [0], [0], [-1]])  # 1 with 2 and back, 3 with 1, and 4 with nobody
    near_users = np.array([[2], [0], [-1]])  # c has Film 4, which a takes next; a has no Film 3, which b takes next

    found = retrieval.measure(source(), near_items, near_users, training_set())

    assert found["genre_share"] == pytest.approx(2 / 3)
    assert found["company"] == pytest.approx(2 / 3)  # 1 and 2 always come together, 3 and 1 never
    assert found["next_item_share"] == 0.5


def test_where_nobody_has_a_neighbour_nothing_is_known_of_them():
    """As in a trial that writes a text or two, which may be refused."""
    nobody = np.full((4, 1), -1), np.full((3, 1), -1)
    assert all(np.isnan(share) for share in retrieval.measure(source(), *nobody, training_set()).values())


def test_neighbours_among_some_are_some_of_them(tmp_path):
    vectors = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    among = np.array([True, False, True, True])

    found = retrieval.near(list("1234"), vectors, among, tmp_path)

    assert found[:, 0].tolist() == [2, -1, 0, 2]
    assert set(retrieval.by_chance(4, among)[among].ravel().tolist()) <= {-1, 0, 2, 3}
    assert (retrieval.by_chance(4, among)[1] == -1).all()


def test_users_are_described_from_what_trains():
    train = [items[:-2] for items in source().sequences]
    facts = user_facts(source(), train, ())
    assert [each["recent"] for each in facts] == [["Film 2", "Film 1"], ["Film 2", "Film 1"], ["Film 4", "Film 3"]]


def write_descriptions(settings, table, rows):
    folder = partitions.partition_path(settings.lake, table, None, written.DAY)
    folder.mkdir(parents=True)
    names = (table.key[0], "description", "source")
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), folder / "part.parquet")
    partitions.write_content(folder, Content(len(rows), "hash"))


def test_texts_come_in_the_order_of_the_source_with_who_wrote_them(settings):
    items = [("4", "four", "llm"), ("1", "one", "facts"), ("3", "three", "llm"), ("2", "two", "facts")]
    write_descriptions(settings, tables.ITEM_DESCRIPTION, items)
    write_descriptions(settings, tables.USER_DESCRIPTION, [("c", "c", "facts"), ("a", "a", "llm"), ("b", "b", "llm")])

    found = written.read(settings, source())

    assert found.of_items == ["one", "two", "three", "four"]
    assert found.is_item_written.tolist() == [False, False, True, True]
    assert (found.of_users, found.is_user_written.tolist()) == (["a", "b", "c"], [True, True, False])


def metrics(settings, entity, **changed):
    versions = Versions(settings)
    nothing = {column.name: 0 for column in tables.GENERATION_METRICS.columns if column.type in {"bigint", "double"}}
    key = {"entity": entity, "prompt_version": versions.prompt(entity), "model_revision": versions.llm}
    maps = {"reasons": [("loop", 1)], "asked_by_history": [("5-9", 4)], "failed_by_history": [("5-9", 1)]}
    return {**nothing, **key, **maps, "computed_at": None, **changed}


def test_what_it_took_is_that_of_the_model_in_question(settings):
    rows = [metrics(settings, "item", num_answers=4), metrics(settings, "item", model_revision="other", num_answers=9)]
    maps = {name: pa.map_(pa.string(), pa.int64()) for name in ("reasons", "asked_by_history", "failed_by_history")}
    columns = {name: pa.array([row[name] for row in rows], maps.get(name)) for name in rows[0]}
    folder = partitions.partition_path(settings.lake, tables.GENERATION_METRICS, None, written.DAY)
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "part.parquet")
    partitions.write_content(folder, Content(len(rows), "hash"))

    found = written.taken(settings)

    assert found["item"]["num_answers"] == 4
    assert found["item"]["failed_by_history"] == {"5-9": 1}
    assert json.dumps(found)


@pytest.fixture
def measured(tmp_path, settings):
    """`measured([...], ...)`: a folder where rankers have NDCG@10 1 for each user with facts, these by llm, by seed."""

    def measured(*by_seed: list[float]) -> Path:
        folder = tmp_path / "descriptions"
        measurements, conditions = Measurements(folder), Conditions("data", 1, MACHINE)

        def add(name, kind, found):
            measurements.add(Measurement(name, kind, found, conditions, "abc"))

        took = metrics(settings, "item", num_answers=4, num_accepted=3, num_calls=5)
        took |= {name: dict(took[name]) for name in ("reasons", "asked_by_history", "failed_by_history")}
        add("descriptions", "generation", {"item": took, "user": took})
        for arm, share in (("facts", 0.5), ("llm", 0.25), ("chance", 0.1)):
            near = {"genre_share": share, "company": share, "next_item_share": share}
            add(arm, "retrieval", {"arm": arm, "passed_only": False, "num_items": 4, "num_users": 3, **near})
        for (seed, llm), model in itertools.product(enumerate(by_seed), RECIPES):
            for arm, ndcg in (("facts", [1.0] * len(llm)), ("llm", llm)):
                one = {"hr_at_10": 0.5, "ndcg_at_10": ndcg}
                found = {"model": model, "arm": arm, "seed": seed, "num_epochs": 9 + seed}
                add(f"{model} {arm} {seed}", "ranking", found | {"found": {"none": one, "kernel": one}})
        return folder

    return measured


def test_the_report_says_plainly_that_a_model_does_not_help(measured):
    folder = measured([0.5, 1.0, 0.0, 1.0, 0.5, 0.5, 0.0, 1.0])
    descriptions_report.write(folder, "python -m benchmarks.descriptions")

    report = descriptions_report.report_file(folder).read_text()
    assert (
        "So small a model does not help:** of 4 comparisons of rankers 0 are better with the model's texts, 4 worse"
        in (report)
    )
    assert "| accepted | 3 (75.0 %) | 3 (75.0 %) |" in report
    assert "| 5-9 | 25.0 % of 4 | 25.0 % of 4 |" in report
    summary = json.loads((folder / "summary.json").read_text())["figures"]
    assert summary["llm_over_facts_company"] == {"value": 0.5, "goal": 1.0, "met": False}
    assert summary["llm_over_facts_ndcg10"]["value"] == pytest.approx(0.5625)
    assert summary["answered_share"]["met"]


def test_the_report_says_that_a_model_helps_only_beyond_noise(measured):
    folder = measured([2.0, 3.0, 2.0])
    descriptions_report.write(folder, "python -m benchmarks.descriptions")
    assert (
        "**It helps:** of 4 comparisons of rankers 4 are better" in descriptions_report.report_file(folder).read_text()
    )


def test_seeds_that_disagree_say_nothing(measured):
    folder = measured([3.0, 2.0, 3.0], [0.9, 1.0, 0.9])
    descriptions_report.write(folder, "python -m benchmarks.descriptions")
    report = descriptions_report.report_file(folder).read_text()
    assert "of 4 comparisons of rankers 0 are better with the model's texts, 0 worse" in report
    assert "| sasrec_grasp | 9, 10 | 9, 10 |" in report
