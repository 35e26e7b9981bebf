"""The HTTP application: answers, fallbacks, limits, and following the manifest."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from urllib.parse import quote

import anyio
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from grasp import tables
from grasp.days import end_of
from grasp.manifest import manifest_in_force, release_folder
from grasp.partitions import partition_path
from grasp.preflight import listen
from grasp.versions import Versions
from serving.http.access import Access
from serving.http.app import create_app, main
from serving.http.body_limit import MAX_BODY_BYTES, BodyLimit
from serving.http.routes import NUM_SCANS, ModelResponse
from serving.lookup.online_store import StoreError
from serving.releases.manage import rollback
from serving.releases.publication import choose_model, publish
from serving.rollout.follower import RETRY_SECONDS, ReleaseFollower
from serving.schemas import SimilarResponse, UserFeaturesResponse

DAY, NEXT_DAY = "1998-03-01", "1998-03-02"


def ask(client: TestClient, user_id: str = "u1", **more: object) -> dict:
    response = client.post("/v1/recommendations", json={"user_id": user_id, **more})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_known_user_gets_items_with_reasons_from_a_named_release(publish_day, serve):
    release_id = publish_day()

    answer = ask(serve(), k=3)

    assert (answer["fallback"], answer["release"], answer["model"]) == (None, release_id, "tiny-ranker")
    assert (answer["feature_day"], answer["feature_age_hours"]) == (DAY, 0.0)
    assert len(answer["items"]) == 3
    assert all(each["title"].startswith("Title ") and each["reason"] for each in answer["items"])
    assert not {"i3", "i5"} & {each["item_id"] for each in answer["items"]}


def test_one_lookup_per_request(publish_day, serve, users):
    publish_day()
    client = serve()
    before = users.num_lookups

    ask(client)

    assert users.num_lookups == before + 1


@pytest.mark.parametrize(("index_from_items", "is_indexed"), [(300, True), (301, False)])
def test_a_catalogue_is_searched_by_an_index_from_the_number_of_the_settings(
    settings, write_day, make_model, serve, caplog, index_from_items, is_indexed
):
    caplog.set_level("INFO", "grasp.serving")
    item_ids = [f"i{number}" for number in range(300)]
    write_day(settings, item_ids=item_ids)
    publish(settings, DAY, choose_model(settings, make_model(settings, item_ids=item_ids, width=16), None))

    answer = ask(serve(index_from_items=index_from_items), k=20)

    assert ("index of 300 items" in caplog.text) == is_indexed
    assert (answer["fallback"], len(answer["items"])) == (None, 20)


def test_a_release_is_loaded_while_the_store_is_down(publish_day, serve, users):
    publish_day()
    users.is_broken = True
    client = serve()
    assert ask(client)["fallback"] == "store_error"

    users.is_broken = False

    assert ask(client)["fallback"] is None


def test_seen_items_come_back_when_asked(publish_day, serve):
    publish_day()

    answer = ask(serve(), k=100, exclude_seen=False)

    assert {each["item_id"] for each in answer["items"]} >= {"i3", "i5"}


def test_recent_items_are_used_and_unknown_ones_counted(publish_day, serve):
    publish_day()

    answer = ask(serve(), k=100, recent_item_ids=["i1", "nonsense", "gone"])

    assert answer["num_unknown_recent_items"] == 2
    assert "i1" not in {each["item_id"] for each in answer["items"]}


def test_an_unknown_user_gets_popular_items_with_a_fallback(publish_day, serve):
    publish_day()

    answer = ask(serve(), "stranger", k=2)

    assert answer["fallback"] == "unknown_user"
    assert [each["reason"] for each in answer["items"]] == ["popular: 80 users", "popular: 70 users"]


@pytest.mark.parametrize(
    ("hours", "fallback"), [(48.5, None), (26 + 48, None), (26 + 48.01, "stale_features"), (936, "stale_features")]
)
def test_features_are_stale_48_hours_after_their_next_refresh_was_due(publish_day, serve, hours, fallback):
    """One missed refresh makes nobody's features stale. Stale ones are served with their age and a mark."""
    publish_day()
    fresh = ask(serve())

    client = serve(now=end_of(DAY) + timedelta(hours=hours), max_feature_age_hours=48)
    answer = ask(client)

    assert (answer["fallback"], answer["is_stale"]) == (fallback, fallback is not None)
    assert answer["feature_age_hours"] == pytest.approx(hours, abs=0.01)
    assert answer["items"] == fresh["items"]
    shown = client.get("/v1/users/u1").json()
    assert (shown["is_stale"], shown["age_hours"]) == (answer["is_stale"], answer["feature_age_hours"])


