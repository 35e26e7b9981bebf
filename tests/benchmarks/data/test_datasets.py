"""Reading, splitting and vectors on a handful of rows; counts on the real data (GRASP_DATA)."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data import datasets, protocols, readers, vectors
from benchmarks.data.datasets import BenchmarkData, Inputs, Tail
from benchmarks.data.readers import main_categories
from benchmarks.data.vectors import TextVectors, item_texts, neighbour_means, sequence_vectors, user_texts
from grasp.settings import Settings
from spark_jobs.source.contract import SourceError
from training.data.cooccurrence import item_cosine, transitions
from training.data.training_set import TrainingSet, known_sequences, training_sequences
from training.evaluation.ranking import evaluation_events

ITEMS = [
    {"item_id": 11, "asin": "B1", "title": "Red Polish", "kinds": ["OPI", "Makeup", "Nails"]},
    {"item_id": 12, "title": "Blue Polish", "kinds": ["OPI", "Makeup", "Nails"]},
    {"item_id": 13, "title": "", "kinds": ["Makeup", "Face"]},
    {"item_id": 14, "title": "Soap", "kinds": ["Dove", "Bath"]},
    {"item_id": 15, "title": "Foam", "kinds": ["Bath", "Foams"]},
    {"item_id": 16, "title": "Cream", "kinds": ["Nivea", "Bath"]},
]
# User, item, time: user b took two items on one day, in the order of the file.
ROWS = [
    ("b", 12, 5),
    ("b", 11, 1),
    ("b", 14, 5),
    ("a", 11, 1),
    ("a", 12, 2),
    ("a", 13, 3),
    ("a", 14, 4),
    ("c", 15, 1),
    ("c", 16, 2),
    ("d", 13, 1),
    ("d", 11, 2),
    ("d", 16, 3),
]


@dataclass
class HashEncoder:
    """Equal texts have equal vectors; remembers what it was asked."""

    asked: list[str] = field(default_factory=list)

    def encode(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) for text in texts]
        raw = np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds])
        return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def write_folder(folder: Path, rows: Sequence[tuple[str, int, int]] = ROWS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user_id\titem_id\ttimestamp", *(f"{user}\t{item}\t{moment}" for user, item, moment in rows)]
    (folder / "interactions.tsv").write_text("".join(f"{line}\n" for line in lines))
    (folder / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in ITEMS))
    (folder / "users.tsv").write_text("user_id\tage\tgender\toccupation\na\t24\tM\ttechnician\n")
    return folder


@pytest.fixture
def load(tmp_path: Path, settings: Settings) -> Callable[..., BenchmarkData]:
    """`load(rows, **options)`: the data set of these rows, with a cache of its own."""
    encoder = HashEncoder()

    def loaded(rows: Sequence[tuple[str, int, int]] = ROWS, **options: object) -> BenchmarkData:
        folder = write_folder(tmp_path / "small", rows)
        given = {"cache": tmp_path / "cache", "settings": settings, "open_encoder": lambda *_: encoder}
        return datasets.load(folder, **(given | {"inputs": Inputs(k=2)} | options))

    return loaded


def lists(sequences: Sequence[np.ndarray]) -> list[list[object]]:
    return [sequence.tolist() for sequence in sequences]


def test_sequences_follow_time_and_then_the_file(load):
    found = load()

    assert found.training_set.user_ids == ["b", "a", "c", "d"]
    assert lists(found.training_set.sequences) == [[1, 2, 4], [1, 2, 3, 4], [5, 6], [3, 1, 6]]
    assert (found.name, found.num_interactions) == ("small", 12)


def test_row_numbers_order_what_shares_a_time_and_repeated_rows_count_once(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "interactions.tsv").unlink()
    rows = [("a", 14, 7, 3), ("a", 12, 7, 2), ("a", 12, 7, 9), ("a", 99, 8, 1), ("a", 12, 8, 4)]
    names = ("user_id", "item_id", "timestamp", "row_number")
    text = "".join(f"{json.dumps(dict(zip(names, row, strict=True)))}\n" for row in rows)
    (folder / "interactions.jsonl").write_text(text)

    assert lists(readers.read(folder).sequences) == [[2, 4, 2]]  # item 99 is in no catalogue


def test_a_file_of_ids_alone_is_read_in_its_order(tmp_path):
    (tmp_path / "inter.txt").write_text("7 3\n8 1\n7 1\n7 3\n")

    found = readers.read(tmp_path)

    assert (found.user_ids, found.item_ids) == (["7", "8"], ["1", "2", "3"])
    assert lists(found.sequences) == [[3, 1, 3], [1]]


@pytest.mark.parametrize("line", ["7", "7 0", "7 x", "7 1 1"])
def test_a_line_that_is_no_user_and_item_is_named(tmp_path, line):
    (tmp_path / "inter.txt").write_text(f"7 1\n{line}\n")

    with pytest.raises(SourceError, match="line 2: expected a user and an item"):
        readers.read(tmp_path)


def test_the_category_is_the_widest_value_that_is_no_brand():
    branded = [["OPI", "Makeup", "Nails"], ["Makeup", "Face"], ["Dove", "Bath"], ["Bath"], []]

    assert main_categories(branded) == ["Makeup", "Makeup", "Bath", "Bath", ""]


def test_lists_that_begin_with_few_values_begin_with_the_category():
    assert main_categories([["Action", "Drama"], ["Drama"]] * 20) == ["Action", "Drama"] * 20


def test_the_last_two_items_are_targets_and_short_sequences_train():
    sequences = [np.arange(1, 1 + num) for num in (2, 3, 5)]

    assert lists(protocols.split(sequences, None)) == [
        ["train", "train"],
        ["train", "validation", "test"],
        ["train", "train", "train", "validation", "test"],
    ]
    assert lists(protocols.split(sequences, 0))[1] == ["train", "train", "test"]


def ties(rows: Sequence[tuple[str, int, int]]) -> readers.Source:
    """Users' items with their times, without anything else."""
    by_user: dict[str, list[tuple[int, int]]] = {}
    for user, item, moment in rows:
        by_user.setdefault(user, []).append((moment, item))
    sequences, times = ([np.array([pair[place] for pair in pairs]) for pairs in by_user.values()] for place in (1, 0))
    num = max(item for _, item, _ in rows)
    ids = [str(item) for item in range(1, num + 1)]
    return readers.Source("ties", (), ids, [{}] * num, [""] * num, list(by_user), [{}] * len(by_user), sequences, times)


