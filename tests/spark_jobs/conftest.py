"""What the tests of the ledger share: rows of it, and a way to write them without Spark."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from grasp import partitions, tables
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import Versions
from spark_jobs.shards import Shards, ShardWriter

START = datetime(2026, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


class LedgerRows:
    """Rows of one kind of ledger, of the settings' prompt and model: `accepted`, `refused` or never answered."""

    def __init__(self, settings: Settings, table: Table = tables.ITEM_GENERATION) -> None:
        self.settings, self.table = settings, table
        self.folder = partitions.table_path(settings.lake, table, None)
        self.key = next(name for name in table.column_names if name.endswith("_id"))

    def accepted(self, key: str, second: float = 0, **changed: object) -> Row:
        versions = Versions(self.settings)
        row = {
            "generation_key": key,
            self.key: f"of {key}",
            "prompt_version": versions.prompt(self.key.removesuffix("_id")),
            "model_revision": versions.llm,
            "output": f"text of {key}",
            "description": f"text of {key}",
            "refusal_reason": None,
            "error": None,
            "is_repair": False,
            "num_attempts": 1,
            "num_input_tokens": 100,
            "num_output_tokens": 20,
            "cost": 0.5,
            "seconds": 2.0,
            "generated_at": START + timedelta(seconds=second),
        }
        return row | changed

    def refused(self, key: str, second: float = 0, reason: str = "loop", **changed: object) -> Row:
        return self.accepted(key, second, **{"description": None, "refusal_reason": reason, **changed})

    def failed(self, key: str, second: float = 0, **changed: object) -> Row:
        nothing = {"num_input_tokens": 0, "num_output_tokens": 0, "cost": 0.0, "output": "", "description": None}
        return self.accepted(key, second, **{**nothing, "error": "timeout", "num_attempts": 3, **changed})

    def pay(self, day: str, *rows: Row) -> None:
        run = f"{len(list(self.folder.glob('*/*'))):012x}"
        with ShardWriter(Shards(self.table, self.folder / f"day={day}", run), task=0, max_rows=2) as writer:
            for row in rows:
                writer.add(row)


@pytest.fixture
def item_rows(settings: Settings) -> LedgerRows:
    return LedgerRows(settings)


@pytest.fixture
def rows_of(settings: Settings) -> Callable[[Table], LedgerRows]:
    return lambda table: LedgerRows(settings, table)
