"""Answers that know what was taken lately: votes of moments, their fallback, and what is popular now."""

import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from grasp import tables
from grasp.partitions import partition_path
from serving.ranking.moments import ReleaseMoments

TAKERS = {"i6": (1, 2, 6, 7, 7), "i7": (4, 4, 4, 5, 6), "i2": (0, 0, 0, 3, 3)}
TAKEN = ["i5", "i3"]  # by u1, newest first
MOMENTS = [(user_id, "i6", TAKEN) for user_id in ("a", "b", "c")]
VISIT = [(user_id, "i8", ["i1", *TAKEN]) for user_id in ("a", "b", "c")]  # as u1 with the recent item i1
STRANGER = [(user_id, "i6", ["i1"]) for user_id in ("a", "b", "c")]  # as a stranger with the recent item i1
OF_VOTES = "people whose recent choices resemble yours took this in the last days"


@pytest.fixture
def client(publish_day, serve):
    """A release whose model reads takers and votes; its user u1 has stored votes for i7 and i8."""
    moments = [*MOMENTS, *VISIT, *STRANGER]
    publish_day(
        takers=TAKERS, moments=moments, takers_weights=(0, 0, 2.0, 0, 0), vote_weight=3.0, state_vote_weight=3.0
    )
    return serve()


def ask(client, user_id="u1", path="recommendations", **more):
    response = client.post(f"/v1/{path}", json={"user_id": user_id, **more})
    assert response.status_code == 200, response.text
    return response.json()


