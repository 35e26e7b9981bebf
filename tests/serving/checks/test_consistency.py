"""Served answers equal the offline side, and planted differences are found and named."""

# ruff: noqa: N803 - shape suffixes

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from grasp.manifest import Manifest, release_folder
from grasp.moments import nearest
from grasp.partitions import Content
from grasp.settings import Settings
from grasp.versions import Versions
from serving.checks import consistency, offline_fresh
from serving.checks.consistency import LOG_FOLDER, NothingComparedError, SkewError, check, read_requests, sample
from serving.lookup.online_store import UserRow
from serving.ranking import moments
from serving.ranking.release_ranker import load_release_ranker
from serving.releases.publication import choose_model, publish

DAY, SERVED_ON = "1998-03-01", "1998-03-02"
USERS = ("u1", "u2", "u3")


class ServedDay:
    """A release with a model, its users in the lake and online, and the log of their answers."""

    def __init__(self, settings: Settings, users: Any, manifest: Manifest) -> None:
        self.settings = settings
        self.users = users
        self.manifest = manifest
        self.place = release_folder(settings.releases, manifest)
        self.release = load_release_ranker(self.place, manifest)
        self.log = settings.lake / LOG_FOLDER
        self.rows: list[dict[str, Any]] = []

    def answer(self, user_id: str, recent: tuple[str, ...] = (), **changed: Any) -> None:
        user = self.users.get(user_id)
        items = self.release.recommend(user, 5, recent)
        row = {
            "request_id": f"request-{len(self.rows)}",
            "user_id": user_id,
            "release_id": self.manifest.release_id,
            "feature_day": DAY,
            "recent_item_ids": list(recent),
            "item_ids": [each.item_id for each in items],
            "scores": [each.score for each in items],
            "fallback": None,
            "votes_from": self.release.state_of(user, recent).votes.source,
            "served_at": datetime(1998, 3, 2, 12, tzinfo=UTC),
        }
        self.rows.append(row | changed)
        self.write(self.rows)

    def write(self, rows: list[dict[str, Any]]) -> None:
        place = self.log / f"day={SERVED_ON}"
        place.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), place / "part-0.parquet")

    def check(self, **options: Any) -> consistency.Skew:
        return check(self.settings, SERVED_ON, self.log, open_user_store=lambda *_: self.users, **options)


@pytest.fixture
def served(
    settings: Settings, write_day: Callable[..., None], make_model: Callable[..., Path], users: Any
) -> ServedDay:
    write_day(settings)
    known = users.users["u1"]
    for number, user_id in enumerate(USERS):
        users.users[user_id] = replace(known, user_id=user_id, sequence=["i3", "i5", f"i{number + 1}"][-2:])
    write_users(settings, list(users.users.values()))
    manifest = publish(settings, DAY, choose_model(settings, make_model(settings), None))
    return ServedDay(settings, users, manifest)


def write_users(settings: Settings, users: list[UserRow]) -> None:
    place = partitions.partition_path(settings.lake, tables.USER_FEATURES, Versions(settings).feature, DAY)
    schema = pa.schema(
        {
            "is_tail": pa.int64(),
            "semantic_embedding": pa.list_(pa.float32()),
            "neighbour_embedding": pa.list_(pa.float32()),
            "neighbour_similarities": pa.list_(pa.float32()),
            "neighbour_item_weights": pa.list_(pa.float32()),
        }
    )
    rows = pa.Table.from_pylist([asdict(each) for each in users])
    for name in schema.names:
        column = rows[name].cast(schema.field(name).type)
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    pq.write_table(rows, place / "part-0.parquet")
    partitions.write_content(place, Content(rows.num_rows, "users"))


@pytest.fixture
def serve_fresh(settings, write_day, make_model, users) -> Callable[..., ServedDay]:
    """`serve_fresh(state_vote_weight=2.0)`: the same with takers, stored votes and moments."""

    def start(**weights: Any) -> ServedDay:
        takers = {"i1": (1, 2, 3, 4, 5), "i6": (0, 0, 9, 9, 9)}
        voters = (("i2", "abc"), ("i8", ["a", "b", "c", "u2"]))
        histories = (["i5", "i3"], ["i7", "gone", "i5", "i3"])
        voting = [(who, item, each) for each in histories for item, of_item in voters for who in of_item]
        unknown = [("d", "gone", ["i1", "gone"]), ("d", "i1", ["gone"])]
        write_day(settings, DAY, takers=takers, moments=[*voting, *unknown])
        known = users.users["u1"]
        for number, user_id in enumerate(USERS):
            votes = np.array([0.5, 0.25 * number, 0.01], np.float32)
            users.users[user_id] = replace(
                known, user_id=user_id, neighbour_item_ids=["i4", "i8", "gone"], neighbour_item_weights=votes
            )
        write_users(settings, list(users.users.values()))
        known = {"takers_weights": (0.5, 0, 1.0, 0, -0.2), "vote_weight": 0.7}
        model = make_model(settings, **(known | weights))
        return ServedDay(settings, users, publish(settings, DAY, choose_model(settings, model, None)))

    return start


