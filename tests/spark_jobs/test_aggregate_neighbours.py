"""Neighbours have equal weight, and an entity without neighbours gets zeros of the right length."""

import numpy as np
import pytest
from pyspark.testing import assertDataFrameEqual

from grasp import tables
from spark_jobs import aggregate_neighbours
from spark_jobs.aggregate_neighbours import aggregate, mean_pool
from spark_jobs.vectors.embedding_table import Embeddings

DAY = "1998-03-01"
VECTORS = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=np.float32)
POSITION = {"1": 0, "2": 1, "3": 2}


def load():
    return Embeddings(["1", "2", "3"], VECTORS, ["h", "h", "h"])


def test_every_neighbour_has_equal_weight():
    pooled = mean_pool([["1", "2"], [], ["3"]], POSITION, VECTORS)
    np.testing.assert_allclose(pooled, [[0.5, 0.5], [0.0, 0.0], [0.6, 0.8]])
    assert pooled.dtype == np.float32


def test_a_neighbour_without_a_vector_is_named():
    with pytest.raises(ValueError, match="neighbour 9 has no semantic embedding"):
        mean_pool([["1", "9"]], POSITION, VECTORS)


@pytest.mark.spark
def test_ids_and_similarities_keep_rank_order_and_every_entity_has_a_row(spark):
    neighbours = spark.createDataFrame([("1", "3", 0.6, 2), ("1", "2", 0.75, 1)], tables.ITEM_NEIGHBOURS.ddl)
    entities = spark.createDataFrame([("1",), ("2",)], "item_id string")
    actual = aggregate("item_id", neighbours, entities, load, tables.ITEM_NEIGHBOUR_FEATURES.ddl)
    expected = [("1", [0.3, 0.9], ["2", "3"], [0.75, 0.6]), ("2", [0.0, 0.0], [], [])]
    assertDataFrameEqual(actual, spark.createDataFrame(expected, tables.ITEM_NEIGHBOUR_FEATURES.ddl))


@pytest.mark.spark
def test_a_second_run_changes_nothing(lake, capsys, write_rows):
    for embedding, neighbours in (
        (tables.ITEM_EMBEDDING, tables.ITEM_NEIGHBOURS),
        (tables.USER_EMBEDDING, tables.USER_NEIGHBOURS),
    ):
        vectors = [("a", [1.0, 0.0], "h", None), ("b", [0.0, 1.0], "h", None)]
        write_rows(lake, embedding, vectors, DAY)
        near = [(each, other, 0.0, 1) for each, other in (("a", "b"), ("b", "a"))]
        write_rows(lake, neighbours, near, DAY)
    aggregate_neighbours.main(lake, DAY)
    row = lake.read(tables.USER_NEIGHBOUR_FEATURES, DAY).filter("user_id = 'a'").first()
    assert (row.neighbour_embedding, row.neighbour_ids, row.neighbour_similarities) == ([0.0, 1.0], ["b"], [0.0])
    capsys.readouterr()
    aggregate_neighbours.main(lake, DAY)
    assert capsys.readouterr().out.count("unchanged") == 2