def test_a_user_with_stale_features_gets_at_least_what_a_stranger_with_the_same_visit_gets(publish_day, serve):
    publish_day()
    client = serve(now=end_of(DAY) + timedelta(hours=936))

    stranger = ask(client, "stranger", k=8, recent_item_ids=["i1", "i2"])
    answer, before = ask(client, k=8, recent_item_ids=["i1", "i2"]), ask(client, k=8)

    assert (stranger["fallback"], answer["fallback"]) == ("recent_items_only", "stale_features")
    score_of = {each["item_id"]: each["score"] for each in before["items"]}
    assert all(each["score"] != score_of[each["item_id"]] for each in answer["items"])  # the visit counts
    assert {each["item_id"] for each in answer["items"]} == {"i4", "i6", "i7", "i8"}


@pytest.mark.parametrize(("hours", "is_said"), [(74, False), (75, True)])
def test_a_release_whose_features_are_too_old_is_named_in_the_log(publish_day, serve, caplog, hours, is_said):
    publish_day()

    serve(now=end_of(DAY) + timedelta(hours=hours))

    said = f"features of {DAY} are {hours} h old: stale, 74 h is the limit (GRASP_MAX_FEATURE_AGE_HOURS=48 after"
    assert (said in caplog.text) == is_said


def test_all_seen_items_are_excluded_for_a_user_with_stale_features_too(publish_day, serve, users, user):
    publish_day()
    users.users["u1"] = replace(user, sequence=["i1", *["i2"] * 99], sequence_times=[0] * 100)

    answer = ask(serve(now=end_of(DAY) + timedelta(hours=75)), k=8, recent_item_ids=["i3"])

    assert answer["fallback"] == "stale_features"
    assert {each["item_id"] for each in answer["items"]} == {"i4", "i5", "i6", "i7", "i8"}


def test_a_slow_store_is_not_waited_for(publish_day, serve, users):
    publish_day()
    client = serve(lookup_timeout_ms=50)
    users.delay_seconds = 1.0

    started = time.monotonic()
    answer = ask(client)

    assert answer["fallback"] == "store_timeout"
    assert time.monotonic() - started < 0.8
    assert problems(client)["online_store"] == "store_timeout"


def problems(client: TestClient) -> dict[str, str | None]:
    return {each["name"]: each["problem"] for each in client.get("/v1/dependencies").json()["dependencies"]}


def test_a_broken_store_gives_popular_items_from_a_service_that_stays_ready(publish_day, serve, users):
    publish_day()
    client = serve()
    assert problems(client) == {"online_store": None, "requests_log": None}
    users.is_broken = True

    assert ask(client)["fallback"] == "store_error"
    assert problems(client)["online_store"] == "store_error"
    assert [client.get(path).status_code for path in ("/livez", "/healthz", "/readyz")] == [200, 200, 200]


def test_an_emptied_store_is_seen_and_users_keep_their_last_good_rows(publish_day, serve, users):
    publish_day()
    client = serve()
    before = ask(client)
    everybody, users.users = users.users, {}

    answer = ask(client)

    assert (answer["fallback"], answer["store_problem"], answer["items"]) == (
        "last_good",
        "store_empty",
        before["items"],
    )
    assert ask(client, "stranger")["fallback"] == "store_empty"
    assert problems(client)["online_store"] == "store_empty"
    assert client.get("/readyz").status_code == 200
    users.users = everybody
    client.app.state.service.check_store()  # type: ignore[attr-defined]
    assert (ask(client)["fallback"], ask(client, "stranger")["fallback"]) == (None, "unknown_user")


def test_a_service_that_starts_with_an_emptied_store_says_so(publish_day, serve, users):
    publish_day()
    users.users = {}

    answer = ask(serve(), "stranger", recent_item_ids=["i1"])

    assert (answer["fallback"], answer["store_problem"]) == ("recent_items_only", "store_empty")


def test_vectors_of_another_width_are_a_store_error(publish_day, serve, users):
    publish_day()
    users.users["u1"] = replace(users.users["u1"], semantic_embedding=np.ones(1, np.float32))

    assert ask(serve())["fallback"] == "store_error"


def test_a_user_without_any_known_item_has_no_history(publish_day, serve, users):
    publish_day()
    users.users["u1"] = replace(users.users["u1"], sequence=["gone"])

    assert ask(serve())["fallback"] == "no_history"


def test_a_popular_release_names_itself(publish_day, serve):
    publish_day(model=None)

    answer = ask(serve(), k=2)

    assert (answer["fallback"], answer["model"]) == ("no_model", None)
    assert [each["item_id"] for each in answer["items"]] == ["i1", "i2"]


def test_without_a_release_it_is_alive_but_not_ready_and_says_so_in_the_log_once(serve, caplog):
    client = serve()
    client.app.state.service.check()  # type: ignore[attr-defined]

    said = [each for each in caplog.records if each.getMessage().startswith("no release at ")]
    assert [each.levelname for each in said] == ["WARNING"]
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503
    assert client.get("/readyz").json()["reason"].startswith("no release")
    response = client.post("/v1/recommendations", json={"user_id": "u1"})
    assert (response.status_code, response.json()["detail"][:10]) == (503, "no release")


