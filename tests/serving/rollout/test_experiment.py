"""Experiments: buckets of users, the release that answers each user, start and stop."""

import json
import threading

import pytest

from serving.releases import publication
from serving.releases.buckets import EXPERIMENT_FILE, Experiment, read_experiment
from serving.releases.in_force import releases_on_disk
from serving.releases.manage import rollback
from serving.rollout.experiment import ExperimentError, start, stop

DAY, NEXT_DAY = "1998-03-01", "1998-03-02"
MARKS = ("Old", "New")  # what every title of a release begins with
PEOPLE = [f"user {number}" for number in range(4000)]
KNOWN_CANDIDATES = [0, 2, 6, 7, 12, 14, 17]  # of experiment a at 0.3: a change would move users between buckets


def test_buckets_are_stable_and_have_the_requested_share():
    buckets = [Experiment("a", "r", 0.3).bucket(user) for user in PEOPLE]

    assert buckets == [Experiment("a", "r", 0.3).bucket(user) for user in PEOPLE]
    assert buckets.count("candidate") / len(PEOPLE) == pytest.approx(0.3, abs=0.03)


def test_known_users_keep_their_buckets_in_every_version_of_this_code():
    candidates = [number for number in range(20) if Experiment("a", "r", 0.3).bucket(f"u{number}") == "candidate"]

    assert candidates == KNOWN_CANDIDATES


def test_a_larger_share_only_adds_users_to_the_candidate_bucket():
    small, large = Experiment("a", "r", 0.1), Experiment("a", "r", 0.5)

    assert all(large.bucket(user) == "candidate" for user in PEOPLE if small.bucket(user) == "candidate")


def test_another_experiment_divides_the_users_independently():
    both = sum({Experiment(name, "r", 0.5).bucket(user) for name in "ab"} == {"candidate"} for user in PEOPLE)

    assert both / len(PEOPLE) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("share", "bucket"), [(0, "control"), (1, "candidate")])
def test_shares_of_0_and_1_are_exact(share, bucket):
    assert {Experiment("a", "r", share).bucket(user) for user in PEOPLE} == {bucket}


@pytest.fixture
def two_releases(publish_day, settings):
    """The ids of the release in force and of a later one that was rolled back from."""
    first = publish_day(DAY, mark=MARKS[0])
    second = publish_day(NEXT_DAY, model="better", mark=MARKS[1])
    rollback(settings, first)
    return first, second


def ask(client, user_id="u1", **more):
    response = client.post("/v1/recommendations", json={"user_id": user_id, **more})
    assert response.status_code == 200, response.text
    return response.json()


def check(client):
    client.app.state.service.check()


def test_each_user_is_answered_by_the_release_of_their_bucket(two_releases, serve, settings):
    first, second = two_releases
    start(settings, "new-model", second, 0.5)
    client = serve()

    answers = [ask(client, user, k=1) for user in PEOPLE[:40]]

    seen = {(each["experiment"], each["bucket"], each["release"], each["model"]) for each in answers}
    assert seen == {
        ("new-model", "control", first, "tiny-ranker"),
        ("new-model", "candidate", second, "better"),
    }
    for each in answers:
        assert each["bucket"] == Experiment("new-model", second, 0.5).bucket(each["user_id"])


def test_a_release_with_share_0_can_only_be_requested_by_name(two_releases, serve, settings):
    first, second = two_releases
    start(settings, "compare", second, 0)
    client = serve()

    assert {ask(client, user, k=1)["release"] for user in PEOPLE[:20]} == {first}
    named = ask(client, release=second)
    assert (named["release"], named["experiment"], named["bucket"]) == (second, None, None)
    response = client.post("/v1/recommendations", json={"user_id": "u1", "release": "unheard of"})
    assert response.status_code == 404


def test_running_servers_follow_the_start_and_end_of_an_experiment(two_releases, serve, settings):
    first, second = two_releases
    client = serve()
    assert ask(client)["bucket"] is None
    in_force = client.app.state.service.follower.loaded.in_force

    start(settings, "new-model", second, 1)
    check(client)
    assert ask(client)["release"] == second
    listed = client.get("/v1/releases").json()
    assert [(each["release"], each["role"]) for each in listed["releases"]] == [
        (first, "in_force"),
        (second, "candidate"),
    ]
    assert listed["experiment"] == {"name": "new-model", "release": second, "share": 1}

    stop(settings)
    check(client)
    assert (ask(client)["release"], ask(client)["bucket"]) == (first, None)
    assert client.app.state.service.follower.loaded.in_force is in_force  # what is held is not loaded again


