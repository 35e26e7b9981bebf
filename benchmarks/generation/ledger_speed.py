"""How long it takes to find out what of a large day is paid for already.

A ledger of millions of made-up keys over many days, and a day's inputs of which some are new: the seconds of the
anti-join in Spark, and how much the driver's memory grows while it runs.
"""

import hashlib
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.core.sessions import local_spark
from grasp import tables
from grasp.progress import say
from grasp.settings import Settings
from spark_jobs.storage.shards import arrow_schema

NUM_DAYS = 30
ROW_GROUP = 100_000
TEXT = "A film for viewers who enjoy the drama of its time, and it goes well with other dramas of this kind."


def anti_join(settings: Settings, num_keys: int, num_inputs: int, num_new: int) -> dict[str, Any]:
    """Seconds to count what is unpaid, the megabytes by which the driver grew, and what was found."""
    import psutil

    from spark_jobs.generation.ledger import Ledger
    from spark_jobs.storage.lake import Lake

    with tempfile.TemporaryDirectory(dir=settings.home) as home, local_spark() as spark:
        lake = Lake(spark, settings.model_copy(update={"lake": Path(home)}))
        ledger = Ledger(lake, tables.ITEM_GENERATION)
        say(f"writing a ledger of {num_keys:,} keys")
        write_ledger(ledger.folder, num_keys)
        inputs_file = Path(home) / "inputs.parquet"
        known = np.arange(num_inputs - num_new)
        new = np.arange(num_keys, num_keys + num_new)
        pq.write_table(pa.table({"generation_key": _keys(np.concatenate([known, new]))}), inputs_file)
        driver = psutil.Process()
        jvm = next(child for child in driver.children(recursive=True) if child.name() == "java")
        before = driver.memory_info().rss
        started = time.perf_counter()
        num_unpaid = ledger.unpaid(spark.read.parquet(str(inputs_file))).count()
        seconds = time.perf_counter() - started
        grown = driver.memory_info().rss - before
        return {
            "num_keys": num_keys,
            "num_inputs": num_inputs,
            "num_unpaid": num_unpaid,
            "seconds": seconds,
            "driver_grew_megabytes": grown / 2**20,
            "jvm_megabytes": jvm.memory_info().rss / 2**20,
        }


def write_ledger(folder: Path, num_keys: int) -> None:
    """Sealed days of equal size, with texts as long as real ones."""
    schema, per_day = arrow_schema(tables.ITEM_GENERATION), -(-num_keys // NUM_DAYS)
    for number in range(NUM_DAYS):
        places = np.arange(number * per_day, min((number + 1) * per_day, num_keys))
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)
        day = folder / f"day={moment.date()}"
        day.mkdir(parents=True)
        with pq.ParquetWriter(day / "merged-00000.parquet", schema) as writer:
            for start in range(0, len(places), ROW_GROUP):
                writer.write_table(_rows(places[start : start + ROW_GROUP], moment, schema))


def _rows(places: np.ndarray, moment: datetime, schema: pa.Schema) -> pa.Table:
    constant: dict[str, object] = {
        "prompt_version": "item-2",
        "model_revision": "benchmark",
        "output": TEXT,
        "description": TEXT,
        "refusal_reason": None,
        "error": None,
        "is_repair": False,
        "num_attempts": 1,
        "num_input_tokens": 250,
        "num_output_tokens": 32,
        "cost": 0.0,
        "seconds": 1.0,
        "generated_at": moment,
    }
    columns = {name: pa.array([value] * len(places), schema.field(name).type) for name, value in constant.items()}
    columns |= {"generation_key": pa.array(_keys(places)), "item_id": pa.array([f"{place}" for place in places])}
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _keys(places: np.ndarray) -> list[str]:
    """As random as real ones: sha256 of a number."""
    return [hashlib.sha256(b"%d" % place).hexdigest() for place in places.tolist()]