def test_similar_items(publish_day, serve):
    release_id = publish_day(model=None)

    answer = serve().get("/v1/items/i2/similar", params={"k": 3}).json()

    assert (answer["title"], answer["release"]) == ("Title i2", release_id)
    similarities = [each["similarity"] for each in answer["items"]]
    assert len(similarities) == 3 and similarities == sorted(similarities, reverse=True)
    assert "i2" not in {each["item_id"] for each in answer["items"]}


def test_an_unknown_item_is_a_404_with_a_message(publish_day, serve):
    publish_day()

    response = serve().get("/v1/items/a%2Fb/similar")

    assert response.status_code == 404
    assert response.json()["detail"].startswith("item 'a/b' is not in release")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user_id": "u1", "k": 201}, "body.k"),
        ({"user_id": "u1", "k": 0}, "body.k"),
        ({"user_id": ""}, "body.user_id"),
        ({"user_id": "u" * 513}, "body.user_id"),
        ({"user_id": "字" * 171}, "body.user_id"),
        ({"user_id": "u1", "deny_item_ids": ["字" * 171]}, "body.deny_item_ids.0"),
        ({"user_id": 7}, "body.user_id"),
        ({}, "body.user_id"),
        ({"user_id": "u1", "recent_item_ids": ["i1"] * 101}, "body.recent_item_ids"),
        ({"user_id": "u1", "n": 3}, "body.n"),
        ({"user_id": "\ud800"}, "body.user_id"),
        ({"user_id": "u1", "\ud800": 1}, "body"),
    ],
)
def test_a_mistake_in_a_request_is_named_by_field(publish_day, serve, body, field):
    publish_day()

    response = serve().post(
        "/v1/recommendations", content=json.dumps(body), headers={"content-type": "application/json"}
    )

    assert response.status_code == 422
    assert [each["field"] for each in response.json()["detail"]] == [field]


def test_a_truncated_body_is_no_json(publish_day, serve):
    publish_day()

    response = serve().post(
        "/v1/recommendations", content='{"user_id": "u1", ', headers={"content-type": "application/json"}
    )

    assert response.status_code == 422
    assert response.json()["detail"] == [{"field": "body", "message": "the body is not JSON (character 18)"}]


@pytest.mark.parametrize(("k", "status"), [(2.0, 200), (2.5, 422), ("2", 422), (True, 422)])
def test_a_float_without_a_fraction_is_an_integer_and_nothing_else_is(publish_day, serve, k, status):
    publish_day()

    assert serve().post("/v1/recommendations", json={"user_id": "u1", "k": k}).status_code == status


def test_a_body_that_is_not_utf_8_is_refused(publish_day, serve):
    publish_day()

    response = serve().post(
        "/v1/recommendations", content=b'{"user_id": "\xff"}', headers={"content-type": "application/json"}
    )

    assert response.status_code == 400
    assert set(response.json()) == {"detail", "request_id"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/items/{}",
        "/v1/items/{}/similar",
        "/v1/users/{}",
        "/v1/users/{}/features",
        "/v1/item?item_id={}",
        "/v1/user/similar?user_id={}",
    ],
)
@pytest.mark.parametrize(("within", "beyond"), [("i" * 512, "i" * 513), ("字" * 170, "字" * 171)])
def test_ids_in_addresses_have_the_same_limit_as_in_bodies(publish_day, serve, path, within, beyond):
    publish_day()
    client = serve()

    assert client.get(path.format(within)).status_code == 404
    assert client.get(path.format(beyond)).status_code == 422
    assert ask(client, within)["fallback"] == "unknown_user"


IDS = [".", "..", "x/similar", "x/features", "a/b", "/", "100%", "%2F", "a b+c&k=1#?", "ü", "i1/"]


@pytest.mark.parametrize("user_id", IDS)
def test_every_user_id_works_in_the_query(publish_day, serve, users, user, user_id):
    publish_day()
    users.users[user_id] = replace(user, user_id=user_id)
    client = serve()

    for path in ("/v1/user", "/v1/user/similar", "/v1/user/features"):
        response = client.get(path, params={"user_id": user_id})
        assert (response.status_code, response.json()["user_id"]) == (200, user_id)
    assert ask(client, user_id)["fallback"] is None


@pytest.mark.parametrize("user_id", [each for each in IDS if each not in (".", "..")])  # which clients resolve
def test_every_id_that_a_path_can_carry_works_there_when_it_is_encoded(publish_day, serve, users, user, user_id):
    publish_day()
    users.users[user_id] = replace(user, user_id=user_id)
    client = serve()

    for end in ("", "/similar", "/features"):
        response = client.get(f"/v1/users/{quote(user_id, safe='')}{end}")
        assert (response.status_code, response.json()["user_id"]) == (200, user_id)