@pytest.mark.parametrize(("weight", "source"), [(0.0, "stored"), (0.9, "moments")])
def test_takers_and_votes_are_replayed(serve_fresh, weight, source):
    served = serve_fresh(state_vote_weight=weight)
    for user_id in USERS:
        served.answer(user_id)
        served.answer(user_id, ("i7", "an item nobody has"))
    assert {row["votes_from"] for row in served.rows} == {source}
    assert served.rows[0]["scores"] != served.rows[2]["scores"] != served.rows[3]["scores"]

    skew = served.check()

    assert (skew.num_scored, skew.num_users) == (6, 3)
    assert (skew.num_score_differences, skew.num_order_differences, dict(skew.feature_differences)) == (0, 0, {})
    assert skew.max_score_difference < 1e-3


@pytest.mark.parametrize("planted", ["state", "voter"])
def test_moments_that_serving_searches_otherwise_are_found(serve_fresh, planted):
    served = serve_fresh(state_vote_weight=3.0)
    if planted == "state":
        rows = moments.load_moments(served.place / "moments", served.release.items, served.release.manifest.day)
        served.release._moments._search = moments.ExactSearch(-rows.state_MD, 0 * rows.age_M)
    else:
        served.release._moments._number_of = {}  # so that u2 votes for u2
    served.answer("u2")

    assert served.check(limit=1.0).num_score_differences == 1


def test_rounding_may_choose_between_equally_near_moments(serve_fresh, monkeypatch):
    """Of seven moments like the user's, four may vote: those of item i8 by definition, those of i2 if rounded so."""

    def earliest(similarity_M: np.ndarray) -> np.ndarray:
        return np.sort(np.argsort(-similarity_M.round(4), kind="stable")[:4])

    monkeypatch.setattr(offline_fresh, "nearest", lambda similarity_M: nearest(similarity_M, 4))
    served = serve_fresh(state_vote_weight=3.0)
    for choice in (earliest, offline_fresh.nearest):
        monkeypatch.setattr(moments, "nearest", choice)
        served.answer("u1")
    assert served.rows[0]["item_ids"] != served.rows[1]["item_ids"]

    assert served.check().num_score_differences == 0
    served.answer("u1", scores=[score + 0.1 for score in served.rows[1]["scores"]])
    assert served.check(limit=1.0).num_score_differences == 1


def test_scores_with_votes_of_moments_may_differ_by_more(serve_fresh):
    """States have half precision, and weights six digits: one may be rounded otherwise."""
    for weight, num_differences in ((0.9, 0), (0.0, 1)):
        served = serve_fresh(state_vote_weight=weight)
        served.answer("u1")
        served.answer("u1", scores=[score + 5e-3 for score in served.rows[0]["scores"]])

        assert served.check(limit=1.0).num_score_differences == num_differences


def test_a_log_from_before_there_were_votes_is_replayed(serve_fresh):
    served = serve_fresh(vote_weight=0.0)
    served.answer("u1")
    served.write([{name: value for name, value in row.items() if name != "votes_from"} for row in served.rows])

    assert served.check().max_score_difference < 1e-5


def test_scores_with_other_votes_than_the_log_says_differ(serve_fresh):
    served = serve_fresh(state_vote_weight=0.9)
    served.answer("u1", votes_from="stored")

    assert served.check(limit=1.0).num_score_differences == 1


def test_takers_that_serving_reads_otherwise_are_found(serve_fresh):
    served = serve_fresh()
    served.release._candidates.takers_N[0] += 0.5
    served.answer("u1", votes_from="stored")

    assert served.check(limit=1.0).num_score_differences == 1


def test_votes_that_differ_online_are_found_in_features_and_scores(serve_fresh):
    served = serve_fresh()
    weights = served.users.users["u2"].neighbour_item_weights * 2
    served.users.users["u2"] = replace(served.users.users["u2"], neighbour_item_weights=weights)
    served.answer("u2", votes_from="stored")

    skew = served.check(limit=1.0)

    assert dict(skew.feature_differences) == {"neighbour_item_weights": 1}
    assert skew.num_score_differences == 1


def test_served_scores_equal_those_of_training(served):
    for user_id in USERS:
        served.answer(user_id)
    served.answer("u1", recent=("i7", "an item nobody has"))

    skew = served.check()

    assert (skew.num_requests, skew.num_scored, skew.num_users) == (4, 4, 3)
    assert skew.max_score_difference < 1e-5
    assert (skew.num_score_differences, skew.num_order_differences, dict(skew.feature_differences)) == (0, 0, {})


def test_altered_features_of_one_user_are_found_in_features_and_scores(served, capsys):
    row = served.users.users["u2"]
    altered = -row.semantic_embedding
    served.users.users["u2"] = replace(row, semantic_embedding=altered, sequence=["i8"])
    for user_id in USERS:
        served.answer(user_id)

    with pytest.raises(SkewError, match="online and offline differ"):
        served.check()
    said = capsys.readouterr().out
    assert "1 of 3 users differ" in said
    assert "feature semantic_embedding: 1 users, largest difference" in said
    assert "feature sequence: 1 users, largest difference inf" in said
    assert "scores: 1 requests differ" in said
    assert "user u2: semantic_embedding online differs from the lake's of 1998-03-01" in said


