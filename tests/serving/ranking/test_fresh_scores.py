"""What takers and votes add to the answers of a release, and the reasons they give."""

# ruff: noqa: N803 - shape suffixes

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from grasp.manifest import manifest_in_force, release_folder
from serving.ranking.reasons import NOT_FRESH, OF_VOTES
from serving.ranking.release_ranker import ReleaseRanker, load_release_ranker
from serving.ranking.votes import UserVotes
from training.model.artefact import load_ranker
from training.model.enhancers.id_embeddings import UserVectors

DAY, NEXT_DAY, DAY_BEFORE = "1998-03-01", "1998-03-02", "1998-02-28"
TAKERS = {"i1": (1, 1, 2, 2, 2), "i4": (0, 3, 5, 9, 9), "i7": (4, 4, 4, 5, 6), "i3": (0, 0, 0, 0, 1)}
WEIGHTS = {"takers_weights": (0.1, 0.2, 0.4, 0.0, -0.1), "vote_weight": 0.5}
STATE_VOTES = {"vote_weight": 0.5, "state_vote_weight": 1.0}
TAKEN = ["i5", "i3"]  # by the user, newest first


def voting(item: str, users: Sequence[str] = "abc", before: Sequence[str] = TAKEN) -> list[tuple[str, str, list[str]]]:
    """Users who took an item after others, newest first: by default after those of the user who asks."""
    return [(user, item, list(before)) for user in users]


@pytest.fixture
def load(settings, publish_day) -> Callable[..., ReleaseRanker]:
    """`load(takers=..., vote_weight=1)`: the release of the day with an untrained model."""

    def load(day: str = DAY, online_moments: bool = True, **given: object) -> ReleaseRanker:
        publish_day(day, **given)
        manifest = manifest_in_force(settings.releases)
        return load_release_ranker(release_folder(settings.releases, manifest), manifest, None, online_moments)

    return load


@pytest.fixture
def user(user):
    return replace(
        user,
        neighbour_item_ids=["i8", "gone", "i2", "i5"],
        neighbour_item_weights=np.array([0.3, 0.2, 0.1, 0.05], np.float32),
    )


def ids(recommendations: list) -> list[str]:
    return [each.item_id for each in recommendations]


def own_score(ranker: ReleaseRanker, user) -> np.ndarray:
    """The scores without fresh features: those of the state alone, because the tiny model has no kernel."""
    encoded = ranker._encode(ranker.history(user, []), user)
    return (ranker._candidates.candidate_ND @ encoded.state_D).numpy()


def of_votes(ranker: ReleaseRanker, weight: float) -> float:
    return float(ranker.model.fresh.of_votes(torch.tensor([weight])))


def of_state_votes(ranker: ReleaseRanker, weight: float) -> float:
    return float(ranker.model.fresh.of_state_votes(torch.tensor([weight])))


def votes_of(ranker: ReleaseRanker, user, recent_item_ids: Sequence[str] = ()) -> UserVotes:
    return ranker.state_of(user, recent_item_ids).votes


def test_with_zero_weights_nothing_is_added(load, settings, user):
    ranker = load(takers=TAKERS, moments=voting("i6"))

    plain = replace(user, neighbour_item_ids=[], neighbour_item_weights=np.zeros(0, np.float32))
    np.testing.assert_array_equal(ranker.score(user, [2, 4]), own_score(ranker, user))
    assert ranker.recommend(user, 8, ["i1"]) == ranker.recommend(plain, 8, ["i1"])
    assert ranker._candidates.takers_N is None
    votes = votes_of(ranker, user)
    assert (votes.source, votes.fallback, len(votes.row_V)) == (None, None, 0)
    assert not (release_folder(settings.releases, ranker.manifest) / "moments").exists()
    assert {each.fresh for each in ranker.recommend(user, 8)} == {NOT_FRESH}


def test_takers_and_stored_votes_add_what_the_model_says(load, settings, user):
    """A model that reads no state votes has no use for moments."""
    ranker = load(takers=TAKERS, moments=voting("i6"), **WEIGHTS)
    place = release_folder(settings.releases, ranker.manifest)
    fresh = load_ranker(place / "model").ranker.fresh
    expected = own_score(ranker, user)
    for item_id, counts in TAKERS.items():
        expected[ranker.items.row_of[item_id]] += float(fresh.of_takers(torch.tensor(counts)[:, None]))
    for item_id, weight in (("i8", 0.3), ("i2", 0.1), ("i5", 0.05)):
        expected[ranker.items.row_of[item_id]] += float(fresh.of_votes(torch.tensor([weight])))

    np.testing.assert_allclose(ranker.score(user, [2, 4]), expected, atol=1e-5)
    shown = {each.item_id: each.score for each in ranker.recommend(user, 8, exclude_seen=False)}
    assert [shown[each] for each in ranker.items.ids] == pytest.approx(expected.tolist(), abs=1e-5)
    assert ranker.scores_of(user, ["i8", "nonsense", "i4"]) == [
        pytest.approx(expected[7], abs=1e-5),
        None,
        pytest.approx(expected[3], abs=1e-5),
    ]
    assert expected.tolist() != pytest.approx(own_score(ranker, user).tolist(), abs=0.1)
    votes = votes_of(ranker, user, ["i1"])
    assert (votes.source, votes.fallback, votes.row_V.tolist()) == ("stored", None, [7, 1, 4])