def test_ties_are_shuffled_within_their_time_and_always_alike():
    rows = [(user, item, moment) for user in "abcdefgh" for item, moment in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 3))]

    found = [lists(protocols.with_shuffled_ties(ties(rows), seed).sequences) for seed in (0, 0, 1)]

    assert found[0] == found[1] != found[2]
    assert len({tuple(items) for items in found[0]}) > 1
    assert all((items[0], items[-1], sorted(items)) == (1, 5, [1, 2, 3, 4, 5]) for items in found[0])


def test_the_order_of_a_users_ties_does_not_depend_on_later_events_or_on_others():
    rows = [(user, item, 1) for user in "ab" for item in (1, 2, 3, 4, 5)]
    more = [*rows[:5], ("a", 5, 2), ("a", 4, 3), *rows[5:]]

    one, other = (lists(protocols.with_shuffled_ties(ties(each), 0).sequences) for each in (rows, more))

    assert other == [[*one[0], 5, 4], one[1]]


def test_users_drawn_for_validation_are_always_the_same():
    sequences = [np.arange(3) for _ in range(50)]
    found = [[part[-2] for part in protocols.split(sequences, 20)] for _ in range(2)]

    assert found[0] == found[1]
    assert found[0].count("validation") == 20


def test_popularity_counts_users_in_training_and_tails_are_cut_below(load):
    found = load(validation_users=None, tail=Tail(items_before=3, users=2)).training_set

    assert found.popularity.tolist() == [2, 1, 1, 0, 1, 1]  # trained on: b 11, a 11 12, c 15 16, d 13
    assert found.item_is_tail.tolist() == [False, True, True, True, True, True]
    assert found.user_is_tail.tolist() == [True, False, True, True]
    # The groups are the same however many users validate, and may count targets as LLM-ESR does.
    assert load(validation_users=0, tail=Tail(3, 2)).training_set.item_is_tail.tolist() == found.item_is_tail.tolist()
    with_targets = load(tail=Tail(3, 2, counts_targets=True)).training_set
    assert with_targets.item_is_tail.tolist() == [False, False, False, False, True, False]


