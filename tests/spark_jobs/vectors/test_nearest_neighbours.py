"""Both backends: self is excluded by id, ties are ordered by id, a small set gives fewer than k."""

import numpy as np
import pytest

from spark_jobs.vectors.milvus import Text, open_vector_store
from spark_jobs.vectors.nearest_neighbours import ExactBackend, MilvusBackend, VectorSet


def unit(rows):
    matrix = np.array(rows, dtype=np.float64)
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(params=["exact", "milvus"])
def search(request, settings):
    """`search(ids, vectors, k)`: the neighbours of every entity."""

    def everyone(ids, vectors, k):
        vector_set = VectorSet(ids, vectors)
        if request.param == "exact":
            return ExactBackend(vector_set).search(ids, vectors, k)
        with open_vector_store(settings) as store:
            store.ensure_collection("c", vectors.shape[1])
            store.add("c", [Text(each, "h") for each in ids], vectors)
            return MilvusBackend(store, "c", vector_set, dict.fromkeys(ids, "h")).search(ids, vectors, k)

    return everyone


def test_nearest_first_with_cosines(search):
    found, similarities = search(["a", "b", "c"], unit([[1, 0], [3, 4], [0, 1]]), 2)
    assert found == [["b", "c"], ["c", "a"], ["b", "a"]]
    assert similarities == [[0.6, 0.0], [0.8, 0.6], [0.8, 0.0]]


def test_an_entity_is_not_its_own_neighbour_but_one_with_an_equal_vector_is(search):
    found, similarities = search(["b", "a", "c"], unit([[1, 0], [1, 0], [0, 1]]), 1)
    assert found == [["a"], ["b"], ["a"]]
    assert similarities[:2] == [[1.0], [1.0]]


def test_any_number_of_ties_is_broken_by_id(search):
    ids = [f"{i:03d}" for i in range(99, -1, -1)]
    found, _ = search([*ids, "query"], unit([[1, 0]] * 100 + [[1, 1]]), 3)
    assert found[ids.index("050")] == ["000", "001", "002"]
    assert found[ids.index("001")] == ["000", "002", "003"]
    assert found[-1] == ["000", "001", "002"]


def test_similarities_that_differ_only_beyond_six_digits_are_a_tie(search):
    angle = 1e-4  # cosine 1 - 5e-9
    found, _ = search(["q", "z", "a"], unit([[1, 0], [1, 0], [np.cos(angle), np.sin(angle)]]), 2)
    assert found[0] == ["a", "z"]


@pytest.mark.parametrize("num", [1, 2, 4])
def test_a_small_vector_set_gives_fewer_neighbours(search, num):
    ids = [str(i) for i in range(num)]
    found, similarities = search(ids, unit([[1, i] for i in range(num)]), 10)
    assert [len(row) for row in found] == [len(row) for row in similarities] == [num - 1] * num


class ForgetfulStore:
    """Finds too few, as an approximate index may."""

    def search(self, name, vectors, k):
        return [[(Text("b", "h"), 0.8)] for _ in vectors]


def test_no_neighbour_is_invented_when_milvus_finds_too_few():
    vector_set = VectorSet(["a", "b", "c"], unit([[1, 0], [3, 4], [0, 1]]))
    backend = MilvusBackend(ForgetfulStore(), "c", vector_set, dict.fromkeys("abc", "h"))
    assert backend.search(["a"], vector_set.vectors[:1], 2) == ([["b"]], [[0.6]])


def test_both_backends_agree_on_clustered_and_equal_vectors(settings):
    random = np.random.default_rng(7)
    centres = random.normal(size=(12, 48))
    vectors = unit(centres[random.integers(12, size=600)] + 0.4 * random.normal(size=(600, 48)))
    vectors[100:140] = vectors[0]
    vectors[300:303] = vectors[1]
    ids = [str(i) for i in random.permutation(600)]
    vector_set = VectorSet(ids, vectors)
    exact = ExactBackend(vector_set).search(ids, vectors, 10)
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 48)
        store.add("c", [Text(each, "h") for each in ids], vectors)
        hash_of = dict.fromkeys(ids, "h")
        assert MilvusBackend(store, "c", vector_set, hash_of).search(ids, vectors, 10) == exact
    similarity = np.round(vectors.astype(np.float64) @ vectors.astype(np.float64).T, 6)
    for row, entity in enumerate(ids[:50]):
        others = sorted((-similarity[row, other], ids[other]) for other in range(600) if ids[other] != entity)
        assert exact[0][row] == [each for _, each in others[:10]]


def test_milvus_passes_over_texts_of_other_days_however_many_are_nearer(settings):
    ids = [str(i) for i in range(40)]
    vectors = unit([[1, i / 40] for i in range(40)])
    others = [Text(each, f"of day {day}") for each in ids for day in range(30)]
    vector_set = VectorSet(ids, vectors)
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        store.add("c", [Text(each, "h") for each in ids], vectors)
        store.add("c", others, np.repeat(vectors[:1], len(others), axis=0))
        found = MilvusBackend(store, "c", vector_set, dict.fromkeys(ids, "h")).search(ids, vectors, 3)
    assert found == ExactBackend(vector_set).search(ids, vectors, 3)
