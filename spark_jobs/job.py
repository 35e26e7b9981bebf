"""The shell of every job: its day, the settings, the Spark session, the stamp it leaves."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pyspark.sql import SparkSession

from grasp import stages
from grasp.days import day_argument
from grasp.processes import end_with_parent
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from spark_jobs.storage.lake import Lake


def spark_session(name: str) -> SparkSession:
    """The session of this process; master, memory and tuning come from spark-submit and its configuration."""
    return (
        SparkSession.builder.appName(f"grasp.{name}")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "512")
        .getOrCreate()
    )


def run(main: Callable[[Lake, str], None]) -> None:
    """The shell of every job: read `--day` and the settings, do the work, leave the stage's stamp."""
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=name, description=sys.modules["__main__"].__doc__)
    parser.add_argument("--day", type=day_argument, required=True, help="UTC day to work on, YYYY-MM-DD")
    day = parser.parse_args().day
    try:
        settings = Settings.load()
        before = stages.fingerprint(settings, name, day)
    except (SettingsError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # started by spark-submit: without its JVM there is nothing to finish
        end_with_parent()
    started = time.monotonic()
    spark = spark_session(name)
    try:
        main(Lake(spark, settings), day)
    except (ValueError, FileNotFoundError) as error:
        say(f"{name} {day}: failed: {error}")
        sys.exit(f"error: {error}")
    finally:
        spark.stop()
    stages.stamp(settings, name, day, before)
    say(f"{name} {day}: done in {time.monotonic() - started:.0f} s")