def test_a_release_that_counts_no_takers_adds_none(load, user):
    """As one of an earlier feature definition."""
    ranker = load(takers=TAKERS, takers_weights=WEIGHTS["takers_weights"])
    earlier = ReleaseRanker(ranker.manifest, replace(ranker.items, takers_WN=None), ranker.model)

    np.testing.assert_array_equal(earlier.score(user, [2, 4]), own_score(earlier, user))
    assert [each.reason for each in earlier.popular(2)] == ["popular: 80 users", "popular: 70 users"]
    assert [each.score for each in earlier.popular(2)] == [80, 70]


@pytest.mark.parametrize("index_from", [None, 300])
def test_hot_and_voted_items_are_found_with_an_index_and_without(load, user, index_from, monkeypatch):
    item_ids = [f"i{number}" for number in range(300)]
    monkeypatch.setattr("serving.ranking.candidates.NUM_INDEX_ROWS", 60)
    plain = load(model="plain", item_ids=item_ids, width=16)
    worst = ids(plain.recommend(user, 300, exclude_seen=False))[::-1]
    takers = {worst[0]: (9, 9, 9, 9, 9), worst[1]: (4, 4, 4, 4, 4)}
    ranker = load(item_ids=item_ids, width=16, takers=takers, takers_weights=(0, 0, 30.0, 0, 0), vote_weight=10.0)
    ranker = ReleaseRanker(ranker.manifest, ranker.items, ranker.model, index_from=index_from)
    voted = replace(user, neighbour_item_ids=[worst[2]], neighbour_item_weights=np.array([1.0], np.float32))

    best = ranker.recommend(voted, 20)

    assert set(ids(best)[:3]) == {worst[0], worst[1], worst[2]}
    assert [each.score for each in best] == pytest.approx(ranker.scores_of(voted, ids(best)), abs=1e-4)


def test_withdrawn_seen_and_masked_items_are_never_shown_however_hot_or_voted(load, user):
    hot = dict.fromkeys(("i1", "i3", "i4"), (9,) * 5)
    ranker = load(takers=hot, withdrawn=("i1", "i8"), takers_weights=(9.0,) * 5, vote_weight=9.0)
    mask_N = np.array(ranker.items.ids) != "i4"

    assert set(ids(ranker.recommend(user, 8))) == {"i2", "i4", "i6", "i7"}
    assert set(ids(ranker.recommend(user, 8, mask_N=mask_N))) == {"i2", "i6", "i7"}
    assert set(ids(ranker.popular(8))) == set(ranker.items.ids) - {"i1", "i8"}


def test_a_hot_title_with_several_ids_is_shown_once(load, user):
    hot = {"i1": (9,) * 5, "i2": (8,) * 5}
    ranker = load(takers=hot, titles={"i1": "Twins", "i2": "Twins"}, takers_weights=(9.0,) * 5)

    assert ids(ranker.recommend(user, 8)).count("i1") == 1 and "i2" not in ids(ranker.recommend(user, 8))
    assert ids(ranker.popular(8))[0] == "i1" and "i2" not in ids(ranker.popular(8))


def test_moments_that_the_model_finds_similar_vote_instead_of_the_stored_ones(load, user):
    ranker = load(moments=[*voting("i6", "abcd"), *voting("i7", "xyz"), *voting("i2", "pq")], **STATE_VOTES)

    votes = votes_of(ranker, user)

    assert (votes.source, votes.fallback, votes.row_V.tolist()) == ("moments", None, [5, 6])
    assert votes.weight_V.tolist() == pytest.approx([4, 3], abs=0.1)  # sums: each moment is the user's own, but rounded
    expected = own_score(ranker, user)
    expected[[5, 6]] += [of_state_votes(ranker, weight) for weight in votes.weight_V]
    np.testing.assert_allclose(ranker.score(user, [2, 4]), expected, atol=1e-4)
    shown = {each.item_id: each.score for each in ranker.recommend(user, 8, exclude_seen=False)}
    assert [shown[each] for each in ranker.items.ids] == pytest.approx(expected.tolist(), abs=1e-4)
    assert ranker.scores_of(user, ["i6", "i8"]) == pytest.approx(expected[[5, 7]].tolist(), abs=1e-4)


