"""A local Spark session as the refresh has it, for benchmarks that measure what happens inside one."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grasp.settings import ROOT


@contextmanager
def local_spark(num_workers: int = 2) -> Iterator[Any]:
    """Ends with the block; workers have one thread each, none that spins."""
    from pyspark.sql import SparkSession

    from spark_jobs.job import spark_session

    os.environ["SPARK_CONF_DIR"] = str(ROOT / "spark_jobs" / "conf")
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "SPARK_LOCAL_IP": "127.0.0.1"}
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    SparkSession.builder.master(f"local[{num_workers},4]").config("spark.driver.memory", "3g").getOrCreate()
    session = spark_session("benchmark")
    try:
        yield session
    finally:
        session.stop()
