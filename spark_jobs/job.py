"""What every job has in common: `--day`, the settings, the Spark session and the stage's stamp."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pyspark.sql import SparkSession

from grasp import stages
from grasp.days import day_argument
from grasp.environment import IS_SUBMITTED, prepare
from grasp.preflight import of_stage, require_java
from grasp.processes import end_with_parent
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from spark_jobs.storage.lake import Lake


def spark_session(name: str, settings: Settings | None = None) -> SparkSession:
    """The Spark session of this process. Master and memory come from spark-submit, or without it from `settings`."""
    builder = (
        SparkSession.builder.appName(f"grasp.{name}")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "512")
    )
    if settings and not IS_SUBMITTED:
        builder = builder.master(settings.spark_master).config("spark.driver.memory", settings.spark_memory)
    return builder.getOrCreate()


def run(main: Callable[[Lake, str], None]) -> None:
    """Run a job: read `--day` and the settings, call `main`, write the stage's stamp."""
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=name, description=sys.modules["__main__"].__doc__)
    parser.add_argument("--day", type=day_argument, required=True, help="UTC day to work on, YYYY-MM-DD")
    day = parser.parse_args().day
    prepare(*of_stage(name), *(() if IS_SUBMITTED else (require_java,)))
    try:
        settings = Settings.load()
        before = stages.fingerprint(settings, name, day)
    except (SettingsError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if IS_SUBMITTED:  # without the JVM of spark-submit there is nothing to finish
        end_with_parent()
    started = time.monotonic()
    spark = spark_session(name, settings)
    try:
        main(Lake(spark, settings), day)
    except (ValueError, FileNotFoundError) as error:
        say(f"{name} {day}: failed: {error}")
        sys.exit(f"error: {error}")
    finally:
        spark.stop()
    stages.stamp(settings, name, day, before)
    say(f"{name} {day}: done in {time.monotonic() - started:.0f} s")