def test_texts_are_the_projects_descriptions_of_facts(tmp_path):
    source = readers.read(write_folder(tmp_path))

    assert item_texts(source.items, ["asin"])[0] == "Red Polish. kinds: OPI, Makeup, Nails."
    texts = user_texts(source, [np.array([1]), np.array([1, 2, 3]), np.array([5]), np.array([], np.int64)], ["asin"])
    assert texts[1] == (
        "A 24 year old male technician who favours Makeup, Nails, OPI, Face. Recently chose Blue Polish, Red Polish."
    )
    assert texts[3] == "A user without known facts."


def test_a_text_is_encoded_once_whoever_asks(tmp_path):
    encoder = HashEncoder()
    first = TextVectors(tmp_path, lambda: encoder).encode(["one", "two", "one"])
    second = TextVectors(tmp_path, lambda: encoder).encode(["three", "two"])

    assert sorted(encoder.asked) == ["one", "three", "two"]
    assert (first[0] == first[2]).all()
    assert (second[1] == first[1]).all()


def test_what_was_encoded_before_an_interruption_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "TEXTS_AT_ONCE", 2)

    class Dying(HashEncoder):
        def encode(self, texts: list[str]) -> np.ndarray:
            if self.asked:
                raise RuntimeError("out of memory")
            return super().encode(texts)

    with pytest.raises(RuntimeError, match="out of memory"):
        TextVectors(tmp_path, Dying).encode(["four", "three", "two"])
    encoder = HashEncoder()
    TextVectors(tmp_path, lambda: encoder).encode(["four", "three", "two"])

    assert encoder.asked == ["two"]


def test_neighbours_exclude_the_item_itself_by_id_and_may_share_its_vector(tmp_path):
    unit = np.array([[1, 0], [1, 0], [0.8, 0.6], [0, 0]], np.float32)

    near = vectors.nearest(["a", "b", "c", "d"], unit, tmp_path)

    assert near[:, :3].tolist() == [[1, 2, -1], [0, 2, -1], [0, 1, -1], [-1, -1, -1]]  # nothing is near no vector
    means = neighbour_means(["a", "b", "c", "d"], unit, 2, tmp_path)
    assert means == pytest.approx(np.array([[0.9, 0.3], [0.9, 0.3], [1, 0], [0, 0]]))
    assert neighbour_means(["a", "b", "c", "d"], unit, 1, tmp_path)[0] == pytest.approx([1, 0])
    with pytest.raises(ValueError, match="k must be 1 to 50"):
        neighbour_means(["a", "b", "c", "d"], unit, 51, tmp_path)


def test_searching_neighbours_leaves_torch_its_threads(tmp_path):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        vectors.nearest(["a", "b"], np.eye(2, dtype=np.float32), tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_kept_neighbours_are_those_of_the_same_vectors(tmp_path, monkeypatch):
    unit = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8]], np.float32)
    before = vectors.nearest(["a", "b", "c"], unit, tmp_path)
    monkeypatch.setattr(vectors, "ExactBackend", None)  # searching again would fail

    assert (vectors.nearest(["a", "b", "c"], unit, tmp_path) == before).all()
    with pytest.raises(TypeError):
        vectors.nearest(["a", "b", "c"], -unit, tmp_path)


def test_sequence_vectors_bring_together_what_is_taken_together():
    train = [np.array([1, 2, 3])] * 3 + [np.array([4, 5, 6])] * 3 + [np.array([7])]

    item, user = sequence_vectors(train, 8)

    cosine = item @ item.T
    assert cosine[0, [1, 2, 3, 4]] == pytest.approx([1, 1, 0, 0], abs=1e-5)
    assert np.linalg.norm(item, axis=1) == pytest.approx([1] * 6 + [0] * 2)
    assert (user[0] @ item[0], user[6].tolist()) == (pytest.approx(user[0] @ item[1]), [0] * 7)
    assert (sequence_vectors(train, 8)[0] == item).all()


