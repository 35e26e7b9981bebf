"""Search uses Milvus when it answers and memory otherwise, and refuses another encoder than the release's."""

import asyncio
import threading
import time

import anyio.to_thread
import httpx
import numpy as np
import pytest

from grasp.versions import description_hash
from serving.answers.search import RETRY_SECONDS, MilvusSearch, Search, SearchError, open_encoder
from serving.http.app import create_app
from serving.releases.publication import choose_model, publish

SERVER = "http://milvus.example.com:19530"
ITEM_IDS = [f"i{number}" for number in range(1, 9)]


class FakeEncoder:
    """Knows the release's descriptions; any other text is the description of the item it names last."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors
        self.num_texts = 0

    def encode(self, texts: list[str]) -> np.ndarray:
        self.num_texts += len(texts)
        return np.stack([self.vectors[f"about {text.split()[-1]}"] for text in texts])


class FakeMilvus:
    """A client whose collection holds items of the release, one that is gone, and a text that is not published."""

    hits = (("gone", "about gone"), ("i7", "a text of a refused day"), ("i7", "about i7"), ("i2", "about i2"))

    def __init__(self, hits: tuple[tuple[str, str], ...] = hits) -> None:
        self.hits = hits
        self.delay_seconds = 0.0
        self.is_down = False
        self.asked: list[dict] = []

    def search(self, collection: str, limit: int, **given: object) -> list[list[dict]]:
        from pymilvus.exceptions import MilvusException

        self.asked.append({"collection": collection, "limit": limit, **given})
        time.sleep(self.delay_seconds)
        if self.is_down:
            raise MilvusException(message="no channel to the server")
        # `id` as a server before 2.4 answers: the primary key.
        return [
            [
                {"id": "key", "distance": 0.9, "entity": {"id": each, "description_hash": description_hash(text)}}
                for each, text in self.hits[:limit]
            ]
        ]


@pytest.fixture
def encoder(settings, publish_day) -> FakeEncoder:
    publish_day()
    from grasp.manifest import manifest_in_force, release_folder
    from serving.ranking.release_ranker import load_release_ranker

    manifest = manifest_in_force(settings.releases)
    items = load_release_ranker(release_folder(settings.releases, manifest), manifest).items
    return FakeEncoder({f"about {item_id}": items.semantic_NS[row] for item_id, row in items.row_of.items()})


@pytest.fixture
def find(serve, settings_with, encoder):
    """`find(milvus)`: a function that searches a running application, over a fake client if one is given."""

    def over(milvus: FakeMilvus | None = None, monotonic=time.monotonic, **changed):
        changed = {"milvus_uri": SERVER, "search_timeout_ms": 300, **changed} if milvus else changed
        settings = settings_with(**changed)
        server = MilvusSearch(settings, lambda: milvus, monotonic) if milvus else None  # type: ignore[arg-type]
        client = serve(searcher=Search(settings, lambda _: encoder, server), **changed)
        return lambda query, k=3: client.get("/v1/search", params={"q": query, "k": k})

    return over


def test_without_a_server_memory_is_searched(find):
    answer = find()("something like i4").json()

    assert (answer["backend"], answer["fallback"]) == ("memory", None)
    assert answer["items"][0] == {
        "item_id": "i4",
        "title": "Title i4",
        "similarity": pytest.approx(1, abs=1e-5),
        "is_close": True,
        "snippet": "about i4",
        "categories": ["Drama"],
    }
    assert len(answer["items"]) == 3


@pytest.mark.parametrize("is_server", [False, True])
def test_what_is_below_the_limit_is_not_close(find, encoder, is_server):
    milvus = FakeMilvus() if is_server else None

    def ask(limit):
        return find(milvus, search_min_similarity=limit)("about i4", 2).json()

    best = ask(-1.0)["items"][0]["similarity"]
    assert (ask(best - 0.01)["nothing_close"], ask(best - 0.01)["items"][0]["is_close"]) == (False, True)
    far = ask(min(best + 0.01, 1.0)) if is_server else ask_far(find, encoder)
    assert far["nothing_close"] and not any(each["is_close"] for each in far["items"])
    assert len(far["items"]) >= 2  # the nearest are listed all the same


def ask_far(find, encoder):
    """A search whose query is like no description."""
    encoder.vectors["about nothing"] = np.zeros_like(encoder.vectors["about i4"])
    return find(search_min_similarity=0.3)("nothing").json()


@pytest.mark.parametrize("is_server", [False, True])
def test_a_query_that_is_a_category_lists_its_items_first_and_they_are_close(find, encoder, is_server):
    encoder.vectors["about DRAMA"] = -encoder.vectors["about i4"]
    answer = find(FakeMilvus() if is_server else None, search_min_similarity=1.0)(" DRAMA ", 8).json()

    is_drama = ["Drama" in each["categories"] for each in answer["items"]]
    assert is_drama == sorted(is_drama, reverse=True) and {True, False} == set(is_drama)
    assert [each["is_close"] for each in answer["items"]] == is_drama
    cosines = [each["similarity"] for each in answer["items"] if each["is_close"]]
    assert cosines == sorted(cosines, reverse=True) and max(cosines) <= 1
    assert (answer["backend"], answer["nothing_close"]) == ("memory", False)


@pytest.mark.parametrize(("query", "is_close"), [("I4", True), ("TITLE I4", True), ("ITLE I4", False)])
def test_an_item_whose_title_holds_the_query_as_whole_words_is_close(find, encoder, query, is_close):
    encoder.vectors["about I4"] = encoder.vectors["about i4"] / 2

    best = find(search_min_similarity=0.9)(query, 1).json()["items"][0]

    assert (best["item_id"], best["is_close"]) == ("i4", is_close)


@pytest.mark.parametrize("is_server", [False, True])
def test_a_title_is_found_once(find, publish_day, is_server):
    publish_day("1998-03-02", titles={"i7": "Twins", "i2": "Twins"})

    found = [each["title"] for each in find(FakeMilvus() if is_server else None)("i4", 8).json()["items"]]

    assert found.count("Twins") == 1
    assert is_server or len(found) == 7


def test_a_server_searches_the_releases_collection_without_a_filter(find):
    milvus = FakeMilvus()

    answer = find(milvus)('" or id != "x" i4', 2).json()

    assert (answer["backend"], answer["fallback"]) == ("milvus", None)
    assert [each["item_id"] for each in answer["items"]] == ["i7", "i2"]
    (asked,) = milvus.asked
    assert asked["collection"].startswith("item_texts_")
    assert "filter" not in asked and "expr" not in asked and "id !=" not in str(asked)


def test_a_withdrawn_item_is_not_found(settings, publish_day, write_day, find):
    write_day(settings, withdrawn=["i7", "i4"])
    publish(settings, "1998-03-01", choose_model(settings, None, None))

    assert [each["item_id"] for each in find(FakeMilvus())("i4", 1).json()["items"]] == ["i2"]
    assert "i4" not in [each["item_id"] for each in find()("something like i4").json()["items"]]


def test_a_server_that_is_down_is_asked_again_after_a_pause(find):
    milvus, now = FakeMilvus(), [0.0]
    search = find(milvus, lambda: now[0])
    milvus.is_down = True
    answers = [search("i4").json() for _ in range(2)]
    assert [(each["backend"], each["fallback"]) for each in answers] == [("memory", "milvus_error")] * 2
    assert answers[0]["items"][0]["item_id"] == "i4"
    assert len(milvus.asked) == 1

    milvus.is_down = False
    now[0] += RETRY_SECONDS

    assert search("i4", 2).json()["backend"] == "milvus"


def test_memory_answers_when_the_collection_lacks_texts_of_the_release(find):
    answer = find(FakeMilvus())("i4", 3).json()

    assert (answer["backend"], answer["fallback"]) == ("memory", "milvus_incomplete")
    assert answer["items"][0]["item_id"] == "i4" and len(answer["items"]) == 3


@pytest.mark.parametrize(("num_copies", "found"), [(150, ["c0", "i2", "i7"]), (2000, ["c0"])])
def test_titles_that_repeat_are_asked_for_beyond_and_do_not_make_the_collection_incomplete(
    settings, write_day, find, num_copies, found
):
    copies = [f"c{number}" for number in range(num_copies)]
    write_day(settings, item_ids=[*ITEM_IDS, *copies], titles=dict.fromkeys(copies, "Shirt"))
    publish(settings, "1998-03-01", choose_model(settings, None, None))
    milvus = FakeMilvus(tuple((item_id, f"about {item_id}") for item_id in (*copies, "i2", "i7")))

    answer = find(milvus)("i4", 3).json()

    assert (answer["backend"], answer["fallback"]) == ("milvus", None)
    assert [each["item_id"] for each in answer["items"]] == found
    assert [asked["limit"] for asked in milvus.asked] == [103, 1030]


def test_a_slow_server_is_not_waited_for(find):
    milvus = FakeMilvus()
    milvus.delay_seconds = 2.0

    answer = find(milvus)("i4").json()

    assert (answer["backend"], answer["fallback"]) == ("memory", "milvus_timeout")


def test_the_encoder_is_checked_against_the_release_once(find, encoder):
    search = find()

    for _ in range(3):
        assert search("i4").status_code == 200

    assert encoder.num_texts == 3 + 3


def test_another_encoder_is_refused(find, encoder):
    encoder.vectors = {text: np.roll(vector, 1) for text, vector in encoder.vectors.items()}

    response = find()("i4")

    assert response.status_code == 503
    assert response.json()["detail"].startswith("GRASP_ENCODER is not the encoder that release")


def test_searches_that_wait_for_the_encoder_block_no_other_request_and_get_retry_after(
    publish_day, settings_with, users, encoder
):
    may_load = threading.Event()

    def load_slowly(_):
        may_load.wait(20)
        return encoder

    settings = settings_with(lookup_timeout_ms=20_000)
    app = create_app(settings, lambda *_: users, search=Search(settings, load_slowly, answer_seconds=0.5))

    async def search_and_ask() -> list[httpx.Response]:
        asks = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
        anyio.to_thread.current_default_thread_limiter().total_tokens = 2
        async with app.router.lifespan_context(app), asks, asyncio.timeout(60):
            searches = [asyncio.create_task(asks.get("/v1/search", params={"q": "i4"})) for _ in range(6)]
            recommended = await asks.post("/v1/recommendations", json={"user_id": "u1"})
            early = [await search for search in searches]
            may_load.set()
            while (last := await asks.get("/v1/search", params={"q": "i4"})).status_code != 200:
                pass
            return [recommended, last, *early]

    try:
        recommended, last, *early = asyncio.run(search_and_ask())
    finally:
        may_load.set()

    assert recommended.json()["fallback"] is None
    assert [(each.status_code, each.headers["Retry-After"]) for each in early] == [(503, "5")] * 6
    assert last.json()["items"][0]["item_id"] == "i4"


def test_search_can_be_switched_off(find):
    response = find(search=False)("i4")

    assert (response.status_code, response.json()["detail"]) == (503, "search is switched off (GRASP_SEARCH)")


def test_a_folder_without_an_encoder_is_named(settings):
    with pytest.raises(SearchError, match="GRASP_ENCODER="):
        open_encoder(settings)


@pytest.mark.models
def test_the_real_encoder_gives_unit_vectors(settings_with, model_folders):
    vectors = open_encoder(settings_with(encoder=str(model_folders[1]))).encode(["a space adventure", "war"])

    assert vectors.shape == (2, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
