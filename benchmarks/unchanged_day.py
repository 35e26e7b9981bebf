"""What a day costs when nothing changed, and when one in a hundred did: describe, embed and write to Milvus.

A made-up shop is described from its facts (no language model is asked), encoded by the real encoder and written to
Milvus-Lite, in one Spark session whose start does not count. Four days in a row: everything new; the first day again,
which the stages' stamps skip; a day with one change in a hundred; a day without a change, which is what the stages
cost however little changed.
"""

import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.sessions import local_spark
from grasp import partitions, stages, tables
from grasp.days import plus_days
from grasp.progress import say
from grasp.settings import Settings

FIRST_DAY = "2026-01-05"
ITEMS_SHARE = 0.5  # of all entities; the others are users
EVENTS_PER_USER = 5
WORDS = (
    "amber basil cedar dune ember fern gale harbour indigo jade kelp linen maple north olive pearl quartz river slate",
    "thyme umber velvet willow yarrow zephyr brook cloud dawn echo frost grove haze isle juniper lagoon meadow",
)
NAMES = [word for line in WORDS for word in line.split()]
KINDS = ("soap", "lamp", "scarf", "kettle", "notebook", "candle", "basket", "mirror", "cushion", "vase")
LEDGERS = (tables.ITEM_GENERATION, tables.USER_GENERATION)
STAGES = ("describe_items", "describe_users", "embed_descriptions")


def days(settings: Settings, num_entities: int) -> dict[str, Any]:
    """Seconds of each stage on each day, and how many descriptions and vectors were new."""
    with tempfile.TemporaryDirectory(dir=settings.home) as home, local_spark() as spark:
        place = Path(home)
        own = {
            "home": place,
            "lake": place / "lake",
            "source": place / "source",
            "milvus_uri": str(place / "milvus.db"),
            "llm_budget": 0,
            "now": None,
        }
        shop = Shop(own["source"], num_entities)  # type: ignore[arg-type]
        at = settings.model_copy(update=own)
        second, third = plus_days(FIRST_DAY, 1), plus_days(FIRST_DAY, 2)
        shop.write(FIRST_DAY)
        found = {"full": refresh(spark, at, FIRST_DAY)}
        num_before = num_calls(at)
        found["again"] = refresh(spark, at, FIRST_DAY)
        num_calls_again = num_calls(at) - num_before
        shop.change(0.01)
        shop.write(second)
        found["one_percent"] = refresh(spark, at, second)
        shop.write(third)
        found["nothing"] = refresh(spark, at, third)
    return {"num_entities": num_entities, "num_calls_again": num_calls_again, "days": found}


def num_calls(settings: Settings) -> int:
    """Calls of the language model that the ledgers hold."""
    folders = (partitions.table_path(settings.lake, table, None) for table in LEDGERS)
    files = [file for folder in folders for file in folder.glob("day=*/*.parquet")]
    return sum(pq.read_metadata(file).num_rows for file in files)


def refresh(spark: Any, settings: Settings, day: str) -> dict[str, float]:
    """Run the stages of a day that are not current; seconds by stage, the check itself included."""
    from spark_jobs import describe_items, describe_users, embed_descriptions, ingest
    from spark_jobs.lake import Lake

    mains: dict[str, Callable[..., None]] = {
        "ingest": ingest.main,
        "describe_items": describe_items.main,
        "describe_users": describe_users.main,
        "embed_descriptions": embed_descriptions.main,
    }
    found = {}
    for name, main in mains.items():
        started = time.perf_counter()
        before = stages.fingerprint(settings, name, day)
        if not stages.is_current(settings, name, day):
            main(Lake(spark, settings), day)
            stages.stamp(settings, name, day, before)
        found[name] = time.perf_counter() - started
        say(f"{day} {name}: {found[name]:.1f} s")
    return {name: found[name] for name in STAGES}


class Shop:
    """A made-up source folder, whose items and users can change."""

    def __init__(self, folder: Path, num_entities: int) -> None:
        self.folder, self._random = folder, random.Random(0)  # noqa: S311 - no secret
        self._titles = [self._title(number) for number in range(round(ITEMS_SHARE * num_entities))]
        self._users = {f"u{number}": self._choose() for number in range(num_entities - len(self._titles))}

    def change(self, share: float) -> None:
        """Rename a share of the items that nobody has, and let as many users buy something else."""
        taken = {item for chosen in self._users.values() for item in chosen}
        free = [number for number in range(len(self._titles)) if number not in taken]
        for number in free[: round(share * len(self._titles))]:
            self._titles[number] = f"{self._title(number)} II"
        for user in list(self._users)[: round(share * len(self._users))]:
            self._users[user] = self._users[user] + self._choose()[:1]

    def write(self, day: str) -> None:
        """The source as it is known on a day; a user's items are one a minute, counted back from a fixed time."""
        from grasp.days import start_of

        self.folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(self.folder / "items.jsonl.gz", "wt") as file:
            for number, title in enumerate(self._titles):
                file.write(json.dumps({"item_id": f"i{number}", "title": title, "kind": title.split()[2]}) + "\n")
        start, latest = int(start_of(FIRST_DAY).timestamp()), int(start_of(day).timestamp())
        with gzip.open(self.folder / "interactions.tsv.gz", "wt") as file:
            file.write("user_id\titem_id\ttimestamp\n")
            for user, chosen in self._users.items():
                for place, item in enumerate(chosen):
                    moment = start + 60 * place if place < EVENTS_PER_USER else latest
                    file.write(f"{user}\ti{item}\t{moment}\n")

    def _title(self, number: int) -> str:
        first, second = NAMES[number % len(NAMES)], NAMES[(number // len(NAMES)) % len(NAMES)]
        return f"{first} {second} {KINDS[number % len(KINDS)]} {number}".title()

    def _choose(self) -> list[int]:
        """Items of the popular half, so that others can change without changing a user."""
        return self._random.sample(range(len(self._titles) // 2), EVENTS_PER_USER)
