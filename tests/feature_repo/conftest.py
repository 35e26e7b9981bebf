"""A tiny lake with every table, written without Spark."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from grasp.days import end_of, last_second, start_of
from grasp.files import write_json
from grasp.manifest import CURRENT_FILE, MANIFEST_FILE, Manifest, release_folder
from grasp.partitions import Content
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import Versions, feature_service

DAY, NEXT = "1998-03-01", "1998-03-02"
USERS, ITEMS = ["u1", "u2", "u3"], ["i1", "i2", "i3", "i4"]
TAKERS = {1: 1, 3: 2, 7: 3, 14: 3, 30: 4}  # of an item that many users have, by days
ARROW_TYPES = {
    "string": pa.string(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", "UTC"),
    "array<float>": pa.list_(pa.float32()),
    "array<string>": pa.list_(pa.string()),
    "array<bigint>": pa.list_(pa.int64()),
    "map<string,string>": pa.map_(pa.string(), pa.string()),
    "map<string,bigint>": pa.map_(pa.string(), pa.int64()),
}
OF = {
    "user": {
        "description": tables.USER_DESCRIPTION,
        "generation": tables.USER_GENERATION,
        "embedding": tables.USER_EMBEDDING,
        "neighbours": tables.USER_NEIGHBOURS,
        "means": tables.USER_NEIGHBOUR_FEATURES,
        "features": tables.USER_FEATURES,
    },
    "item": {
        "description": tables.ITEM_DESCRIPTION,
        "generation": tables.ITEM_GENERATION,
        "embedding": tables.ITEM_EMBEDDING,
        "neighbours": tables.ITEM_NEIGHBOURS,
        "means": tables.ITEM_NEIGHBOUR_FEATURES,
        "features": tables.ITEM_FEATURES,
    },
}
Row = dict[str, Any]


def unit(seed: int, dimension: int = 4) -> list[float]:
    vector = np.random.default_rng(seed).normal(size=dimension)
    return [float(value) for value in (vector / np.linalg.norm(vector)).astype(np.float32)]


def times_of(day: str) -> list[int]:
    """The first and the last second of a day."""
    return [int(start_of(day).timestamp()), int(end_of(day).timestamp())]


def others(ids: list[str], each: str, day: str) -> list[str]:
    """Everyone's neighbours are all the others; on the second day the order is turned round."""
    return [other for other in (ids if day == DAY else ids[::-1]) if other != each]


