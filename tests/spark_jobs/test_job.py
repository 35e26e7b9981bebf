"""What the Java machine of every session starts with."""

from pathlib import Path

import pytest

from grasp.environment import SPARK_CLASSES

pytestmark = pytest.mark.spark


def test_the_session_has_our_options(spark):
    conf = spark.sparkContext.getConf()
    assert conf.get("spark.ui.enabled") == "false"
    assert spark.conf.get("spark.sql.parquet.outputTimestampType") == "TIMESTAMP_MICROS"


def test_it_maps_the_recorded_classes(spark, missing):
    """Java refuses a record without a word, for instance while a folder with files is on the class path."""
    if not SPARK_CLASSES.exists():
        missing(f"{SPARK_CLASSES} missing: run `make setup`")
    pid = spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid()
    assert str(SPARK_CLASSES) in Path(f"/proc/{pid}/maps").read_text()
