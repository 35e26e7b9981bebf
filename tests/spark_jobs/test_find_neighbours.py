"""A day's neighbours come from that day's vectors only, with both backends."""

import hashlib

import numpy as np
import pytest

from grasp import tables
from grasp.versions import collection
from spark_jobs import find_neighbours
from spark_jobs.find_neighbours import QUERIES_PER_BLOCK
from spark_jobs.storage.lake import Lake
from spark_jobs.vectors.milvus import Text, open_vector_store

pytestmark = pytest.mark.spark

DAY, NEXT = "1998-03-01", "1998-03-02"
VECTORS = {"1": [1.0, 0.0], "2": [0.8, 0.6], "3": [0.6, 0.8], "4": [0.0, 1.0]}


def hash_of(vector):
    return hashlib.sha256(str(vector).encode()).hexdigest()


def texts_of(vectors):
    return [Text(each, hash_of(vector)) for each, vector in vectors.items()]


@pytest.fixture
def embed(write_rows):
    """`embed(lake, DAY, vectors)` writes the vectors of a day for items and users and into Milvus."""

    def write(lake, day, vectors):
        for entity, table in (("item", tables.ITEM_EMBEDDING), ("user", tables.USER_EMBEDDING)):
            rows = [(each, vector, hash_of(vector), None) for each, vector in vectors.items()]
            write_rows(lake, table, rows, day)
            with open_vector_store(lake.settings) as store:
                name = collection(entity, lake.versions.embedding)
                store.ensure_collection(name, len(next(iter(vectors.values()))))
                store.add(name, texts_of(vectors), np.array(list(vectors.values()), np.float32))

    return write


def neighbours(lake, day):
    return {
        (row.item_id, row.rank): (row.neighbour_id, round(row.similarity, 4))
        for row in lake.read(tables.ITEM_NEIGHBOURS, day).collect()
    }


def test_every_entity_has_its_k_nearest_ranked_from_one(spark, settings_with, embed):
    lake = Lake(spark, settings_with(num_neighbours=2))
    embed(lake, DAY, VECTORS)
    find_neighbours.main(lake, DAY)
    found = neighbours(lake, DAY)
    assert len(found) == 8
    assert (found["1", 1], found["1", 2]) == (("2", 0.8), ("3", 0.6))
    assert (found["4", 1], found["4", 2]) == (("3", 0.8), ("2", 0.6))
    assert lake.read(tables.USER_NEIGHBOURS, DAY).count() == 8


def test_a_later_item_does_not_change_earlier_neighbours(lake, embed):
    embed(lake, DAY, VECTORS)
    find_neighbours.main(lake, DAY)
    before = neighbours(lake, DAY)
    embed(lake, NEXT, VECTORS | {"planted": [0.995, 0.0999]})
    find_neighbours.main(lake, DAY)
    find_neighbours.main(lake, NEXT)
    assert neighbours(lake, DAY) == before
    assert neighbours(lake, NEXT)["1", 1][0] == "planted"


def test_both_backends_write_the_same_rows_over_several_blocks(lake, spark, settings_with, capsys, embed):
    random = np.random.default_rng(3)
    vectors = random.normal(size=(QUERIES_PER_BLOCK + 200, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[10:25] = vectors[0]
    embed(lake, DAY, {str(i): vector.tolist() for i, vector in enumerate(vectors.astype(np.float32))})
    find_neighbours.main(lake, DAY)
    assert lake.read(tables.ITEM_NEIGHBOURS, DAY).count() == 10 * len(vectors)
    capsys.readouterr()
    find_neighbours.main(Lake(spark, settings_with(neighbour_backend="milvus")), DAY)
    assert capsys.readouterr().out.count("unchanged") == 2


def test_with_milvus_an_earlier_day_is_searched_without_later_vectors(lake, spark, settings_with, embed):
    embed(lake, DAY, VECTORS)
    embed(lake, NEXT, VECTORS | {"later": [0.0, -1.0]})
    in_milvus = Lake(spark, settings_with(neighbour_backend="milvus"))
    find_neighbours.main(in_milvus, DAY)
    find_neighbours.main(in_milvus, NEXT)
    known = {
        day: {row.neighbour_id for row in in_milvus.read(tables.ITEM_NEIGHBOURS, day).collect()} for day in (DAY, NEXT)
    }
    assert "later" not in known[DAY]
    assert "later" in known[NEXT]


def test_with_milvus_texts_of_releases_and_other_days_are_no_neighbours(lake, spark, settings_with, embed):
    embed(lake, DAY, VECTORS | {"withdrawn": [0.96, 0.28], "2": [0.28, 0.96]})
    embed(lake, NEXT, VECTORS)
    find_neighbours.main(Lake(spark, settings_with(neighbour_backend="milvus")), NEXT)
    by_milvus = neighbours(lake, NEXT)
    find_neighbours.main(lake, NEXT)
    assert neighbours(lake, NEXT) == by_milvus
    assert by_milvus["1", 1] == ("2", 0.8)


def test_a_collection_that_lost_a_vector_is_not_searched(lake, spark, settings_with, embed):
    embed(lake, DAY, VECTORS)
    in_milvus = Lake(spark, settings_with(neighbour_backend="milvus"))
    with open_vector_store(in_milvus.settings) as store:
        store.delete(collection("item", in_milvus.versions.embedding), texts_of(VECTORS)[:1])
    with pytest.raises(ValueError, match="run embed_descriptions again"):
        find_neighbours.main(in_milvus, DAY)
    assert in_milvus.days(tables.ITEM_NEIGHBOURS) == []


def test_a_missing_embedding_day_is_named(lake):
    with pytest.raises(FileNotFoundError, match="item_embedding has no partition for 1998-03-01"):
        find_neighbours.main(lake, DAY)