def test_recent_items_are_a_part_of_what_is_compared(load, user):
    ranker = load(moments=[*voting("i6"), *voting("i7", before=["i1", *TAKEN])], **STATE_VOTES)

    without, with_recent = votes_of(ranker, user), votes_of(ranker, user, ["i1"])

    assert (without.row_V[0], with_recent.row_V[0]) == (5, 6)
    assert votes_of(ranker, user, ["an unknown item"]).row_V.tolist() == without.row_V.tolist()
    encoded = ranker._encode(ranker.history(user, ["i1"]), user)
    own = (ranker._candidates.candidate_ND @ encoded.state_D).numpy()
    (score,) = ranker.scores_of(user, ["i7"], ["i1"])
    assert score == pytest.approx(own[6] + of_state_votes(ranker, with_recent.weight_V[0]), abs=1e-4)


def test_only_items_that_the_release_has_make_a_moment(load, user):
    """A moment without one of them is left out; one with some of them has the state after these."""
    unknown, some = voting("i7", before=["gone", "i99"]), voting("i6", before=["gone", "i5", "i99", "i3"])
    ranker = load(moments=[*unknown, *some], **STATE_VOTES)

    assert len(ranker._moments) == 3
    votes = votes_of(ranker, user)
    assert (votes.row_V.tolist(), votes.weight_V[0]) == ([5], pytest.approx(3, abs=0.1))


def test_moments_of_the_user_and_of_too_few_users_have_no_votes(load, user):
    moments = [*voting("i6", ("u1", "a", "b")), *voting("i7")]

    assert votes_of(load(moments=moments, **STATE_VOTES), user).row_V.tolist() == [6]


def test_the_model_is_asked_once_for_an_answer(load, user, monkeypatch):
    ranker = load(moments=voting("i6"), **STATE_VOTES)
    asked: list[int] = []
    views = ranker._frozen.views

    def counted(items_T: torch.Tensor, users: UserVectors) -> torch.Tensor:
        asked.append(len(items_T))
        return views(items_T, users)

    monkeypatch.setattr(ranker._frozen, "views", counted)
    state = ranker.state_of(user, ["i1"], is_explained=True)
    explained = ranker.recommend(user, 8, ["i1"], state=state)
    scores = ranker.scores_of(user, ["i6"], ["i1"], state=state)

    assert asked == [3]
    assert explained == ranker.recommend(user, 8, ["i1"])
    assert scores == pytest.approx(ranker.scores_of(user, ["i6"], ["i1"]), abs=1e-5)


@pytest.mark.parametrize("given", [{"online_moments": False, "moments": voting("i6")}, {}, {"moments": []}])
def test_without_moments_the_stored_votes_count(load, user, given):
    votes = votes_of(load(**given, **STATE_VOTES), user, ["i1"])

    assert (votes.source, votes.fallback, votes.row_V.tolist()) == ("stored", "no_moments", [7, 1, 4])


def test_without_moments_a_model_that_reads_no_stored_votes_has_none(load, user):
    ranker = load(state_vote_weight=1.0)

    votes = votes_of(ranker, user)
    assert (votes.source, votes.fallback, len(votes.row_V)) == (None, "no_moments", 0)
    np.testing.assert_array_equal(ranker.score(user, [2, 4]), own_score(ranker, user))


def test_a_search_that_fails_is_named_and_the_stored_votes_count(load, user, caplog):
    class BrokenMoments:
        def votes(self, user_id: str, state_D: np.ndarray) -> None:
            raise MemoryError

    ranker = load(moments=voting("i6"), **STATE_VOTES)
    ranker._moments = BrokenMoments()

    votes = votes_of(ranker, user)
    assert (votes.source, votes.fallback, votes.row_V.tolist()) == ("stored", "moments_error", [7, 1, 4])
    expected = own_score(ranker, user)[7] + of_votes(ranker, 0.3)
    assert ranker.scores_of(user, ["i8"]) == [pytest.approx(expected, abs=1e-4)]
    assert "could not be searched" in caplog.text and user.user_id not in caplog.text


def test_what_happens_after_the_day_changes_no_answer(load, settings, write_day, user):
    given = {"takers": TAKERS, "moments": voting("i6"), **WEIGHTS, "state_vote_weight": 1.0}
    before = load(**given)
    answers = [before.recommend(user, 8, recent) for recent in ([], ["i1"])]

    write_day(settings, NEXT_DAY, takers={"i8": (99,) * 5}, moments=voting("i2", "abcdefgh"))
    after = load(**given)

    assert after.manifest == before.manifest
    assert [after.recommend(user, 8, recent) for recent in ([], ["i1"])] == answers
    later = load(NEXT_DAY, **given | {"moments": voting("i2", "abcdefgh")})
    assert votes_of(later, user).row_V.tolist() == [1, 5]  # the day before votes too