@dataclass(frozen=True)
class SmallLake:
    """Writes days of tables as the lake does."""

    settings: Settings

    def folder(self, table: Table, day: str) -> Any:
        version = Versions(self.settings).of(table.versioned_by)
        return partitions.partition_path(self.settings.lake, table, version, day)

    def write(self, table: Table, day: str, rows: list[Row]) -> None:
        folder = self.folder(table, day)
        folder.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([(column.name, ARROW_TYPES[column.type]) for column in table.columns])
        full = [{column.name: row.get(column.name) for column in table.columns} for row in rows]
        pq.write_table(pa.Table.from_pylist(full, schema), folder / "part-00000.parquet")
        kept = [{name: value for name, value in row.items() if name != "computed_at"} for row in rows]
        text = json.dumps(kept, default=str, sort_keys=True)
        partitions.write_content(folder, Content(len(rows), f"{len(rows)}:{hashlib.sha256(text.encode()).hexdigest()}"))

    def rows(self, table: Table, day: str) -> list[Row]:
        return pq.read_table(self.folder(table, day), partitioning=None).to_pylist()

    def change(self, table: Table, day: str, number: int, **values: object) -> None:
        """Change columns of one row."""
        rows = self.rows(table, day)
        rows[number] |= values
        self.write(table, day, rows)

    def write_day(self, day: str, users: list[str] = USERS, items: list[str] = ITEMS) -> None:
        """Every table of a day that passes the gate."""
        noon = start_of(day).replace(hour=12)
        interactions = [
            {"user_id": user, "item_id": items[number % 2], "event_time": noon, "row_number": number}
            for number, user in enumerate(users)
        ]
        self.write(tables.INTERACTIONS, day, interactions)
        self.write(tables.ITEMS, day, [{"item_id": i, "title": f"Film {i}", "attributes": []} for i in items])
        self.write(tables.WITHDRAWN_ITEMS, day, [{"item_id": "gone", "withdrawn_on": day}])
        self.write(tables.USERS, day, [{"user_id": u, "attributes": [("age", "30")]} for u in users])
        refused = {"source_table": "interactions", "source_file": "ml.inter", "source_row": 7}
        self.write(tables.QUARANTINE, day, [{**refused, "reason": "unknown item", "record": "{}"}])
        self._write_moments(day, noon, users)
        self._write_served(day, noon)
        kinds = (("user", users), ("item", items))
        self.write(tables.GENERATION_METRICS, day, [self._metrics_row(entity, ids, day) for entity, ids in kinds])
        for entity, ids in kinds:
            self._write_texts(entity, ids, day)
            self._write_vectors(entity, ids, day)
        self.write_features(day, users, items)

    def _write_moments(self, day: str, noon: Any, users: list[str]) -> None:
        moments = [
            {"user_id": u, "event_time": noon, "row_number": n, "item_id": "i2", "history_item_ids": ["i1"]}
            for n, u in enumerate(users)
        ]
        votes = [{"user_id": u, "neighbour_item_ids": ["i3"], "neighbour_item_weights": [0.5]} for u in users]
        self.write(tables.MOMENTS, day, moments)
        self.write(tables.USER_NEIGHBOUR_ITEMS, day, votes)

    def _write_served(self, day: str, noon: Any) -> None:
        """Ten answers of an experiment, five a bucket; a click on two of the candidate's, one told twice."""
        common = {"served_at": noon, "user_id": "u1", "release_id": "r", "experiment": "new-model", "feature_day": day}
        buckets = ["control"] * 5 + ["candidate"] * 5
        served = [
            {
                **common,
                "request_id": f"{day}-{number}",
                "bucket": bucket,
                "item_ids": ["i1", "i2"],
                "scores": [2.0, 1.0],
            }
            for number, bucket in enumerate(buckets)
        ]
        clicked = [(5, "i1"), (5, "i1"), (6, "i2"), (0, "elsewhere")]
        told = [
            {"request_id": f"{day}-{number}", "item_id": item_id, "kind": "click", "told_at": noon}
            for number, item_id in clicked
        ]
        self.write(tables.SERVED_REQUESTS, day, served)
        self.write(tables.OUTCOMES, day, told)

    def publish(self, day: str) -> Manifest:
        """A release of popular items, in force: its manifest alone."""
        versions = Versions(self.settings)
        service = feature_service(versions.feature)
        manifest = Manifest(day, versions.feature, versions.embedding, {}, service, model=None)
        for file in (MANIFEST_FILE, f"../{CURRENT_FILE}"):
            write_json(release_folder(self.settings.releases, manifest) / file, asdict(manifest))
        return manifest

    def write_features(self, day: str, users: list[str] = USERS, items: list[str] = ITEMS, dimension: int = 4) -> None:
        for entity, ids in (("user", users), ("item", items)):
            rows = [self._feature_row(entity, number, ids, day, dimension) for number in range(len(ids))]
            self.write(OF[entity]["features"], day, rows)

    def _feature_row(self, entity: str, number: int, ids: list[str], day: str, dimension: int) -> Row:
        versions = Versions(self.settings)
        own = {
            "item": {
                "title": f"Film {ids[number]}",
                "popularity": number + 1,
                **{f"takers_{days}d": min(num, number + 1) for days, num in TAKERS.items()},
                "first_seen_day": DAY,
            },
            "user": {
                "sequence": ["i1", "i2"],
                "sequence_times": times_of(day),
                "earlier_item_ids": [],
                "num_interactions": 2,
                "gap_days": 0,
                "neighbour_item_ids": ["i3", "i4"][:number],
                "neighbour_item_weights": [0.5, 0.25][:number],
            },
        }
        return {
            f"{entity}_id": ids[number],
            "event_timestamp": last_second(day),
            **own[entity],
            "is_tail": number % 2,
            "semantic_embedding": unit(number, dimension),
            "neighbour_embedding": unit(number + 100, dimension),
            "neighbour_ids": others(ids, ids[number], day),
            "neighbour_similarities": [0.9 - 0.1 * rank for rank in range(len(ids) - 1)],
            "description": f"{ids[number]} on {day}",
            "source": "facts" if number else "llm",
            "prompt_version": versions.prompt(entity),
            "model_revision": versions.llm,
            "embedding_version": versions.embedding,
            "feature_version": versions.feature,
            "computed_at": end_of(day),
        }

    def _metrics_row(self, entity: str, ids: list[str], day: str) -> Row:
        """The day has a good text and a refused one of each kind, as the ledger says below."""
        versions = Versions(self.settings)
        nothing = {column.name: 0 for column in tables.GENERATION_METRICS.columns if column.type == "bigint"}
        return {
            **nothing,
            "entity": entity,
            "prompt_version": versions.prompt(entity),
            "model_revision": versions.llm,
            "num_entities": len(ids),
            "num_described": 1,
            "num_answers": 2,
            "num_accepted": 1,
            "num_refused": 1,
            "num_calls": 2,
            "num_input_tokens": 200,
            "num_output_tokens": 20,
            "cost": 0.0,
            "seconds": 1.0,
            "wall_seconds": 0.5,
            "answers_per_minute": 240.0,
            "reasons": [("too short", 1)],
            "asked_by_history": [("1-4", 2)],
            "failed_by_history": [("1-4", 1)],
            "computed_at": end_of(day),
        }

    def _write_texts(self, entity: str, ids: list[str], day: str) -> None:
        versions = Versions(self.settings)
        common = {"prompt_version": versions.prompt(entity), "model_revision": versions.llm}
        descriptions = [
            {
                **common,
                f"{entity}_id": each,
                "description": f"{each} on {day}",
                "source": "facts" if number else "llm",
                "fallback_reason": "budget" if number else None,
                "input_hash": f"input-{each}",
                "description_hash": f"text-{each}-{day}",
                "computed_at": end_of(day),
            }
            for number, each in enumerate(ids)
        ]
        call = {"is_repair": False, "num_attempts": 1, "num_input_tokens": 100, "num_output_tokens": 10, "cost": 0.0}
        paid = {f"{entity}_id": ids[0], **call, "seconds": 0.5, "generated_at": end_of(day), **common}
        accepted = {"generation_key": f"{entity}-{day}-1", "output": "A film.", "description": "A film.", **paid}
        refused = {"generation_key": f"{entity}-{day}-2", "output": "No.", "refusal_reason": "too short", **paid}
        self.write(OF[entity]["description"], day, descriptions)
        self.write(OF[entity]["generation"], day, [accepted, refused])

    def _write_vectors(self, entity: str, ids: list[str], day: str) -> None:
        key, similarities = f"{entity}_id", [0.9 - 0.1 * rank for rank in range(len(ids) - 1)]
        vectors = [
            {key: i, "semantic_embedding": unit(n), "description_hash": f"text-{i}-{day}", "computed_at": end_of(day)}
            for n, i in enumerate(ids)
        ]
        texts = [{name: row[name] for name in ("description_hash", "semantic_embedding")} for row in vectors]
        near = [
            {key: i, "neighbour_id": other, "similarity": similarities[rank], "rank": rank + 1}
            for i in ids
            for rank, other in enumerate(others(ids, i, day))
        ]
        means = [
            {
                key: i,
                "neighbour_embedding": unit(0),
                "neighbour_ids": others(ids, i, day),
                "neighbour_similarities": similarities,
            }
            for i in ids
        ]
        self.write(tables.TEXT_EMBEDDING, day, [{**row, "encoded_at": end_of(day)} for row in texts])
        self.write(OF[entity]["embedding"], day, vectors)
        self.write(OF[entity]["neighbours"], day, near)
        self.write(OF[entity]["means"], day, means)


@pytest.fixture
def small_lake(settings: Settings) -> SmallLake:
    """Nothing in it yet."""
    return SmallLake(settings)


@pytest.fixture
def two_days(small_lake: SmallLake) -> SmallLake:
    """1998-03-01 and 1998-03-02, whole."""
    for day in (DAY, NEXT):
        small_lake.write_day(day)
    return small_lake
