"""A worker or the driver is killed during a run. Paid texts and computed vectors are kept.

Each run is a process of its own, with a fake model or encoder that logs every film and the process that asked for it.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from grasp.versions import Versions
from spark_jobs.storage.shards import SHARD_ROWS
from spark_jobs.vectors.text_embeddings import SHARD_TEXTS

pytestmark = [pytest.mark.spark, pytest.mark.timeout(600)]

DAY = "1998-03-01"
NUM_TASKS = 2
DESCRIBE = """
import json, os, signal, sys, time
from functools import partial
from pathlib import Path

from pyspark.sql import SparkSession

from grasp import tables
from grasp.settings import Settings
from spark_jobs.generation.budget import Caps
from spark_jobs.generation.describe_entities import FACTS_DDL, describe_entities
from spark_jobs.job import spark_session
from spark_jobs.storage.lake import Lake
from spark_jobs.models.language_model import Generation
from spark_jobs.generation.prompts import ITEM

log, master, deadly = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
num_films, seconds = int(sys.argv[4]), float(sys.argv[5])


class Model:
    def __init__(self, log, seconds, deadly):
        self.log, self.seconds, self.deadly = log, seconds, deadly

    def limit(self, limits):
        pass

    def generate(self, prompts):
        for place, prompt in enumerate(prompts):
            lines = prompt[-1]["content"].splitlines()
            title = next(line for line in lines if line.startswith("title: ")).removeprefix("title: ")
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {title}\\n")
            has_died = self.log.with_suffix(".died")
            if title == self.deadly and not has_died.exists():
                has_died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.seconds)
            text = f"{title} is a film for viewers who enjoy the drama, and it goes well with other dramas."
            yield place, Generation(text, 100, 20, self.seconds)


SparkSession.builder.master(master).config("spark.sql.shuffle.partitions", "2").getOrCreate()
lake = Lake(spark_session("killed"), Settings.load())
lake.write(tables.ITEMS, lake.spark.createDataFrame([("Film 0", "Film 0", {})], tables.ITEMS.ddl), "1998-03-01")
films = [
    (f"Film {n}", num_films - n, json.dumps({"title": f"Film {n}", "attributes": {"genres": "Drama"}}))
    for n in range(num_films)
]
facts = lake.spark.createDataFrame(films, FACTS_DDL)
model = partial(Model, log, seconds, deadly)
describe_entities(lake, "1998-03-01", ITEM, facts, caps=Caps(num_films), make_model=model)
"""
EMBED = """
import hashlib, os, signal, sys, time
from functools import partial
from pathlib import Path

import numpy as np
from pyspark.sql import SparkSession

from grasp import tables
from grasp.settings import Settings
from spark_jobs.embed_descriptions import write_embeddings
from spark_jobs.job import spark_session
from spark_jobs.storage.lake import Lake

log, master, deadly = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
num_films, seconds = int(sys.argv[4]), float(sys.argv[5])


class Encoder:
    def __init__(self, log, seconds, deadly):
        self.log, self.seconds, self.deadly = log, seconds, deadly

    def encode(self, texts):
        with self.log.open("a") as file:
            file.write("".join(f"{os.getpid()} {text}\\n" for text in texts))
        has_died = self.log.with_suffix(".died")
        if self.deadly in texts and not has_died.exists():
            has_died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return np.tile(np.float32([0.6, 0.8]), (len(texts), 1))


SparkSession.builder.master(master).config("spark.sql.shuffle.partitions", "2").getOrCreate()
lake = Lake(spark_session("killed"), Settings.load())
names = [f"Film {n}" for n in range(num_films)]
rows = [
    (name, name, "facts", None, "p", "m", "i", None, hashlib.sha256(name.encode()).hexdigest(), None)
    for name in names
]
table = tables.ITEM_DESCRIPTION
lake.write(table, lake.spark.createDataFrame(rows, table.ddl), "1998-03-01")
write_embeddings(lake, "item", "1998-03-01", partial(Encoder, log, seconds, deadly))
"""


@pytest.fixture
def start(environment):
    """Start a run in its own process session; its remaining processes are ended after the test."""
    started = []

    def start(log: Path, *, script=DESCRIBE, master="local[2]", num_films: int, seconds=0.0, deadly="-"):
        arguments = [str(log), master, deadly, str(num_films), str(seconds)]
        run = subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment, start_new_session=True)
        started.append(run)
        return run

    yield start
    for run in started:
        for pid in processes_of(run.pid):
            with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                os.kill(pid, signal.SIGKILL)
        run.wait()


def processes_of(session: int) -> list[int]:
    """Living processes of a session: the driver, its JVM and the Python workers."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def asked(log: Path) -> list[tuple[str, str]]:
    """Process and film, in the order of asking."""
    return [tuple(line.split(" ", 1)) for line in log.read_text().splitlines()]