def test_corruption_moves_whole_rows_of_a_share_and_repeats_by_seed(load):
    clean, corrupted = load().training_set, load(inputs=Inputs(k=2, corruption=0.5), seed=3).training_set

    moved = (clean.item_semantic != corrupted.item_semantic).any(axis=1)
    assert 2 <= moved.sum() <= 3  # half of six, of which some may stay by chance
    assert ((clean.item_neighbour != corrupted.item_neighbour).any(axis=1) == moved).all()
    pairs = {tuple(row) for row in np.hstack([clean.item_semantic, clean.item_neighbour]).tolist()}
    assert {tuple(row) for row in np.hstack([corrupted.item_semantic, corrupted.item_neighbour]).tolist()} == pairs
    assert (
        load(inputs=Inputs(k=2, corruption=0.5), seed=3).training_set.user_semantic == corrupted.user_semantic
    ).all()
    assert (load(inputs=Inputs(k=2, corruption=1), seed=3).training_set.user_semantic != clean.user_semantic).any()
    with pytest.raises(ValueError, match="share from 0 to 1"):
        load(inputs=Inputs(k=2, corruption=20))


@pytest.mark.parametrize("without_last", [False, True])
def test_users_can_be_described_without_what_they_train_last(load, without_last):
    changed = [("a", 15, 2) if row == ("a", 12, 2) else row for row in ROWS]
    options = {"inputs": Inputs(k=2, without_last=without_last), "validation_users": None}
    one, other = (load(rows, **options).training_set for rows in (ROWS, changed))

    assert lists(training_sequences(one))[1] == [1, 2] != lists(training_sequences(other))[1]
    assert (one.user_semantic[1] == other.user_semantic[1]).all() == without_last


def test_the_checksum_follows_the_source_and_the_texts(load, monkeypatch):
    before = load().checksum
    assert load(inputs=Inputs(k=1)).checksum == before
    assert load([*ROWS, ("c", 11, 9)]).checksum != before

    monkeypatch.setattr(datasets, "item_texts", lambda items, _: [item["title"] or "nameless" for item in items])
    assert load().checksum != before


def assert_same_inputs(one: TrainingSet, other: TrainingSet) -> None:
    """Everything a model reads before the validation targets are asked for is the same."""
    for name in ("item_semantic", "item_neighbour", "user_semantic", "user_neighbour", "popularity", "item_is_tail"):
        assert (getattr(one, name) == getattr(other, name)).all(), name
    known, others = known_sequences(one, "validation"), known_sequences(other, "validation")
    assert lists(known) == lists(others)
    for kernel in (item_cosine, transitions):
        assert (kernel(known, len(one.item_ids)) != kernel(others, len(other.item_ids))).nnz == 0


@pytest.mark.parametrize("protocol", ["published", "shuffled-ties"])
def test_a_planted_future_item_changes_nothing_a_model_reads(load, protocol):
    planted = [row for row in ROWS if row not in (("a", 13, 3), ("a", 14, 4), ("d", 16, 3))]
    planted += [("a", 15, 3), ("a", 16, 4), ("d", 15, 3)]

    one, other = (load(rows, validation_users=None, protocol=protocol).training_set for rows in (ROWS, planted))

    assert lists(one.sequences) != lists(other.sequences)
    assert_same_inputs(one, other)


# Items of each user by day. The first cut is day 7, the second one day 9; item 16 and user e are first seen after both.
TAKEN = {
    "a": ((11, 0), (12, 1), (13, 2), (14, 3), (11, 7), (12, 7), (15, 8), (15, 9), (13, 9)),
    "b": ((12, 0), (13, 2), (14, 4), (15, 6), (11, 8)),
    "c": ((13, 1), (15, 3), (11, 5), (14, 6)),
    "d": ((15, 1), (14, 2), (13, 3), (12, 4), (11, 5)),
    "f": ((12, 1), (15, 2), (12, 3), (15, 4), (12, 5), (15, 6)),
    "e": ((16, 10),),
}
DAYS = [(user, item, day) for user, taken in TAKEN.items() for item, day in taken]