@pytest.mark.parametrize("item_id", IDS)
def test_every_item_id_works_in_the_query(settings, write_day, make_model, serve, item_id):
    item_ids = ["i1", item_id, "x"]
    write_day(settings, item_ids=item_ids)
    publish(settings, DAY, choose_model(settings, make_model(settings, item_ids=item_ids), None))
    client = serve()

    for path in ("/v1/item", "/v1/item/similar"):
        response = client.get(path, params={"item_id": item_id})
        assert (response.status_code, response.json()["item_id"]) == (200, item_id)


def test_a_plain_slash_in_a_path_belongs_to_the_id_as_before(publish_day, serve, users, user):
    publish_day()
    users.users["a/b"] = replace(user, user_id="a/b")

    assert serve().get("/v1/users/a/b/features").json()["user_id"] == "a/b"


def test_similar_refuses_a_k_above_the_limit(publish_day, serve):
    publish_day()

    assert serve().get("/v1/items/i1/similar", params={"k": 201}).status_code == 422


@pytest.mark.parametrize("is_announced", [True, False])  # by a content-length
def test_a_large_body_is_refused(publish_day, serve, is_announced):
    publish_day()
    body = b'{"user_id": "' + b"u" * MAX_BODY_BYTES + b'"}'

    response = serve().post(
        "/v1/recommendations",
        content=body if is_announced else iter([body[:1000], body[1000:]]),
        headers={"content-type": "application/json"},
    )

    assert response.status_code == 413
    assert "larger than" in response.json()["detail"]


def test_a_new_release_is_loaded_while_running(publish_day, serve):
    first = publish_day(DAY)
    client = serve(poll_seconds=0.02)
    assert ask(client)["release"] == first

    second = publish_day(NEXT_DAY, model="better")

    wait_until(lambda: ask(client)["release"] == second)
    assert ask(client)["model"] == "better"


def test_following_goes_on_after_the_releases_folder_could_not_be_read(publish_day, serve, settings, caplog):
    first = publish_day(DAY)
    client = serve(poll_seconds=0.02)
    assert ask(client)["release"] == first
    aside = settings.releases.rename(settings.releases.with_name("aside"))
    settings.releases.write_text("a file where the folder belongs")
    wait_until(lambda: "could not be read" in caplog.text)

    settings.releases.unlink()
    aside.rename(settings.releases)
    second = publish_day(NEXT_DAY, model="better")

    wait_until(lambda: ask(client)["release"] == second)


def test_a_look_at_the_store_that_fails_is_named_and_following_goes_on(publish_day, serve, users, caplog, monkeypatch):
    monkeypatch.setattr("serving.http.service.STORE_CHECK_SECONDS", 0.02)
    publish_day(DAY)
    client = serve(poll_seconds=0.02)
    everybody, users.users = users.users, None
    wait_until(lambda: "the online store could not be looked at" in caplog.text)
    assert "could not be read" not in caplog.text

    users.users = everybody
    second = publish_day(NEXT_DAY, model="better")

    wait_until(lambda: ask(client)["release"] == second)


def test_a_look_at_the_store_while_the_service_stops_is_no_error(publish_day, serve, caplog, monkeypatch):
    monkeypatch.setattr("serving.http.service.STORE_CHECK_SECONDS", 0.02)
    publish_day()
    service = serve(poll_seconds=0.02).app.state.service  # type: ignore[attr-defined]
    look, is_looking, is_stopped = service.check_store, threading.Event(), threading.Event()
    followers: list[threading.Thread] = []

    def look_late() -> None:
        followers.append(threading.current_thread())
        is_looking.set()
        is_stopped.wait(20)
        look()

    service.check_store = look_late
    assert is_looking.wait(20)
    service.stop()
    is_stopped.set()
    followers[0].join(20)

    assert not followers[0].is_alive()
    assert [each.message for each in caplog.records if each.levelname == "ERROR"] == []


def test_a_rollback_is_followed(publish_day, serve, settings):
    first = publish_day(DAY)
    publish_day(NEXT_DAY)
    client = serve()
    rollback(settings)

    client.app.state.service.check()  # type: ignore[attr-defined]

    assert ask(client)["release"] == first


def test_a_corrupt_new_model_is_refused_and_the_old_release_stays(publish_day, serve, settings):
    first = publish_day(DAY)
    client = serve()
    publish_day(NEXT_DAY, model="broken")
    weights = release_folder(settings.releases, manifest_in_force(settings.releases)) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"ruin")

    client.app.state.service.check()  # type: ignore[attr-defined]

    assert ask(client)["release"] == first
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert "model.safetensors does not match its checksum" in ready.json()["problem"]


