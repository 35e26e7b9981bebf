"""What describing, embedding and writing to Milvus cost on a day when nothing changed, or one in a hundred.

The users and items of a made-up shop are described from facts, without a language model, encoded by the real encoder
and written to Milvus-Lite. One Spark session runs four days; its start does not count:

1. everything is new;
2. the first day again: the stages' stamps skip it;
3. one in a hundred changed;
4. nothing changed: what the stages cost in any case.

A day should encode and write no more than what changed; both are counted.
"""

import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.core.spark import local_spark
from grasp import partitions, stages, tables
from grasp.days import plus_days, start_of
from grasp.progress import say
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import Versions

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


def measure_days(settings: Settings, num_entities: int) -> dict[str, Any]:
    """Seconds of each stage on each day, and how much was encoded and written to Milvus."""
    with tempfile.TemporaryDirectory(dir=settings.home) as home, local_spark(settings) as spark:
        folder = Path(home)
        own = {
            "home": folder,
            "lake": folder / "lake",
            "source": folder / "source",
            "milvus_uri": str(folder / "milvus.db"),
            "llm_budget": 0,
            "now": None,
        }
        shop = Shop(own["source"], num_entities)  # type: ignore[arg-type]
        at = settings.model_copy(update=own)
        second, third = plus_days(FIRST_DAY, 1), plus_days(FIRST_DAY, 2)
        shop.write()
        done = {"full": refresh(spark, at, FIRST_DAY), "again": refresh(spark, at, FIRST_DAY)}
        num_changed = shop.change(0.01, second)
        shop.write()
        done["one_percent"] = refresh(spark, at, second)
        done["nothing"] = refresh(spark, at, third)
    return {
        "num_entities": num_entities,
        "num_calls_again": done["again"].num_calls + done["again"].num_encoded,
        "num_changed": num_changed,
        "num_encoded": {name: day.num_encoded for name, day in done.items()},
        "num_upserted": {name: day.num_upserted for name, day in done.items()},
        "days": {name: day.seconds for name, day in done.items()},
    }


@dataclass(frozen=True)
class DayCost:
    """What a day took: seconds by stage, calls of the language model, encoded texts, vectors written to Milvus."""

    seconds: dict[str, float]
    num_calls: int
    num_encoded: int
    num_upserted: int


def num_rows(settings: Settings, *of: Table) -> int:
    """Rows of tables, over all days."""
    folders = [partitions.table_path(settings.lake, table, Versions(settings).of(table.versioned_by)) for table in of]
    files = [file for folder in folders for file in folder.glob("day=*/*.parquet")]
    return sum(pq.read_metadata(file).num_rows for file in files)


def refresh(spark: Any, settings: Settings, day: str) -> DayCost:
    """Run the stages of a day that are not current. The check counts, too."""
    from spark_jobs import describe_items, describe_users, embed_descriptions, ingest
    from spark_jobs.storage.lake import Lake

    mains: dict[str, Callable[..., int | None]] = {
        "ingest": ingest.main,
        "describe_items": describe_items.main,
        "describe_users": describe_users.main,
        "embed_descriptions": embed_descriptions.embed_day,
    }
    found, num_upserted = {}, 0
    num_calls, num_vectors = num_rows(settings, *LEDGERS), num_rows(settings, tables.TEXT_EMBEDDING)
    for name, main in mains.items():
        started = time.perf_counter()
        before = stages.fingerprint(settings, name, day)
        if not stages.is_current(settings, name, day):
            num_upserted += main(Lake(spark, settings), day) or 0
            stages.stamp(settings, name, day, before)
        found[name] = time.perf_counter() - started
        say(f"{day} {name}: {found[name]:.1f} s")
    return DayCost(
        {name: found[name] for name in STAGES},
        num_rows(settings, *LEDGERS) - num_calls,
        num_rows(settings, tables.TEXT_EMBEDDING) - num_vectors,
        num_upserted,
    )


class Shop:
    """A made-up source folder whose items and users can change."""

    def __init__(self, folder: Path, num_entities: int) -> None:
        self.folder, self._random = folder, random.Random(0)  # noqa: S311 - no secret
        self._titles = [self._title(number) for number in range(round(ITEMS_SHARE * num_entities))]
        start = _moment(FIRST_DAY)
        self._users = {
            f"u{number}": [(item, start + 60 * place) for place, item in enumerate(self._choose())]
            for number in range(num_entities - len(self._titles))
        }

    def change(self, share: float, day: str) -> int:
        """Rename a share of the items, and let the same share of users buy something new on the day.

        Only items that no user has are renamed. Returns how many items and users have changed.
        """
        taken = {item for bought in self._users.values() for item, _ in bought}
        free = [number for number in range(len(self._titles)) if number not in taken]
        num_items, num_users = (max(1, round(share * len(of))) for of in (self._titles, self._users))
        renamed, buying = free[:num_items], list(self._users)[:num_users]
        for number in renamed:
            self._titles[number] = f"{self._title(number)} II"
        for user in buying:
            has = {item for item, _ in self._users[user]}
            self._users[user].append((next(item for item in self._popular() if item not in has), _moment(day)))
        return len(renamed) + len(buying)

    def write(self) -> None:
        """Write the source as it is now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(self.folder / "items.jsonl.gz", "wt") as file:
            for number, title in enumerate(self._titles):
                file.write(json.dumps({"item_id": f"i{number}", "title": title, "kind": title.split()[2]}) + "\n")
        with gzip.open(self.folder / "interactions.tsv.gz", "wt") as file:
            file.write("user_id\titem_id\ttimestamp\n")
            for user, bought in self._users.items():
                file.writelines(f"{user}\ti{item}\t{moment}\n" for item, moment in bought)

    def _title(self, number: int) -> str:
        first, second = NAMES[number % len(NAMES)], NAMES[(number // len(NAMES)) % len(NAMES)]
        return f"{first} {second} {KINDS[number % len(KINDS)]} {number}".title()

    def _popular(self) -> range:
        """The half of the items that users buy, so that the other half can change without changing a user."""
        return range(len(self._titles) // 2)

    def _choose(self) -> list[int]:
        return self._random.sample(self._popular(), EVENTS_PER_USER)


def _moment(day: str) -> int:
    return int(start_of(day).timestamp())