def test_only_a_score_beyond_the_tolerance_differs(served):
    served.answer("u1")
    (row,) = served.rows
    served.answer("u1", scores=[score + 5e-5 for score in row["scores"]])
    assert served.check().num_score_differences == 0
    served.answer("u1", scores=[score + 2e-4 for score in row["scores"]])

    skew = served.check(limit=0.5)

    assert (skew.num_score_differences, skew.num_order_differences) == (1, 0)
    assert skew.max_score_difference == pytest.approx(2e-4, rel=1e-2)


def test_a_different_order_is_found(served):
    served.answer("u1")
    (row,) = served.rows
    served.answer("u1", item_ids=row["item_ids"][::-1], scores=row["scores"][::-1])

    skew = served.check(limit=1.0)

    assert (skew.num_score_differences, skew.num_order_differences) == (0, 1)


def test_a_user_whose_online_row_has_moved_on_is_counted_not_compared(served):
    served.answer("u1")
    row = served.users.users["u1"]
    later = row.event_timestamp + timedelta(days=1)
    served.users.users["u1"] = replace(row, description="newer", event_timestamp=later)

    skew = served.check()

    assert (skew.num_moved_on, skew.num_users, skew.num_scored) == (1, 0, 1)


def test_fallbacks_and_deleted_releases_are_counted(served):
    served.answer("u1")
    served.answer("u1", fallback="unknown_user")
    served.answer("u1", fallback="stale_features")
    served.answer("u1", fallback="last_good")
    served.answer("u1", release_id="1998-02-01-0000000000")
    served.answer("u1", feature_day="1998-02-01")

    skew = served.check()

    assert (skew.num_requests, skew.num_scored, skew.num_fallbacks, skew.num_gone) == (6, 3, 1, 2)


@pytest.mark.parametrize("changed", [{"release_id": "1998-02-01-0000000000"}, {"fallback": "unknown_user"}])
def test_a_check_that_compared_nothing_does_not_pass(served, changed):
    served.answer("u1", **changed)

    with pytest.raises(NothingComparedError, match="nothing was compared: of 1 requests"):
        served.check()


def test_a_check_of_scores_alone_says_that_no_user_was_compared(served, capsys):
    served.answer("u1")
    served.users.users["u1"] = None

    assert served.check().num_scored == 1
    assert "features: no user was compared" in capsys.readouterr().out


def test_a_sample_is_the_same_each_time(served):
    for _ in range(3):
        served.answer("u1")
    requests = read_requests(served.log, SERVED_ON)

    assert [each.request_id for each in sample(requests, 5)] == ["request-0", "request-1", "request-2"]
    assert sample(requests, 2) == sample(requests[::-1], 2)
    assert served.check(num=2).num_requests == 2


def test_a_file_of_the_log_that_was_never_finished_is_not_read(served):
    served.answer("u1")
    (served.log / f"day={SERVED_ON}" / ".part-1.parquet").write_bytes(b"PAR1 half")
    assert served.check().num_requests == 1


def test_a_day_without_a_log_and_another_table_are_named(served, tmp_path):
    with pytest.raises(NothingComparedError, match="no served requests of 1998-03-02"):
        read_requests(tmp_path, SERVED_ON)
    (tmp_path / f"day={SERVED_ON}").mkdir()
    pq.write_table(pa.table({"user_id": ["u1"]}), tmp_path / f"day={SERVED_ON}" / "part-0.parquet")
    with pytest.raises(ValueError, match="not a log of served requests: it lacks fallback, feature_day"):
        read_requests(tmp_path, SERVED_ON)


def test_the_command_that_compared_nothing_ends_with_a_status_of_its_own(settings, monkeypatch, capsys):
    for name, value in settings.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["consistency", "--day", SERVED_ON])

    with pytest.raises(SystemExit) as ended:
        consistency.main()
    assert ended.value.code == 3
    assert "error: nothing was compared: no served requests of 1998-03-02" in capsys.readouterr().err


@pytest.mark.integration
def test_features_altered_in_the_online_store_itself_are_found(served, settings):
    """The real lookup, through Feast: the online row of u2 is overwritten directly."""
    import pandas as pd

    from feature_repo.materialise import open_for_writing
    from serving.lookup.online_store import FeastUserStore

    version = Versions(settings).feature
    store = open_for_writing(settings, version, apply=True)
    others = {"prompt_version": "p", "model_revision": "m", "embedding_version": "e", "feature_version": version}
    rows = [asdict(served.users.users[user_id]) | others for user_id in USERS]
    for row in rows:
        row["is_tail"] = int(row["is_tail"])
    rows[1]["sequence"] = ["i8", "i1"]
    store.write_to_online_store("user_features", pd.DataFrame(rows))
    served.users = FeastUserStore(settings, served.manifest)
    for user_id in USERS:
        served.answer(user_id)

    skew = served.check(limit=1.0)

    assert skew.users_with_differences == {"u2"}
    assert dict(skew.feature_differences) == {"sequence": 1}
    assert skew.num_score_differences == 1