@pytest.mark.parametrize("damaged", ["model/model.safetensors", "../current.json"])
def test_a_worker_that_starts_with_a_corrupt_release_loads_the_nearest_earlier_one(
    publish_day, serve, settings, damaged
):
    publish_day(DAY, model="oldest")
    good = publish_day(DAY, model="good")
    for model in ("broken", "broken as well"):
        publish_day(NEXT_DAY, model=model)
        place = release_folder(settings.releases, manifest_in_force(settings.releases))
        (place / "model" / "vocabulary.json").unlink()
    (place / damaged).unlink()
    (place / damaged).write_text("{")

    client = serve()

    assert ask(client)["release"] == good
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["release"]) == (200, good)
    assert "was refused" in ready.json()["problem"]


def test_a_refused_release_opens_no_store(publish_day, settings):
    opened = []
    publish_day()
    (release_folder(settings.releases, manifest_in_force(settings.releases)) / "model" / "model.safetensors").unlink()

    with TestClient(create_app(settings, lambda *given: opened.append(given), 3600.0), "http://localhost") as client:
        assert "model.safetensors is missing" in client.get("/readyz").json()["problem"]

    assert opened == []


def test_an_invalid_manifest_is_refused(publish_day, serve, settings):
    first = publish_day(DAY)
    client = serve()
    (settings.releases / "current.json").write_text("{")

    client.app.state.service.check()  # type: ignore[attr-defined]

    assert ask(client)["release"] == first
    assert "is not a release manifest" in client.get("/readyz").json()["problem"]


def test_a_refused_release_is_tried_again_after_a_pause(settings, publish_day):
    publish_day()
    now, attempts = [0.0], []

    def load(manifest: object) -> None:
        attempts.append(manifest)
        raise StoreError("the store is down")

    follower = ReleaseFollower(settings.releases, load, lambda: now[0])  # type: ignore[arg-type]
    follower.check()
    follower.check()
    assert len(attempts) == 1
    now[0] += RETRY_SECONDS
    follower.check()
    assert len(attempts) == 2


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(0.02)


def test_a_user_without_a_row_is_answered_from_the_recent_items(publish_day, serve):
    publish_day()

    answer = ask(serve(), "stranger", recent_item_ids=["i1", "i4"])

    assert answer["fallback"] == "recent_items_only"
    assert not {"i1", "i4"} & {each["item_id"] for each in answer["items"]}
    assert not any(each["reason"].startswith("popular") for each in answer["items"])


def test_a_user_seen_before_is_answered_from_the_last_good_row_while_the_store_is_down(publish_day, serve, users):
    publish_day()
    client = serve()
    before = ask(client)
    users.is_broken = True

    answer = ask(client)
    assert (answer["fallback"], answer["store_problem"]) == ("last_good", "store_error")
    assert answer["items"] == before["items"]

    users.is_broken = False
    assert (ask(client)["fallback"], ask(client)["store_problem"]) == (None, None)


def test_a_late_row_is_the_last_good_one_of_the_next_request(publish_day, serve, users):
    publish_day()
    client = serve(lookup_timeout_ms=100)
    users.delay_seconds = 0.5

    assert ask(client)["fallback"] == "store_timeout"
    wait_until(lambda: ask(client)["fallback"] == "last_good")


@pytest.mark.parametrize("user_id", ["u1", "stranger"])
def test_filters_apply_to_the_model_and_to_fallbacks(publish_day, serve, user_id):
    publish_day()
    client = serve()

    allowed = ask(client, user_id, k=200, allow_item_ids=["i2", "i6", "i7", "gone"], deny_item_ids=["i7"])
    comedies = ask(client, user_id, k=200, categories=["comedy"], exclude_seen=False)
    nothing = ask(client, user_id, categories=["COMEDY"], deny_item_ids=["i1", "i3", "i5", "i7"])

    assert {each["item_id"] for each in allowed["items"]} == {"i2", "i6"}
    assert {each["item_id"] for each in comedies["items"]} == {"i1", "i3", "i5", "i7"}
    assert nothing["items"] == []


@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/recommendations/batch"])
def test_an_unknown_category_is_named_with_the_closest_ones(publish_day, serve, path):
    release_id = publish_day()
    user = {"user_id": "u1"} if path == "/v1/recommendations" else {"user_ids": ["u1", "stranger"]}

    response = serve().post(path, json=user | {"categories": ["Drama", "comdy"]})

    assert response.status_code == 404
    said = f"release {release_id} has no category 'comdy'; the closest is Comedy (/v1/categories lists all)"
    assert response.json()["detail"] == said


