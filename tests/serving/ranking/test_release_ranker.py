"""What the ranker of a release recommends, with reasons."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from grasp.manifest import manifest_in_force, release_folder
from grasp.settings import Settings
from serving.ranking.candidates import Candidates
from serving.ranking.items import load_items
from serving.ranking.release_ranker import ReleaseRanker, load_release_ranker
from serving.releases.publication import choose_model, publish
from training.model.artefact import load_ranker

DAY = "1998-03-01"


@pytest.fixture
def load(settings: Settings, write_day, make_model) -> Callable[..., ReleaseRanker]:
    """`load(backbone="gru4rec")`: a release with an untrained model; `load(model=False)`: one without."""

    def load(
        model: bool = True,
        item_ids: list[str] | None = None,
        size: int = 6,
        withdrawn: tuple[str, ...] = (),
        titles: dict[str, str] | None = None,
        **config: object,
    ) -> ReleaseRanker:
        write_day(
            settings, DAY, size=size, withdrawn=withdrawn, titles=titles, **({"item_ids": item_ids} if item_ids else {})
        )
        source = make_model(settings, semantic_size=size, **config) if model else None
        manifest = publish(settings, DAY, choose_model(settings, source, None))
        return load_release_ranker(release_folder(settings.releases, manifest), manifest)

    return load


def ids(recommendations: list) -> list[str]:
    return [each.item_id for each in recommendations]


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec", "bert4rec"])
@pytest.mark.parametrize("enhancer", ["none", "grasp"])
def test_served_scores_equal_offline_scores(load, settings, user, backbone, enhancer):
    ranker = load(backbone=backbone, enhancer=enhancer)
    place = release_folder(settings.releases, manifest_in_force(settings.releases))
    model = load_ranker(place / "model").ranker
    table = pq.read_table(place / "items").sort_by("item_id")
    semantic, neighbour = (
        torch.tensor(np.stack(table[name].to_pylist()), dtype=torch.float32)
        for name in ("semantic_embedding", "neighbour_embedding")
    )
    model.attach_items(semantic, neighbour)
    padded_BT = torch.tensor([[0] * 98 + [3, 5]])  # as a batch of training is padded; i3 and i5 are items 3 and 5
    vectors = [torch.from_numpy(each)[None] for each in (user.semantic_embedding, user.neighbour_embedding)]
    with torch.inference_mode():
        offline = (model.last_state(padded_BT, *vectors) @ model.candidate_vectors().T)[0, 1:]

    online = ranker.score(user, ranker.history(user, []))

    torch.testing.assert_close(torch.from_numpy(online), offline, rtol=0, atol=1e-5)
    best = ranker.recommend(user, 8, exclude_seen=False)
    expected = sorted((float(score) for score in online), reverse=True)
    assert [each.score for each in best] == pytest.approx(expected, abs=1e-5)


def test_seen_and_recent_items_are_left_out_only_when_asked(load, user):
    ranker = load()

    assert set(ids(ranker.recommend(user, 8, ["i1"]))) == {"i2", "i4", "i6", "i7", "i8"}
    assert len(ranker.recommend(user, 8, ["i1"], exclude_seen=False)) == 8


@pytest.mark.parametrize("model", [True, False])
def test_a_withdrawn_item_stays_in_histories_and_is_never_recommended(load, user, model):
    whole, ranker = load(model=model), load(model=model, withdrawn=("i1", "i3"))

    assert set(ids(ranker.recommend(user, 8, exclude_seen=False))) == {"i2", "i4", "i5", "i6", "i7", "i8"}
    assert ids(ranker.recommend(None, 2)) == ["i2", "i4"]
    assert {ranker.items.ids[row] for row, _ in ranker.items.similar("i4", 8)} == {"i2", "i5", "i6", "i7", "i8"}
    if model:  # the user's history, i3 and i5, says as much as before
        np.testing.assert_array_equal(
            ranker.score(user, ranker.history(user, [])), whole.score(user, whole.history(user, []))
        )


def test_withdrawn_items_are_marked_once_and_not_listed_for_every_request(load, user):
    """They stay known for ever, so a list of them would grow longer than the catalogue."""

    class SeenCandidates(Candidates):
        def best(self, k, state_D, added, hidden_rows, shown_N):  # noqa: N803
            hidden.append(list(hidden_rows))
            return super().best(k, state_D, added, hidden_rows, shown_N)

    hidden: list[list[int]] = []
    ranker = load(withdrawn=("i1", "i4"))
    ranker._candidates = SeenCandidates(ranker._candidates.candidate_ND)

    assert set(ids(ranker.recommend(user, 8))) == {"i2", "i6", "i7", "i8"}
    shown_N = np.isin(ranker.items.ids, ["i1", "i3", "i8"])
    assert ids(ranker.recommend(user, 8, mask_N=shown_N)) == ["i8"]
    assert hidden == [[2, 4]] * len(hidden)


def test_recent_items_follow_the_sequence_and_change_the_scores(load, user):
    ranker = load()

    assert ranker.history(user, ["i1", "nonsense"]) == [2, 4, 0]
    with_recent = {each.item_id: each.score for each in ranker.recommend(user, 8, ["i1"])}
    without = {each.item_id: each.score for each in ranker.recommend(user, 8)}
    assert with_recent["i2"] != without["i2"]


def test_only_the_last_hundred_items_count(load, user):
    ranker = load()
    long = replace(user, sequence=["i1"] * 50 + ["i2"] * 100)

    assert ranker.history(long, []) == [1] * 100


@pytest.mark.parametrize("model", [True, False])
def test_seen_items_beyond_the_models_length_are_excluded_too(load, user, model):
    """A sequence of a hundred items and a recent one: not even the oldest is recommended again."""
    long = replace(user, sequence=["i1", *["i2"] * 99])

    assert set(ids(load(model=model).recommend(long, 8, ["i3"]))) == {"i4", "i5", "i6", "i7", "i8"}


@pytest.mark.parametrize("model", [True, False])
def test_items_from_before_the_sequence_are_not_recommended_again_but_do_not_count(load, user, model):
    ranker, long = load(model=model), replace(user, earlier_item_ids=["i1", "gone", "i8"])

    assert set(ids(ranker.recommend(long, 8))) == {"i2", "i4", "i6", "i7"}
    again = ranker.recommend(long, 8, exclude_seen=False)
    assert [(each.item_id, each.score) for each in again] == [
        (each.item_id, each.score) for each in ranker.recommend(user, 8, exclude_seen=False)
    ]


@pytest.mark.parametrize("model", [True, False])
def test_a_title_with_several_ids_is_shown_once_and_not_to_a_user_who_took_one_of_them(load, user, model):
    ranker = load(
        model=model, titles={"i1": "Twins", "i2": "twins ", "i4": "Twins", "i5": "Solo", "i8": "solo", "i6": ""}
    )

    best = ids(ranker.recommend(user, 8))  # took i5

    assert len({"i1", "i2", "i4"} & set(best)) == 1
    assert {"i6", "i7"} < set(best) and len(best) == 3
    assert ids(ranker.recommend(user, 2)) == best[:2]
    near = [ranker.items.ids[row] for row, _ in ranker.items.similar("i1", 8)]
    assert not {"i2", "i4"} & set(near) and len({"i5", "i8"} & set(near)) == 1


def test_reasons_name_only_items_that_the_model_read(load, user):
    ranker = load(max_length=2)

    best = ranker.recommend(replace(user, sequence=["i1", "i2", "i3"]), 5)

    assert {each.item_id for one in best for each in one.evidence} <= {"i2", "i3"}


def test_a_reason_names_the_nearest_item_of_the_history_and_whether_it_is_a_neighbour(load, user):
    ranker = load()
    row = ranker.items.row_of["i4"]
    ranker.items.semantic_NS[ranker.items.row_of["i3"]] = ranker.items.semantic_NS[row]

    best = {each.item_id: each for each in ranker.recommend(user, 8)}["i4"]

    assert best.reason.startswith("similar to Title i3")
    assert best.evidence[0].similarity == pytest.approx(1.0)
    assert best.evidence[0].is_neighbour  # write_day makes i3 the neighbour of i4


def test_an_item_less_like_the_history_than_most_pairs_of_items_has_no_evidence(load, user):
    ranker = load()
    vectors, rows = ranker.items.semantic_NS, ranker.rows_of(["i3", "i5"])
    own, other = vectors[ranker.items.row_of["i4"]], vectors[ranker.items.row_of["i1"]]
    across = other - other @ own * own
    least = ranker._least_similarity
    for cosine, is_named in ((least + 0.01, True), (least - 0.01, False)):
        vectors[rows] = cosine * own + (1 - cosine**2) ** 0.5 * across / np.linalg.norm(across)

        best = {each.item_id: each for each in ranker.recommend(user, 8)}["i4"]

        assert bool(best.evidence) == is_named
        assert best.reason.startswith("similar to") == is_named
    assert best.reason == "ranked by your whole history"


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "gru4rec"])
def test_without_an_estimate_of_what_an_item_adds_no_reason_is_claimed(load, user, backbone):
    ranker = load(backbone=backbone)
    ranker._least_similarity = -1.0

    found = [bool(each.evidence) for each in ranker.recommend(user, 8)]

    assert any(found) == (backbone != "gru4rec")


def test_a_reason_names_the_categories_that_both_items_have(load, user):
    ranker = load(model=True)
    ranker._least_similarity = -1.0
    has = {"i3": ["War", "Drama"], "i5": ["Comedy"], "i4": ["Comedy", "Drama", "Crime"]}
    ranker.categories_of = lambda row: has.get(ranker.items.ids[row], [])

    best = {each.item_id: each for each in ranker.recommend(user, 8)}

    shared = {each.item_id: each.shared_categories for each in best["i4"].evidence}
    assert shared and shared.items() <= {"i3": ["Drama"], "i5": ["Comedy"]}.items()
    named = ", ".join(category for categories in shared.values() for category in categories)
    assert best["i4"].reason.endswith(f" in your history ({named})")
    others = [each.reason for each in best.values() if each.evidence and each.item_id != "i4"]
    assert others and all(reason.endswith(" in your history") for reason in others)


def test_a_popular_release_counts_users(load, user):
    ranker = load(model=False)

    best = ranker.recommend(user, 2)

    assert [(each.item_id, each.reason) for each in best] == [("i1", "popular: 80 users"), ("i2", "popular: 70 users")]


def test_an_unknown_user_gets_popular_items_without_the_recent_ones(load):
    assert ids(load().recommend(None, 2, ["i1"])) == ["i2", "i3"]


def test_a_k_above_the_catalogue_returns_all_items(load, user):
    assert len(load().recommend(user, 100)) == 6


def test_an_item_newer_than_the_model_can_be_recommended(load, settings, user):
    ranker = load(item_ids=[f"i{number}" for number in range(1, 10)])

    assert ranker.items.ids[-1] == "i9"
    assert "i9" in ids(ranker.recommend(user, 9))


def test_an_item_withdrawn_from_the_catalogue_keeps_the_others_in_place(load, user):
    ranker = load(item_ids=["i1", "i3", "i4", "i5"])

    best = ranker.recommend(user, 10)

    assert sorted(ids(best)) == ["i1", "i4"]
    assert ranker.items.title(ranker.items.row_of["i4"]) == "Title i4"
    assert ids(ranker.popular(10)) == ["i1", "i3", "i4", "i5"]


def test_similar_items_are_ordered_by_cosine_without_the_item_itself(load):
    ranker = load(model=False)
    vectors = ranker.items.semantic_NS

    near = ranker.items.similar("i2", 3)

    expected = sorted(((float(vectors[row] @ vectors[1]), row) for row in range(8) if row != 1), reverse=True)[:3]
    assert near == [(row, pytest.approx(cosine, abs=1e-6)) for cosine, row in expected]


def test_features_of_1536_dimensions(load, user):
    ranker = load(size=1536)
    wide = np.random.default_rng(3).normal(size=1536).astype(np.float32)

    assert not ranker.fits(user)
    wide_user = replace(user, semantic_embedding=wide, neighbour_embedding=wide)
    assert ranker.fits(wide_user)
    assert len(ranker.recommend(wide_user, 3)) == 3


def test_a_model_with_weights_that_are_not_finite_is_refused(load):
    ranker = load()
    ranker.model.enhancer.item.weight.data[1] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="not finite"):
        ReleaseRanker(ranker.manifest, ranker.items, ranker.model).warm_up()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("feature_version", ["v1", "v1", "v2"], r"feature versions \['v1', 'v2'\]"),
        ("item_id", ["a", "a", "b"], "3 rows for 2 items"),
        ("semantic_embedding", [[1.0], [1.0], [1.0, 2.0]], "one width"),
        ("semantic_embedding", [[1.0], [1.0], [float("nan")]], "not finite"),
        ("semantic_embedding", [[1.0], [1.0], None], "one width"),
    ],
)
def test_a_damaged_item_side_is_named(tmp_path: Path, column, value, message):
    import pyarrow as pa

    rows = {
        "item_id": ["a", "b", "c"],
        "title": ["A", None, "C"],
        "popularity": [1, 2, 3],
        "semantic_embedding": [[1.0]] * 3,
        "neighbour_embedding": [[1.0]] * 3,
        "neighbour_ids": [["b"], ["a"], None],
        "feature_version": ["v1"] * 3,
    }
    pq.write_table(pa.table(rows), tmp_path / "part.parquet")
    assert load_items(tmp_path, "v1").title(1) == "item b"

    pq.write_table(pa.table(rows | {column: value}), tmp_path / "part.parquet")
    with pytest.raises(ValueError, match=message):
        load_items(tmp_path, "v1")


FOLDED = {
    "user_text": "mean_of_prefix_items",
    "normalise": "mean",
    "use_global": False,
    "candidate": "linear",
    "num_lenders": 3,
    "kernel_length": 5,
    "kernel_neighbours": 4,
}


@pytest.fixture
def with_kernel(load) -> ReleaseRanker:
    """A ranker like that of the default recipe, with a history kernel that changes scores."""
    ranker = load(**FOLDED)
    kernel = ranker.model.kernel
    kernel.weights_K.copy_(torch.tensor([0.5, 1.0, 2.0]))
    generator = torch.Generator().manual_seed(4)
    for kind in ("semantic", "transition", "cooccurrence"):
        kernel.get_buffer(f"{kind}_ids_NM").random_(0, 9, generator=generator)
        kernel.get_buffer(f"{kind}_values_NM").uniform_(generator=generator)
    return ReleaseRanker(ranker.manifest, ranker.items, ranker.model)


def test_scores_with_a_kernel_equal_the_models(with_kernel, user):
    history = with_kernel.history(replace(user, sequence=[f"i{number}" for number in (1, 2, 3, 5, 8, 3, 5)]), [])
    vectors = [torch.from_numpy(each)[None] for each in (user.semantic_embedding, user.neighbour_embedding)]
    with torch.inference_mode():
        offline = with_kernel.model.scores(torch.tensor([history]) + 1, *vectors)[0, 1:].numpy()

    np.testing.assert_allclose(with_kernel.score(user, history), offline, atol=1e-5)


LONG = [f"i{number}" for number in (1, 2, 4, 3, 8, 6, 5)]


def test_taking_the_items_of_a_reason_out_of_the_history_lowers_the_score_more_than_taking_others_out(
    with_kernel, user
):
    with_kernel._least_similarity = -1.0
    long = replace(user, sequence=LONG)
    history = with_kernel.history(long, [])
    whole_N = with_kernel.score(long, history)
    loss_of = {
        item_id: whole_N - with_kernel.score(long, [*history[:place], *history[place + 1 :]])
        for place, item_id in enumerate(LONG)
    }

    best = with_kernel.recommend(long, 8, exclude_seen=False)

    explained = [each for each in best if each.evidence]
    assert len(explained) >= 6
    for each in explained:
        row = with_kernel.items.row_of[each.item_id]
        loss = {item_id: loss_N[row] for item_id, loss_N in loss_of.items()}
        losses = [loss.pop(evidence.item_id) for evidence in each.evidence]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] > np.mean(list(loss.values()))
        assert each.evidence[0].score_loss == pytest.approx(losses[0], abs=0.1)


def test_what_the_newest_item_adds_is_exact(with_kernel, user):
    with_kernel._least_similarity = -1.0
    long = replace(user, sequence=LONG)
    history = with_kernel.history(long, [])
    loss_N = with_kernel.score(long, history) - with_kernel.score(long, history[:-1])

    best = with_kernel.recommend(long, 8, exclude_seen=False)

    newest = {each.item_id: one for each in best for one in each.evidence if one.item_id == LONG[-1]}
    assert newest
    for item_id, evidence in newest.items():
        assert evidence.score_loss == pytest.approx(loss_N[with_kernel.items.row_of[item_id]], abs=1e-4)


def test_scores_of_items_are_those_of_the_recommendations(with_kernel, user):
    best = with_kernel.recommend(user, 8, exclude_seen=False)

    scores = with_kernel.scores_of(user, [*ids(best), "nonsense", ids(best)[0]])

    assert scores[:-2] == pytest.approx([each.score for each in best], abs=1e-5)
    assert scores[-2] is None and scores[-1] == scores[0]


def test_the_mask_limits_what_is_shown(with_kernel, user):
    shown_N = np.isin(with_kernel.items.ids, ["i1", "i3", "i8"])

    assert set(ids(with_kernel.recommend(user, 8, mask_N=shown_N))) == {"i1", "i8"}
    assert ids(with_kernel.popular(8, [0], shown_N)) == ["i3", "i8"]


def test_each_stage_of_a_request_is_timed(with_kernel, user):
    told: list[str] = []

    def stage(name: str) -> AbstractContextManager[None]:
        told.append(name)
        return nullcontext()

    with_kernel.stage = stage
    with_kernel.recommend(user, 3)

    assert told == ["attention", "backbone", "scoring", "post"]


def test_the_kernels_time_counts_as_attention(with_kernel, user):
    within: list[str] = []
    seen: list[list[str]] = []
    kernel = with_kernel._frozen.kernel

    class SeenKernel:
        def sparse_scores(self, items_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803
            seen.append(list(within))
            return kernel.sparse_scores(items_T)

        losses = staticmethod(kernel.losses)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        within.append(name)
        yield
        within.pop()

    with_kernel._frozen.kernel, with_kernel.stage = SeenKernel(), stage
    with_kernel.recommend(user, 3)

    assert seen == [["attention"]]


def test_a_large_catalogue_with_an_index_gives_the_same_answers(load, user, caplog):
    caplog.set_level("INFO", "grasp.serving")
    ranker = load(item_ids=[f"i{number}" for number in range(300)], width=16)
    indexed = ReleaseRanker(ranker.manifest, ranker.items, ranker.model, index_from=300)

    assert "index of 300 items" in caplog.text
    expected, actual = ranker.recommend(user, 20), indexed.recommend(user, 20)
    assert ids(actual) == ids(expected)
    assert [each.score for each in actual] == pytest.approx([each.score for each in expected], abs=1e-5)


def test_scores_need_a_model_and_a_history(load, user):
    with pytest.raises(ValueError, match="no model"):
        load(model=False).scores_of(user, ["i1"])
    with pytest.raises(ValueError, match="no item that is in release"):
        load().scores_of(replace(user, sequence=["gone"]), ["i1"])