def metric(client, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_an_answer_says_where_its_votes_came_from_and_why_an_item_is_in_it(client):
    answer = ask(client, k=5)

    assert (answer["votes_from"], answer["votes_fallback"]) == ("moments", None)
    of_answer = {each["item_id"]: each for each in answer["items"]}
    assert next(iter(of_answer)) == "i6"
    assert of_answer["i6"]["fresh"]["takers_7d"] == 6
    assert of_answer["i6"]["fresh"]["votes"] == pytest.approx(3 * np.log1p(30 * 3), abs=0.1)
    assert of_answer["i6"]["reason"].endswith(f"{OF_VOTES}; taken often this week, by 6 people")
    assert all(each["fresh"]["votes"] is None for each in answer["items"][2:])  # stored votes for i7 do not count
    assert not {"a", "b", "c"} & {word for each in answer["items"] for word in each["reason"].split()}


def test_recent_items_change_whose_votes_count(client):
    usual, recent = (ask(client, k=8, exclude_seen=False, recent_item_ids=each) for each in ([], ["i1"]))

    def share_of_i8(answer) -> float:
        votes = {each["item_id"]: each["fresh"]["votes"] or 0 for each in answer["items"]}
        return votes["i8"] - votes["i6"]

    assert recent["votes_from"] == "moments"
    assert share_of_i8(recent) > share_of_i8(usual)


def test_a_release_whose_model_reads_no_votes_says_so(publish_day, serve):
    publish_day(takers=TAKERS, moments=MOMENTS)

    answer = ask(serve(), recent_item_ids=["i1"])

    assert (answer["votes_from"], answer["votes_fallback"]) == (None, None)
    assert {(each["fresh"]["takers_7d"], each["fresh"]["votes"]) for each in answer["items"]} == {(None, None)}


def test_popular_items_rest_on_no_votes(client, users):
    users.users["u1"] = replace(users.users["u1"], sequence=["gone"])

    answer = ask(client)

    assert (answer["fallback"], answer["votes_from"]) == ("no_history", None)


def test_the_setting_turns_the_search_off(publish_day, serve):
    publish_day(moments=MOMENTS, vote_weight=3.0, state_vote_weight=3.0)
    client = serve(online_moments=False)

    answer = ask(client, recent_item_ids=["i1"])

    assert (answer["votes_from"], answer["votes_fallback"]) == ("stored", "no_moments")
    assert {each["item_id"] for each in answer["items"] if each["fresh"]["votes"]} <= {"i7", "i8"}
    assert metric(client, 'grasp_votes_fallbacks_total{fallback="no_moments"}') == 1


def test_a_stranger_gets_votes_for_the_visit_but_never_their_own(client):
    """User a has no row online but took part in the moments; without a two are left, which is too few."""
    stranger, known = (ask(client, user_id, recent_item_ids=["i1"]) for user_id in ("stranger", "a"))

    assert {(each["fallback"], each["votes_from"]) for each in (stranger, known)} == {("recent_items_only", "moments")}
    voted = {each["item_id"]: each["fresh"]["votes"] for each in stranger["items"]}
    assert voted["i6"] > 0
    assert {each["fresh"]["votes"] for each in known["items"]} == {None}
    assert ask(client, "stranger")["votes_from"] is None


def test_scores_count_the_same_votes(client):
    shown = {each["item_id"]: each["score"] for each in ask(client, recent_item_ids=["i1"])["items"]}

    answer = ask(client, path="scores", item_ids=list(shown), recent_item_ids=["i1"])

    assert answer["votes_from"] == "moments"
    assert [each["score"] for each in answer["scores"]] == pytest.approx(list(shown.values()), abs=1e-5)


def test_a_search_that_fails_is_an_answer_with_stored_votes_and_counted(client, monkeypatch):
    usual = ask(client, k=3)

    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(ReleaseMoments, "votes", fail)
    answer = ask(client, k=3)

    assert (answer["fallback"], answer["votes_from"], answer["votes_fallback"]) == (None, "stored", "moments_error")
    assert usual["votes_fallback"] is None and len(answer["items"]) == 3
    assert metric(client, 'grasp_votes_fallbacks_total{fallback="moments_error"}') == 1


def test_every_request_with_a_history_is_searched_once_and_its_state_computed_once(client):
    for recent in ([], ["i1"]):
        ask(client, recent_item_ids=recent)
        ask(client, path="scores", item_ids=["i1"], recent_item_ids=recent)
    ask(client, "stranger")

    for stage in ("attention", "backbone", "moments"):
        assert metric(client, f'grasp_stage_seconds_count{{stage="{stage}"}}') == 4


def test_where_votes_came_from_is_logged_and_an_impression_tells_it(client, settings):
    for recent in ([], ["i1"]):
        ask(client, recent_item_ids=recent)
    batch = client.post("/v1/recommendations/batch", json={"user_ids": ["u1"]}).json()["answers"]
    assert client.post("/v1/impressions", json={"impressions": batch}).status_code == 202
    earlier = {name: value for name, value in batch[0].items() if name != "votes_from"} | {"request_id": "visit-0001"}
    assert client.post("/v1/impressions", json={"impressions": [earlier]}).status_code == 202

    client.app.state.service.stop()

    place = partition_path(settings.lake, tables.SERVED_REQUESTS, None, settings.clock().date().isoformat())
    rows = [row for file in place.glob("*.parquet") for row in pq.ParquetFile(file).read().to_pylist()]
    logged = sorted((str(row["votes_from"]), row["recent_item_ids"]) for row in rows)
    assert logged == [("None", []), ("moments", []), ("moments", []), ("moments", ["i1"])]


@pytest.mark.parametrize("model", ["tiny-ranker", None])
def test_popular_items_of_an_unknown_user_are_those_of_the_last_days(publish_day, serve, model):
    publish_day(model=model, takers=TAKERS)
    client = serve()

    answer = ask(client, "stranger", k=4)

    assert [each["item_id"] for each in answer["items"]] == ["i6", "i7", "i2", "i1"]
    assert [each["reason"] for each in answer["items"]] == [
        "taken by 6 people in the last 7 days",
        "taken by 4 people in the last 7 days",
        "popular: 70 users",
        "popular: 80 users",
    ]
    scores = ask(client, "stranger", "scores", item_ids=["i6", "i7", "i2", "i1"])["scores"]
    assert [each["score"] for each in scores] == [each["score"] for each in answer["items"]]
    assert [int(each["score"]) for each in scores] == [6, 4, 0, 0]


@pytest.mark.parametrize("user_id", ["stranger", "u1"])
def test_without_a_model_who_looked_at_items_gets_what_is_hot_in_their_categories_first(publish_day, serve, user_id):
    """Odd items are comedies about war, even ones dramas."""
    publish_day(model=None, takers=TAKERS)
    client = serve()

    comedies, dramas = (ask(client, user_id, k=8, recent_item_ids=[each]) for each in ("i3", "i4"))

    assert [each["item_id"] for each in comedies["items"]][:2] == ["i7", "i1"]
    assert [each["item_id"] for each in dramas["items"]][:3] == ["i6", "i2", "i8"]
    assert dramas["items"][3]["item_id"] == "i7"