def test_categories_are_listed_with_their_sizes(publish_day, serve):
    release_id = publish_day()
    client = serve()

    answer = client.get("/v1/categories").json()

    assert answer["categories"] == [{"category": name, "num_items": 4} for name in ("Comedy", "Drama", "War")]
    assert (answer["num"], answer["release"]) == (3, release_id)
    assert len(client.get("/v1/categories", params={"k": 1}).json()["categories"]) == 1


@pytest.fixture
def write_people(settings) -> Callable[[], None]:
    """Replaces the users of the lake's day by four."""

    def write() -> None:
        place = partition_path(settings.lake, tables.USER_FEATURES, Versions(settings).feature, DAY)
        people = {"user_id": ["few", "u1", "u2", "erased"], "num_interactions": [1, 9, 5, 7]}
        pq.write_table(pa.table(people), place / "part-0.parquet")

    return write


def test_people_and_searches_to_start_with(publish_day, serve, write_people, users, user):
    publish_day()
    write_people()
    users.users["u2"] = replace(user, user_id="u2", description="word " * 100)

    answer = serve().get("/v1/examples").json()

    assert answer["store_problem"] is None
    assert [each["user_id"] for each in answer["people"]] == ["u2", "u1"]
    assert answer["people"][0]["description"] == "word " * 30 + "word…"
    assert answer["people"][1]["latest_titles"] == ["Title i5", "Title i3"]
    assert answer["searches"] == ["Comedy", "Drama", "War"]


def test_without_the_lakes_users_there_are_searches_to_start_with(publish_day, serve, settings, write_people):
    publish_day()
    place = partition_path(settings.lake, tables.USER_FEATURES, Versions(settings).feature, DAY)
    (place / "part-0.parquet").write_text("not a table")
    client = serve()

    answer = client.get("/v1/examples").json()

    assert (answer["people"], answer["searches"]) == ([], ["Comedy", "Drama", "War"])
    write_people()
    assert [each["user_id"] for each in client.get("/v1/examples").json()["people"]] == ["u1"]  # tried again


def test_people_whom_the_store_did_not_give_are_said_to_be_missing(publish_day, serve, write_people, users):
    publish_day()
    write_people()
    users.users["u2"] = StoreError("an online row lacks description")
    client = serve()

    answer = client.get("/v1/examples").json()

    assert ([each["user_id"] for each in answer["people"]], answer["store_problem"]) == (["u1"], "store_error")
    assert 'grasp_store_problems_total{problem="store_error"} 1.0' in client.get("/metrics").text


def test_the_people_of_a_release_are_chosen_once_however_many_ask_at_first(publish_day, serve, monkeypatch):
    publish_day()
    client, choices = serve(), []

    def choose_slowly(*_: object) -> list[str]:
        choices.append(1)
        time.sleep(0.2)
        return ["u1"]

    monkeypatch.setattr("serving.answers.examples._people", choose_slowly)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: client.get("/v1/examples").json(), range(4)))

    assert [[each["user_id"] for each in answer["people"]] for answer in answers] == [["u1"]] * 4
    assert len(choices) == 1


def test_scores_equal_those_of_the_recommendations(publish_day, serve):
    publish_day()
    client = serve()
    shown = {each["item_id"]: each["score"] for each in ask(client, k=3)["items"]}

    answer = client.post("/v1/scores", json={"user_id": "u1", "item_ids": [*shown, "gone"]}).json()

    scores = {each["item_id"]: each["score"] for each in answer["scores"]}
    assert scores.pop("gone") is None
    assert scores == pytest.approx(shown, abs=1e-5)


def test_scores_for_an_unknown_user_are_numbers_of_users(publish_day, serve):
    publish_day()

    answer = serve().post("/v1/scores", json={"user_id": "stranger", "item_ids": ["i2", "gone"]}).json()

    assert answer["fallback"] == "unknown_user"
    assert [each["score"] for each in answer["scores"]] == [70, None]


def test_a_batch_gives_the_same_answers_as_single_requests_in_order(publish_day, serve, users):
    publish_day()
    client = serve()

    body = {"user_ids": ["stranger", "u1"], "k": 2}
    before = users.num_lookups
    batch = client.post("/v1/recommendations/batch", json=body, headers={"X-Request-ID": "batch-0001"}).json()

    assert users.num_lookups == before + 1
    assert [each["request_id"] for each in batch["answers"]] == ["batch-0001.0", "batch-0001.1"]
    assert [each["items"] for each in batch["answers"]] == [
        ask(client, "stranger", k=2)["items"],
        ask(client, k=2)["items"],
    ]


def test_an_item_is_shown_with_its_text_categories_and_neighbours(publish_day, serve):
    release_id = publish_day()

    item = serve().get("/v1/items/i1").json()

    assert (item["description"], item["source"], item["popularity"], item["is_tail"]) == ("about i1", "llm", 80, False)
    assert item["categories"] == ["Comedy", "War"]
    assert item["neighbours"] == [{"item_id": "i8", "title": "Title i8", "similarity": 0.5}]
    assert (item["day"], item["release"]) == (DAY, release_id)