@pytest.mark.parametrize("content", ["{", "{}", '{"name": "a", "release_id": "gone", "share": 0.5}'])
def test_an_experiment_that_cannot_run_sets_no_bucket_and_gives_the_reason(two_releases, serve, settings, content):
    (settings.releases / EXPERIMENT_FILE).write_text(content)
    client = serve()

    assert (ask(client)["release"], ask(client)["bucket"]) == (two_releases[0], None)
    assert client.get("/readyz").json()["experiment_problem"].startswith("the experiment does not run: ")


def test_an_experiment_ends_when_its_release_is_put_in_force(two_releases, serve, settings):
    start(settings, "new-model", two_releases[1], 0.5)
    rollback(settings, two_releases[1])

    client = serve()

    assert ask(client)["bucket"] is None
    assert "is the release in force" in client.get("/v1/releases").json()["experiment_problem"]


def test_no_request_is_dropped_or_mixed_while_releases_and_experiments_change(two_releases, serve, settings):
    first, second = two_releases
    model_of, mark_of = {first: "tiny-ranker", second: "better"}, {first: MARKS[0], second: MARKS[1]}
    client = serve()
    answers, is_over, has_answered = [], threading.Event(), threading.Event()

    def keep_asking() -> None:
        while not is_over.is_set():
            body = {"user_ids": ["u1", "stranger", "somebody"], "k": 2}
            answers.append(client.post("/v1/recommendations/batch", json=body))
            has_answered.set()

    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    for change in (
        lambda: start(settings, "one", second, 0.5),
        lambda: stop(settings),
        lambda: rollback(settings, second),
        lambda: start(settings, "two", first, 0.5),
        lambda: stop(settings),
        lambda: rollback(settings, first),
    ):
        change()
        check(client)
        for _ in range(len(threads) + 1):  # an answer of each may have been under way before
            has_answered.clear()
            assert has_answered.wait(60)
    is_over.set()
    for thread in threads:
        thread.join()

    assert {each.status_code for each in answers} == {200}
    given = [answer for response in answers for answer in response.json()["answers"]]
    assert {each["release"] for each in given} == {first, second}
    for each in given:
        assert each["model"] == model_of[each["release"]]
        assert {item["title"].split(" ")[0] for item in each["items"]} == {mark_of[each["release"]]}
        assert (each["bucket"] is None) == (each["experiment"] is None)


def test_a_file_starts_and_ends_an_experiment(two_releases, settings):
    start(settings, "new-model", two_releases[1], 0.1)
    assert json.loads((settings.releases / EXPERIMENT_FILE).read_text())["share"] == 0.1
    start(settings, "new-model", two_releases[1], 0.2)
    assert read_experiment(settings.releases) == Experiment("new-model", two_releases[1], 0.2)
    stop(settings)
    stop(settings)
    assert read_experiment(settings.releases) is None


@pytest.mark.parametrize(
    ("name", "which", "share", "message"),
    [
        ("New Model", 1, 0.5, "is not a name"),
        ("new", 0, 0.5, "is the release in force"),
        ("new", 1, 1.5, "between 0 and 1"),
        ("new", None, 0.5, "no release .*; there are "),
    ],
)
def test_an_invalid_start_is_refused(two_releases, settings, name, which, share, message):
    release_id = "gone" if which is None else two_releases[which]

    with pytest.raises((ExperimentError, ValueError, FileNotFoundError), match=message):
        start(settings, name, release_id, share)
    assert read_experiment(settings.releases) is None


def test_a_second_experiment_is_refused_while_one_runs(two_releases, settings):
    start(settings, "one", two_releases[1], 0.5)

    with pytest.raises(ExperimentError, match="one runs"):
        start(settings, "two", two_releases[1], 0.5)


def test_a_publication_keeps_the_experiments_release_however_old_it_is(
    two_releases, publish_day, settings, monkeypatch
):
    first, second = two_releases
    rollback(settings, second)
    start(settings, "old-model", first, 0.5)
    monkeypatch.setattr(publication, "NUM_KEPT", 1)

    third = publish_day("1998-03-03", model=None)
    fourth = publish_day("1998-03-04", model=None)

    assert {each.release_id for each in releases_on_disk(settings.releases)} == {first, third, fourth}
