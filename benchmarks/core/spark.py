"""A local Spark session, set up as in the daily refresh."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grasp.environment import process_environment
from grasp.settings import ROOT, Settings


@contextmanager
def local_spark(settings: Settings, num_workers: int = 2) -> Iterator[Any]:
    """A session that ends with the block. Each worker has one thread."""
    from pyspark.sql import SparkSession

    from spark_jobs.job import spark_session

    os.environ |= process_environment(settings)  # Java among others, where `make setup` has put it
    os.environ |= {"PYTHONPATH": str(ROOT), "SPARK_LOCAL_IP": "127.0.0.1"}
    SparkSession.builder.master(f"local[{num_workers},4]").config("spark.driver.memory", "3g").getOrCreate()
    session = spark_session("benchmark")
    try:
        yield session
    finally:
        session.stop()