def test_a_user_is_shown_with_their_history_and_neighbours(publish_day, serve):
    publish_day()
    client = serve()

    user = client.get("/v1/users/u1").json()

    assert (user["description"], user["source"], user["day"], user["num_interactions"]) == (
        "likes tests",
        "facts",
        DAY,
        2,
    )
    assert [each["title"] for each in user["history"]] == ["Title i3", "Title i5"]
    assert [each["at"] for each in user["history"]] == ["1998-02-28T21:06:40Z", "1998-03-02T00:53:20Z"]
    assert [(each["user_id"], each["similarity"]) for each in user["neighbours"]] == [("u2", 0.5)]
    assert client.get("/v1/users/u1/similar").json()["users"] == user["neighbours"]


def test_similar_users_carry_their_facts(publish_day, serve, users, user):
    publish_day()
    users.users["u1"] = replace(
        user, neighbour_ids=["u2", "erased"], neighbour_similarities=np.float32([0.5, 0.25]), earlier_item_ids=["i1"]
    )
    users.users["u2"] = replace(user, user_id="u2", sequence=["i5", "i1"], num_interactions=7, description="likes both")

    near = serve().get("/v1/users/u1/similar").json()["users"]

    assert near == [
        {
            "user_id": "u2",
            "similarity": 0.5,
            "description": "likes both",
            "num_interactions": 7,
            "num_shared_items": 2,
        },
        {
            "user_id": "erased",
            "similarity": 0.25,
            "description": None,
            "num_interactions": None,
            "num_shared_items": None,
        },
    ]


def test_a_failed_read_of_similar_users_is_named_and_counted(publish_day, serve, users):
    publish_day()
    client = serve()
    users.users["u2"] = StoreError("an online row lacks description")

    for path in ("/v1/users/u1", "/v1/users/u1/similar"):
        answer = client.get(path).json()
        (near,) = answer.get("users") or answer["neighbours"]
        assert (near["num_interactions"], answer["fallback"], answer["store_problem"]) == (None, None, "store_error")
    assert 'grasp_store_problems_total{problem="store_error"} 2.0' in client.get("/metrics").text


def test_reasons_name_shared_categories(publish_day, serve, users, user):
    publish_day()
    client = serve()
    client.app.state.service.recommender.loaded().in_force.ranker._least_similarity = -1.0  # type: ignore[attr-defined]

    answer = ask(client, k=8)

    comedies = [each for each in answer["items"] if each["item_id"] in ("i1", "i7") and each["evidence"]]
    assert comedies
    for each in comedies:
        assert each["evidence"][0]["shared_categories"] == ["Comedy", "War"]
        assert each["reason"].endswith(" in your history (Comedy, War)")


def test_an_unknown_user_is_404_and_a_failed_lookup_503(publish_day, serve, users):
    publish_day()
    client = serve()

    assert client.get("/v1/users/stranger").status_code == 404
    users.is_broken = True
    assert client.get("/v1/users/stranger/similar").status_code == 503
    assert client.get("/v1/users/u1").status_code == 503
    users.is_broken = False
    assert client.get("/v1/users/u1").json()["fallback"] is None
    users.is_broken = True
    assert client.get("/v1/users/u1").json()["fallback"] == "last_good"


def test_a_users_features_are_the_stores_row(publish_day, serve, users, user):
    release_id = publish_day()
    client = serve()

    response = client.get("/v1/users/u1/features")

    answer = UserFeaturesResponse.model_validate_json(response.content)
    for name, value in vars(user).items():
        given = getattr(answer, name)
        assert np.array_equal(np.float32(given), value) if isinstance(value, np.ndarray) else given == value
    assert (answer.release, answer.fallback, answer.store_problem) == (release_id, None, None)
    assert answer.request_id == response.headers["X-Request-ID"]
    assert client.get("/v1/users/stranger/features").status_code == 404
    users.is_broken = True
    assert client.get("/v1/users/u1/features").json()["fallback"] == "last_good"


@pytest.mark.parametrize("tokens", ["", "serve-0123456789abcdef"])
def test_answers_about_one_user_and_probes_do_not_wait_for_busy_threads(publish_day, settings_with, users, tokens):
    publish_day()
    access = Access.from_environment({"GRASP_TOKENS_SERVE": tokens})
    app = create_app(settings_with(lookup_timeout_ms=20_000), lambda *_: users, access=access)

    asked = [
        ("GET", "/livez", None),
        ("GET", "/readyz", None),
        ("GET", "/v1/users/u1/features", None),
        ("POST", "/v1/recommendations", {"user_id": "u1"}),
        ("POST", "/v1/scores", {"user_id": "u1", "item_ids": ["i1"]}),
    ]

    async def ask_while_every_thread_is_busy() -> list[int]:
        transport, headers = httpx.ASGITransport(app), {"Authorization": f"Bearer {tokens}"} if tokens else {}
        asks = httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)
        threads = anyio.to_thread.current_default_thread_limiter()
        threads.total_tokens = 1
        async with app.router.lifespan_context(app), asks, threads, asyncio.timeout(30):
            return [(await asks.request(method, path, json=body)).status_code for method, path, body in asked]

    assert asyncio.run(ask_while_every_thread_is_busy()) == [200] * len(asked)