def shards(settings, table=tables.ITEM_GENERATION) -> list[Path]:
    version = Versions(settings).of(table.versioned_by)
    return list(partitions.partition_path(settings.lake, table, version, DAY).glob("*.parquet"))


def paid(settings) -> Counter:
    return Counter(name for file in shards(settings) for name in pq.read_table(file)["item_id"].to_pylist())


def encoded(settings) -> Counter:
    """Hashes of the texts that have a vector."""
    found = (pq.read_table(file)["description_hash"] for file in shards(settings, tables.TEXT_EMBEDDING))
    return Counter(each for column in found for each in column.to_pylist())


def hashes(films) -> Counter:
    return Counter(hashlib.sha256(film.encode()).hexdigest() for film in films)


def embedded(settings) -> int:
    table = tables.ITEM_EMBEDDING
    folder = partitions.require_partition(settings.lake, table, Versions(settings).embedding, DAY)
    return pq.read_table(folder, partitioning=None).num_rows


def sources(settings) -> Counter:
    folder = partitions.require_partition(settings.lake, tables.ITEM_DESCRIPTION, None, DAY)
    return Counter(pq.read_table(folder, partitioning=None)["source"].to_pylist())


def test_a_killed_worker_loses_only_its_current_shard_of_texts(start, settings, tmp_path):
    log, num_films, deadly = tmp_path / "asked.txt", 200, "Film 160"  # the 81st of a hundred of its task
    run = start(log, master=settings.spark_master, num_films=num_films, deadly=deadly)

    assert run.wait() == 0

    of_process: dict[str, list[str]] = {}
    for process, film in asked(log):
        of_process.setdefault(process, []).append(film)
    [dead] = [films for films in of_process.values() if films[-1] == deadly]
    later = Counter(film for films in of_process.values() if films is not dead for film in films)
    kept, lost = dead[:SHARD_ROWS], dead[SHARD_ROWS:]
    assert len(dead) > SHARD_ROWS
    assert not later.keys() & set(kept)
    assert all(later[film] == 1 for film in lost)
    assert len(asked(log)) == num_films + len(lost)
    assert paid(settings) == Counter(f"Film {n}" for n in range(num_films))
    assert sources(settings) == {"llm": num_films}


def test_after_a_killed_driver_only_missing_texts_are_paid_for(start, settings, tmp_path):
    first, second, num_films = tmp_path / "first.txt", tmp_path / "second.txt", 400
    run = start(first, num_films=num_films, seconds=0.05)
    wait_until(lambda: len(shards(settings)) >= NUM_TASKS, 120, "a shard of each task")
    os.kill(run.pid, signal.SIGKILL)
    wait_until(lambda: not processes_of(run.pid), 60, "the workers end with their driver")
    before = paid(settings)
    all_films = {f"Film {n}" for n in range(num_films)}
    assert SHARD_ROWS <= before.total() < num_films
    lost = {film for _, film in asked(first)} - before.keys()
    assert len(lost) <= NUM_TASKS * SHARD_ROWS

    assert start(second, num_films=num_films).wait() == 0

    assert Counter(film for _, film in asked(second)) == Counter(all_films - before.keys())
    assert paid(settings) == Counter(all_films)
    assert sources(settings) == {"llm": num_films}


def test_a_killed_worker_loses_only_its_current_vectors(start, settings, tmp_path):
    log, num_films, deadly = tmp_path / "encoded.txt", 1000, "Film 500"
    run = start(log, script=EMBED, master=settings.spark_master, num_films=num_films, deadly=deadly)

    assert run.wait() == 0

    twice = [film for film, num in Counter(film for _, film in asked(log)).items() if num > 1]
    assert deadly in twice
    assert len(twice) <= SHARD_TEXTS
    assert len(asked(log)) == num_films + len(twice)
    assert encoded(settings) == hashes(f"Film {n}" for n in range(num_films))
    assert embedded(settings) == num_films


def test_after_a_killed_driver_only_missing_vectors_are_encoded(start, settings, tmp_path):
    first, second, num_films = tmp_path / "first.txt", tmp_path / "second.txt", 2000
    run = start(first, script=EMBED, num_films=num_films, seconds=2)
    wait_until(lambda: len(shards(settings, tables.TEXT_EMBEDDING)) >= NUM_TASKS, 120, "a shard of each task")
    os.kill(run.pid, signal.SIGKILL)
    wait_until(lambda: not processes_of(run.pid), 60, "the workers end with their driver")
    before = encoded(settings)
    all_films = [f"Film {n}" for n in range(num_films)]
    assert 0 < before.total() < num_films
    assert len({film for _, film in asked(first)}) - before.total() <= NUM_TASKS * SHARD_TEXTS

    assert start(second, script=EMBED, num_films=num_films).wait() == 0

    assert hashes(film for _, film in asked(second)) == hashes(all_films) - before
    assert encoded(settings) == hashes(all_films)
    assert embedded(settings) == num_films