def test_the_search_of_moments_is_timed(load, user):
    from contextlib import nullcontext

    told: list[str] = []
    ranker = load(moments=voting("i6"), **STATE_VOTES)

    def stage(name: str):
        told.append(name)
        return nullcontext()

    ranker.stage = stage
    ranker.recommend(user, 3)
    assert told == ["attention", "backbone", "moments", "scoring", "post"]


def test_votes_are_a_reason_where_they_lift_an_item(load, user):
    ranker = load(vote_weight=50.0)

    best = {each.item_id: each for each in ranker.recommend(user, 6)}

    assert best["i8"].fresh.votes == pytest.approx(of_votes(ranker, 0.3), abs=1e-4)
    assert OF_VOTES in best["i8"].reason and OF_VOTES in best["i2"].reason
    assert all(each.fresh.votes is None for item_id, each in best.items() if item_id not in ("i8", "i2"))
    for place, item_id in enumerate(list(best)[:2]):
        lost = replace(user, neighbour_item_ids=[], neighbour_item_weights=np.zeros(0, np.float32))
        without = dict(zip(ranker.items.ids, ranker.score(lost, [2, 4]), strict=True))
        assert without[item_id] < list(best.values())[place + 1].score


def test_the_last_item_of_an_answer_is_held_against_the_next_one(load, user):
    best = load(vote_weight=50.0).recommend(user, 2)

    assert ids(best) == ["i8", "i2"]
    assert all(each.fresh.votes for each in best)


def test_votes_that_move_nothing_are_no_reason(load, user):
    ranker = load(vote_weight=1e-6)

    assert {each.fresh.votes for each in ranker.recommend(user, 5)} == {None}


@pytest.mark.parametrize(("min_voters", "is_named"), [(1, False), (2, False), (3, True), (5, True)])
def test_votes_that_may_rest_on_fewer_than_three_people_are_no_reason(
    settings_with, write_day, make_model, user, min_voters, is_named
):
    from serving.releases.publication import choose_model, publish

    settings = settings_with(moment_min_voters=min_voters)
    write_day(settings, DAY, moments=[*voting("i6", "abcde"), *voting("i7", "a")])
    for read, voted in (("vote_weight", "i8"), ("state_vote_weight", "i6")):
        manifest = publish(settings, DAY, choose_model(settings, make_model(settings, **{read: 50.0}), None))
        ranker = load_release_ranker(release_folder(settings.releases, manifest), manifest)

        best = {each.item_id: each for each in ranker.recommend(user, 5)}
        assert (best[voted].fresh.votes is not None) == is_named
        assert (OF_VOTES in best[voted].reason) == is_named
    assert sorted(votes_of(ranker, user).row_V) == ([5, 6] if min_voters == 1 else [5])


def test_an_item_that_many_took_this_week_is_said_to_be_taken_often(load, user):
    ranker = load(takers={"i4": (0, 3, 5, 9, 9), "i7": (2, 2, 2, 5, 6)}, takers_weights=(0, 0, 0.5, 0, 0))

    best = {each.item_id: each for each in ranker.recommend(user, 6)}

    assert best["i4"].fresh.takers_7d == 5
    assert "taken often this week, by 5 people" in best["i4"].reason
    assert all(each.fresh.takers_7d is None for item_id, each in best.items() if item_id != "i4")


@pytest.mark.parametrize("weight", [0.0, -0.5])
def test_takers_that_do_not_raise_the_score_are_no_reason(load, user, weight):
    ranker = load(takers={"i4": (0, 3, 5, 9, 9)}, takers_weights=(0, 0, weight, 0, 0))

    assert {each.fresh.takers_7d for each in ranker.recommend(user, 8)} == {None}


def test_popular_items_are_those_of_the_last_days(load):
    ranker = load(model=None, takers=TAKERS)

    best = ranker.popular(6)

    assert ids(best) == ["i4", "i7", "i1", "i3", "i2", "i5"]  # then by 30 days, then by all users
    assert [each.reason for each in best[:3]] == [
        "taken by 5 people in the last 7 days",
        "taken by 4 people in the last 7 days",
        "popular: 80 users",
    ]
    assert [int(each.score) for each in best] == [5, 4, 2, 0, 0, 0]
    scores = [each.score for each in best]
    assert scores == sorted(set(scores), reverse=True)


def test_popular_items_of_some_rows_come_first(load):
    ranker = load(model=None, takers=TAKERS)

    assert ids(ranker.popular(4, first_R=[1, 3, 1])) == ["i4", "i2", "i7", "i1"]
    assert ids(ranker.popular(2, excluded=[3], first_R=[1, 3])) == ["i2", "i7"]
    mask_N = np.isin(ranker.items.ids, ["i6", "i7"])
    assert ids(ranker.popular(4, mask_N=mask_N, first_R=[1, 5])) == ["i6", "i7"]