def test_large_answers_are_written_outside_the_event_loop(publish_day, serve, monkeypatch):
    publish_day()
    client, written = serve(), {}

    def render(self: ModelResponse, content: BaseModel) -> bytes:
        written[type(content).__name__] = threading.current_thread().name
        return render_json(self, content)

    render_json = ModelResponse.render
    monkeypatch.setattr(ModelResponse, "render", render)
    ask(client)
    assert client.post("/v1/recommendations/batch", json={"user_ids": ["u1"]}).status_code == 200
    assert client.get("/v1/items/i1/similar").status_code == 200

    event_loop = written.pop("RecommendationResponse")
    assert written.keys() == {"BatchResponse", "SimilarResponse"}
    assert event_loop not in written.values()


def test_comparisons_with_all_items_run_two_at_a_time_and_delay_nobody_else(publish_day, settings, users):
    publish_day()
    app = create_app(settings, lambda *_: users)
    running, most = [], []

    def similar_items(item_id: str, *_: object) -> SimilarResponse:
        running.append(item_id)
        most.append(len(running))
        time.sleep(0.1)
        running.remove(item_id)
        return SimilarResponse(request_id="r", item_id=item_id, title="", items=[], release="")

    app.state.service.profiles.similar_items = similar_items

    async def ask_for_many() -> list[int]:
        asks = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
        async with app.router.lifespan_context(app), asks:
            scans = [asyncio.create_task(asks.get(f"/v1/items/i{number}/similar")) for number in range(6)]
            other = await asks.get("/v1/items/i1")
            assert not all(scan.done() for scan in scans)
            return [other.status_code, *[(await scan).status_code for scan in scans]]

    assert asyncio.run(ask_for_many()) == [200] * 7
    assert max(most) == NUM_SCANS


@pytest.mark.parametrize(
    ("given", "is_kept"), [("visit-0001.a", True), ("short", False), ("x" * 65, False), ("a b c d e f", False)]
)
def test_a_well_formed_request_id_is_kept_in_body_and_header(publish_day, serve, given, is_kept):
    publish_day()

    response = serve().get("/v1/items/nobody", headers={"X-Request-ID": given})

    assert response.headers["X-Request-ID"] == response.json()["request_id"]
    assert (response.json()["request_id"] == given) == is_kept


def test_a_body_that_does_not_arrive_is_a_408():
    async def nothing() -> dict:
        await asyncio.sleep(60)
        return {}

    async def app(scope, receive, send) -> None:
        await receive()

    with pytest.raises(HTTPException) as error:
        asyncio.run(BodyLimit(app, max_seconds=0.05)({"type": "http", "path": "/"}, nothing, None))  # type: ignore[arg-type]
    assert error.value.status_code == 408


def test_a_bug_is_a_500_with_the_request_id_and_no_detail(publish_day, serve, users):
    publish_day()
    client = serve()
    client._transport.raise_server_exceptions = False  # type: ignore[attr-defined]
    users.users = None  # type: ignore[assignment]

    response = client.get("/v1/users/u1", headers={"X-Request-ID": "visit-0001"})

    assert response.status_code == 500
    assert response.json() == {"detail": "internal error", "request_id": "visit-0001"}
    assert response.headers["X-Request-ID"] == "visit-0001"


@pytest.mark.parametrize(("argument", "code", "said"), [("--help", 0, "GRASP_PORT"), ("--port=9", 2, "unrecognized")])
def test_the_command_shows_help_and_refuses_unknown_arguments(monkeypatch, capsys, argument, code, said):
    monkeypatch.setattr("sys.argv", ["app", argument])
    monkeypatch.setenv("GRASP_HOME", "")  # without the help this is what it ends with

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == code
    assert said in "".join(capsys.readouterr())


def test_a_server_that_finds_its_port_taken_ends_with_one_line(monkeypatch, settings):
    """Two servers that are started together both pass the check of `prepare`."""
    with listen("GRASP_PORT", "127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        monkeypatch.setattr("sys.argv", ["app"])
        for name, value in settings.variables().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GRASP_PORT", str(port))

        with pytest.raises(SystemExit) as ended:
            main()

    assert ended.value.code == f"error: GRASP_PORT: 127.0.0.1:{port} cannot be used: Address already in use"
