"""Descriptions of a benchmark's items and users by the language model, made as the refresh makes them.

The stage of the refresh itself works on a lake of the benchmark's own: its ledger keeps every answer, so that a run
that was ended goes on where it was, and its metrics say what it took. Users are described from the items that train
alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.core.sessions import local_spark
from benchmarks.data.datasets import num_users
from benchmarks.data.readers import Source
from benchmarks.data.vectors import user_facts
from grasp import partitions, tables
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import Versions

DAY = "1998-04-22"  # the last one of MovieLens; any would do
INPUT_PRICE, OUTPUT_PRICE = 0.10, 0.40  # per million tokens, as in docs/operations.md: what a server would have asked


@dataclass(frozen=True)
class Written:
    """A description of each item and user, in the source's order, and whether the language model wrote it."""

    of_items: list[str]
    is_item_written: np.ndarray
    of_users: list[str]
    is_user_written: np.ndarray


def own_settings(settings: Settings, folder: Path) -> Settings:
    """The same model on a lake in `folder`; no share of failures ends the day, since it is what is measured."""
    own = {"home": folder, "lake": folder / "lake", "llm_max_failure_share": 1.0, "now": None}
    return settings.model_copy(update=own | {"llm_input_price": INPUT_PRICE, "llm_output_price": OUTPUT_PRICE})


def write(
    settings: Settings, source: Source, train: Sequence[np.ndarray], budget: int, num_workers: int
) -> dict[str, Any]:
    """Describe all items, then all users, the first `budget` of each by the model; returns what it took by entity.

    What an earlier run was answered is not asked for again.
    """
    from spark_jobs.generation.budget import Caps
    from spark_jobs.generation.describe_entities import FACTS_DDL, describe, real_model
    from spark_jobs.generation.prompts import ITEM, USER
    from spark_jobs.storage.lake import Lake

    items = source.items or []
    popularity = num_users(list(train), len(source.item_ids)).tolist()
    users = user_facts(source, train, settings.hidden_attributes)
    facts = {
        ITEM: zip(source.item_ids, popularity, map(json.dumps, items), strict=True),
        USER: zip(source.user_ids, map(len, train), map(json.dumps, users), strict=True),
    }
    rows = [(key, each["title"], each["attributes"]) for key, each in zip(source.item_ids, items, strict=True)]
    with local_spark(num_workers) as spark:
        lake = Lake(spark, settings)
        lake.write(tables.ITEMS, spark.createDataFrame(rows, tables.ITEMS.ddl), DAY)
        for subject, of_all in facts.items():
            frame = spark.createDataFrame(list(of_all), FACTS_DDL)
            make_model = real_model(settings, num_workers)
            describe(lake, DAY, subject, frame, caps=Caps(budget), make_model=make_model)
    return taken(settings)


def taken(settings: Settings) -> dict[str, Any]:
    """The day's generation metrics by entity, of the model of the settings."""
    versions, found = Versions(settings), {}
    for row in _rows(settings, tables.GENERATION_METRICS):
        if (row["prompt_version"], row["model_revision"]) == (versions.prompt(row["entity"]), versions.llm):
            maps = {name: dict(row[name] or []) for name in ("reasons", "asked_by_history", "failed_by_history")}
            found[row["entity"]] = {name: value for name, value in row.items() if name != "computed_at"} | maps
    return found


def read(settings: Settings, source: Source) -> Written:
    """What was written; raises `MissingPartitionError` when nothing was."""
    items = _texts(settings, tables.ITEM_DESCRIPTION, source.item_ids)
    return Written(*items, *_texts(settings, tables.USER_DESCRIPTION, source.user_ids))


def _texts(settings: Settings, table: Table, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
    rows = {row[table.key[0]]: row for row in _rows(settings, table)}
    return [rows[each]["description"] for each in ids], np.array([rows[each]["source"] == "llm" for each in ids])


def _rows(settings: Settings, table: Table) -> list[dict[str, Any]]:
    folder = partitions.require_partition(settings.lake, table, None, DAY)
    rows: list[dict[str, Any]] = pq.read_table(folder, partitioning=None).to_pylist()
    return rows
