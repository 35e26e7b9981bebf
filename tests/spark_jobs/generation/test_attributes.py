"""Spark finds the same categories as `grasp/categories.py`; a user favours nothing else."""

import pytest

from grasp.categories import categories_of
from spark_jobs.generation.attributes import attribute_values

VALUES = ["Comedy, драма", "false", "1e3, 12.50", '{"a":"b, c"}', "字, True", "1998-03-01T10:00", "x" * 41, "No, été"]


@pytest.mark.spark
def test_spark_reads_categories_as_python_does(spark):
    rows = [(str(number), {"fact": value, "hidden": "secret"}) for number, value in enumerate(VALUES)]
    found = attribute_values(spark.createDataFrame(rows, "item_id string, attributes map<string,string>"), ["hidden"])
    expected = {(str(number), each) for number, value in enumerate(VALUES) for each in categories_of(value)}
    assert {(row.item_id, row.value) for row in found.collect()} == expected
    assert ("4", "字") in expected