def seconds(rows: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return [(user, item, day * 86_400 + 3_600) for user, item, day in rows]


def test_by_global_time_models_are_chosen_at_one_cut_and_tested_at_the_next(load):
    found = load(seconds(DAYS), validation_users=None, protocol="global-time")

    choosing, fitting, asked = found.choosing, found.cut.fitting, found.training_set
    assert found.cut.day == 9
    assert choosing.item_ids == fitting.item_ids == ["11", "12", "13", "15", "14"]  # by the first day of each
    assert choosing.user_ids == fitting.user_ids == list("abcdf")
    assert (asked.item_ids, asked.user_ids) == ([*fitting.item_ids, "16"], [*fitting.user_ids, "e"])
    assert [len(items) for items in training_sequences(choosing)] == [4, 4, 4, 5, 6]
    assert [len(items) for items in training_sequences(fitting)] == [7, 5, 4, 5, 6]
    assert lists(known_sequences(asked, "test")) == [*lists(training_sequences(fitting)), []]
    chosen_on = [
        (event.user, len(event.history), event.target, event.day) for event in evaluation_events(choosing, "validation")
    ]
    tested = [(event.user, len(event.history), event.target, event.day) for event in evaluation_events(asked, "test")]
    assert chosen_on == [(0, 4, 1, 7), (0, 4, 2, 7), (1, 4, 1, 8)]
    assert tested == [(0, 7, 4, 9), (0, 7, 3, 9), (5, 0, 6, 10)]


def test_an_item_that_is_unknown_at_the_first_cut_chooses_nothing(load):
    first_taken = [("a", 16, 7) if row == ("a", 12, 7) else row for row in DAYS]
    choosing = load(seconds(first_taken), validation_users=None, protocol="global-time").choosing

    found = [(event.user, event.target) for event in evaluation_events(choosing, "validation")]
    assert found == [(0, 1), (1, 1)]
    assert "16" not in choosing.item_ids


def logged(found: BenchmarkData, training_set: TrainingSet, split: str) -> list[tuple[str, int, int]]:
    """The rows of a log. Users of all parts have the numbers of `found.training_set`."""
    log, user_ids, item_ids = training_set.log(split), found.training_set.user_ids, training_set.item_ids
    rows = zip(log.user_E, log.item_E, log.day_E, strict=True)
    return sorted((user_ids[user], int(item_ids[item - 1]), int(day)) for user, item, day in rows)


def test_by_global_time_fresh_features_come_from_every_event_and_those_of_training_from_what_is_known(load):
    """Of the validation, items that are new after its cut are left out: no ranker of it knows them."""
    rows = [("a", 16, 7) if row == ("a", 12, 7) else row for row in DAYS]
    found = load(seconds(rows), validation_users=None, protocol="global-time")

    assert logged(found, found.training_set, "test") == sorted(rows)
    assert logged(found, found.choosing, "validation") == sorted(row for row in rows if row[1] != 16)
    assert logged(found, found.choosing, "train") == sorted(row for row in rows if row[2] < 7)
    assert logged(found, found.cut.fitting, "train") == sorted(row for row in rows if row[2] < 9)


@pytest.mark.parametrize("protocol", ["published", "shuffled-ties"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_when_one_is_left_out_fresh_features_come_from_training_events_alone(load, protocol, split):
    found = load(seconds(DAYS), validation_users=None, protocol=protocol)

    training_set = found.training_set
    num_training = sum(int((each == "train").sum()) for each in training_set.splits)
    held_out = [np.isin(each, ["validation", "test"]) for each in training_set.splits]
    targets = [
        (training_set.user_ids[user], int(training_set.item_ids[item - 1]), int(day))
        for user, is_held_out in enumerate(held_out)
        for item, day in zip(
            training_set.sequences[user][is_held_out], training_set.days[user][is_held_out], strict=True
        )
    ]
    assert len(targets) > 5
    assert len(logged(found, training_set, split)) == num_training == len(DAYS) - len(targets)
    assert sorted([*logged(found, training_set, split), *targets]) == sorted(DAYS)


def test_by_global_time_a_newer_item_has_its_text_and_a_newer_user_nothing(load):
    found = load(seconds(DAYS), validation_users=None, protocol="global-time")

    fitting, asked = found.cut.fitting, found.training_set
    for name in ("item_semantic", "item_neighbour", "user_semantic", "user_neighbour", "popularity"):
        one, other = getattr(asked, name), getattr(fitting, name)
        assert (one[: len(other)] == other).all(), name
    assert asked.item_semantic[-1].any()
    assert asked.item_neighbour[-1].any()
    assert not asked.user_semantic[-1].any()
    assert (asked.popularity[-1], asked.item_is_tail[-1], asked.user_is_tail[-1]) == (0, True, True)


@pytest.mark.parametrize(("cut", "name"), [(7, "choosing"), (9, "fitting")])
def test_events_planted_after_a_cut_change_nothing_that_is_known_at_it(load, cut, name):
    planted = [(user, item + (day >= cut), day) for user, item, day in DAYS[:-1]]
    planted.append(("new", 16, 10))
    found = [load(seconds(rows), validation_users=None, protocol="global-time") for rows in (DAYS, planted)]
    one, other = (each.choosing if name == "choosing" else each.cut.fitting for each in found)

    assert lists(found[0].training_set.sequences) != lists(found[1].training_set.sequences)
    assert (one.item_ids, one.user_ids) == (other.item_ids, other.user_ids)
    assert_same_inputs(one, other)
    histories = [
        {event.user: event.history.tolist() for event in evaluation_events(each.training_set, "test")} for each in found
    ]
    if name == "fitting":
        assert histories[0] == histories[1]


def test_by_global_time_an_event_before_a_cut_does_change_what_is_known(load):
    changed = [("b", 11, 6) if row == ("b", 15, 6) else row for row in DAYS]
    found = [load(seconds(rows), validation_users=None, protocol="global-time") for rows in (DAYS, changed)]

    for one, other in ((found[0].choosing, found[1].choosing), (found[0].cut.fitting, found[1].cut.fitting)):
        with pytest.raises(AssertionError):
            assert_same_inputs(one, other)


@pytest.mark.parametrize(("day", "num_known"), [(9, [7, 5, 4, 5, 6]), (10, [9, 5, 4, 5, 6]), (11, [9, 5, 4, 5, 6, 1])])
def test_for_any_later_day_models_are_fitted_to_what_is_known_before_it(load, day, num_known):
    options = {"validation_users": None, "protocol": "global-time"}
    at_cut, found = load(seconds(DAYS), **options), load(seconds(DAYS), **options, fitting_day=day)

    assert [len(items) for items in training_sequences(found.cut.fitting)] == num_known
    assert ("16" in found.cut.fitting.item_ids) == (day > 10)
    assert found.cut.day == 9
    assert_same_inputs(found.choosing, at_cut.choosing)
    events = [
        [(event.user, event.history.tolist(), event.target, event.day) for event in evaluation_events(each, "test")]
        for each in (found.training_set, at_cut.training_set)
    ]
    assert events[0] == events[1]
    assert found.training_set.item_ids == at_cut.training_set.item_ids


def test_events_planted_on_a_later_fitting_day_change_nothing_that_is_known_before_it(load):
    options = {"validation_users": None, "protocol": "global-time"}
    planted = [*DAYS, ("b", 14, 10), ("c", 11, 10)]
    one, other, seen = (
        load(seconds(rows), **options, fitting_day=day).cut.fitting
        for rows, day in ((DAYS, 10), (planted, 10), (planted, 11))
    )

    assert_same_inputs(one, other)
    assert lists(training_sequences(seen)) != lists(training_sequences(other))


def test_nothing_is_fitted_before_the_cut_of_the_test(load):
    with pytest.raises(ValueError, match="fitting_day 8 is before the second cut, 9"):
        load(seconds(DAYS), validation_users=None, protocol="global-time", fitting_day=8)


def test_known_items_keep_their_corruption_when_newer_ones_join(load):
    found = load(seconds(DAYS), validation_users=None, protocol="global-time", inputs=Inputs(k=2, corruption=1.0))
    clean = load(seconds(DAYS), validation_users=None, protocol="global-time")

    num = len(found.cut.fitting.item_ids)
    assert (found.training_set.item_semantic[:num] == found.cut.fitting.item_semantic).all()
    assert (found.training_set.item_semantic[:num] != clean.training_set.item_semantic[:num]).any()


def test_every_protocol_has_events_and_a_checksum_of_its_own(load):
    options = [{}, {"protocol": "shuffled-ties"}, {"protocol": "shuffled-ties", "order_seed": 1}]
    found = [load(seconds(DAYS), **each).checksum for each in (*options, {"protocol": "global-time"})]

    assert len(set(found)) == 4


@pytest.mark.parametrize("protocol", ["shuffled-ties", "global-time"])
def test_a_file_without_times_can_only_be_measured_as_published(tmp_path, protocol):
    (tmp_path / "inter.txt").write_text("1 1\n1 2\n1 3\n")

    with pytest.raises(SourceError, match="has no times: it can only be measured with --protocol published"):
        datasets.load(tmp_path, cache=tmp_path, protocol=protocol)


def test_data_of_one_day_cannot_be_cut(load):
    with pytest.raises(ValueError, match="too few days to be cut"):
        load(protocol="global-time")


def test_a_planted_future_item_changes_no_vector_that_is_derived_from_sequences(tmp_path):
    found = []
    for name, last in (("one", "1 4\n1 5"), ("other", "1 6\n1 3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inter.txt").write_text(f"1 1\n1 2\n1 3\n{last}\n2 3\n2 4\n2 6\n2 5\n3 5\n3 6\n")
        found.append(datasets.load(tmp_path / name, cache=tmp_path, tail=Tail(), validation_users=None).training_set)

    assert lists(found[0].sequences) != lists(found[1].sequences)
    assert_same_inputs(*found)


def test_a_training_item_does_change_what_a_model_reads(load):
    """The tests above would pass as well if nothing were ever read."""
    changed = [("a", 16, 1) if row == ("a", 11, 1) else row for row in ROWS]

    with pytest.raises(AssertionError):
        assert_same_inputs(load(validation_users=None).training_set, load(changed, validation_users=None).training_set)


def test_movielens_that_is_there_is_not_fetched_again(settings):
    place = settings.home / "source" / "movielens-100k"
    place.mkdir(parents=True)

    assert readers.movielens_folder(settings) == place


@pytest.mark.spark
def test_users_are_described_as_the_spark_job_does(spark, tmp_path):
    """The benchmark collects a user's facts without Spark; both must say the same."""
    from datetime import UTC, datetime

    from spark_jobs.describe_users import user_facts

    source = readers.read(write_folder(tmp_path))
    items = [
        (item_id, facts["title"], facts["attributes"])
        for item_id, facts in zip(source.item_ids, source.items, strict=True)
    ]
    interactions = [
        (user_id, source.item_ids[item - 1], datetime(1998, 1, 1, place, tzinfo=UTC), place)
        for user_id, sequence in zip(source.user_ids, source.sequences, strict=True)
        for place, item in enumerate(sequence)
    ]
    users = [
        (user_id, profile.get("attributes", {}))
        for user_id, profile in zip(source.user_ids, source.profiles, strict=True)
    ]
    rows = user_facts(
        spark.createDataFrame(users, "user_id string, attributes map<string,string>"),
        spark.createDataFrame(items, "item_id string, title string, attributes map<string,string>"),
        spark.createDataFrame(interactions, "user_id string, item_id string, event_time timestamp, row_number bigint"),
        "1998-01-02",
        holdout=0,
        hidden=("asin",),
    ).collect()
    by_user = {row.entity_id: vectors.USER.to_input(json.loads(row.raw), ("asin",)) for row in rows}

    expected = [vectors.USER.to_facts_description(by_user[user_id]) for user_id in source.user_ids]
    assert user_texts(source, source.sequences, ("asin",)) == expected


def real(name: str) -> readers.Source:
    if "GRASP_DATA" not in os.environ:
        pytest.skip("GRASP_DATA is not set (docs/data.md)")
    return readers.read(Path(os.environ["GRASP_DATA"]) / name)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "tail", "counts", "groups"),
    [
        ("beauty", Tail(), (22_363, 12_101, 198_502), (17_240, 3_141)),
        ("fashion", datasets.LLM_ESR_FASHION, (9_094, 4_722, 34_759), (5_135, 2_591)),
    ],
)
def test_counts_and_groups_are_those_of_the_specification(name, tail, counts, groups):
    source = real(name)

    assert (len(source.user_ids), len(source.item_ids), sum(map(len, source.sequences))) == counts
    is_tail = datasets.tail_items(source, tail)
    num_tail_targets = sum(is_tail[items[-1] - 1] for items in source.sequences)
    num_tail_users = sum(len(items) - 1 < tail.items_before for items in source.sequences)
    assert (num_tail_users, num_tail_targets) == groups


@pytest.mark.integration
def test_beauty_by_global_time_has_the_events_of_the_specification():
    parts = protocols.by_time(real("beauty"), 2048)

    num_targets = [int((splits == "test").sum()) for splits in parts.asked.splits]
    assert (sum(num_targets), np.count_nonzero(num_targets)) == (12_090, 6_188)
    assert np.count_nonzero(num_targets[: len(parts.fitting.source.user_ids)]) == 5_585  # who are known at the cut
    assert sum((splits == "validation").any() for splits in parts.choosing.splits) == 2_048
