"""Totals of a ledger over one day or the last days: requests, outcomes, cost and speed.

Uses DuckDB on the ledger's files, so a command answers within a second and a job needs no Spark stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grasp.tables import Table
from spark_jobs.storage.shards import arrow_schema

if TYPE_CHECKING:
    import duckdb

IDLE_SECONDS = 600  # a longer gap between answers does not count as working time
LAST_DAYS = 7  # days with answers, so that means adapt to a changed server within a week


@dataclass(frozen=True)
class LedgerTotals:
    """Number of keys by outcome, and the calls, tokens, cost and time they took.

    Each key counts once, by its latest answer in the period: accepted or refused, or unanswered if every call failed.
    """

    num_answers: int = 0  # accepted and refused keys
    num_accepted: int = 0
    num_refused: int = 0
    num_repairs: int = 0  # keys with a repair
    num_repaired: int = 0  # of these, accepted
    num_unanswered: int = 0
    num_calls: int = 0
    num_failed_calls: int = 0
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0  # sum over all calls
    wall_seconds: float = 0.0  # without idle time
    reasons: Mapping[str, int] = field(default_factory=dict)  # refused and unanswered keys by reason

    @property
    def num_keys(self) -> int:
        return self.num_answers + self.num_unanswered

    @property
    def num_failed(self) -> int:
        return self.num_refused + self.num_unanswered

    @property
    def answers_per_minute(self) -> float | None:
        """None without answers, or if their times are unknown."""
        return round(60 * self.num_answers / self.wall_seconds, 3) if self.wall_seconds else None


# Without the texts, to save memory on the driver: a first day may have more than a million.
_COLUMNS = (
    "generation_key, refusal_reason, error, is_repair, num_attempts, num_input_tokens, num_output_tokens, cost, "
    "seconds, generated_at"
)
# Sums are rounded, because their last bits depend on the order of the files. `started` is the time before the first
# answers of each run: their own `seconds`, summed over a batch that an in-process model answered at once.
_TOTALS = f"""
WITH timed AS (
    SELECT *, (moment - lag(moment) OVER (ORDER BY moment)) / 1e6 AS gap
    FROM (SELECT *, epoch_us(generated_at) AS moment FROM asked)
),
started AS (
    SELECT sum(batch.seconds) AS seconds
    FROM timed AS first JOIN timed AS batch
    ON batch.seconds = first.seconds AND batch.moment BETWEEN first.moment AND first.moment + 1e6
    WHERE first.gap IS NULL OR first.gap > {IDLE_SECONDS}
),
keys AS (
    SELECT
        count(*) FILTER (error IS NULL) AS num_answered,
        arg_max(coalesce(refusal_reason, ''), generated_at) FILTER (error IS NULL) AS refusal,
        arg_max(is_repair, generated_at) FILTER (error IS NULL) AS is_by_repair,
        bool_or(is_repair) AS was_repaired
    FROM asked
    GROUP BY generation_key
)
SELECT
    (SELECT struct_pack(
        num_answers := count(*) FILTER (num_answered > 0),
        num_accepted := count(*) FILTER (refusal = ''),
        num_refused := count(*) FILTER (refusal <> ''),
        num_repairs := count(*) FILTER (was_repaired),
        num_repaired := count(*) FILTER (refusal = '' AND is_by_repair),
        num_unanswered := count(*) FILTER (num_answered = 0)
    ) FROM keys),
    (SELECT struct_pack(
        num_calls := coalesce(sum(num_attempts), 0)::BIGINT,
        num_failed_calls := (coalesce(sum(num_attempts), 0) - count(*) FILTER (error IS NULL))::BIGINT,
        num_input_tokens := coalesce(sum(num_input_tokens), 0)::BIGINT,
        num_output_tokens := coalesce(sum(num_output_tokens), 0)::BIGINT,
        cost := round(coalesce(sum(cost), 0), 6),
        seconds := round(coalesce(sum(seconds), 0), 3),
        wall_seconds := round(
            coalesce(sum(gap) FILTER (gap <= {IDLE_SECONDS}), 0) + coalesce((SELECT seconds FROM started), 0), 3
        )
    ) FROM timed)
"""  # noqa: S608 - a number of our own
_REASONS = """
SELECT reason, count(*) FROM (
    SELECT coalesce(
        arg_max(coalesce(refusal_reason, ''), generated_at) FILTER (error IS NULL),
        arg_max(error, generated_at) FILTER (error IS NOT NULL)
    ) AS reason
    FROM asked GROUP BY generation_key
) WHERE reason <> '' GROUP BY reason ORDER BY reason
"""


def connect_to_ledger(folder: Path, table: Table) -> "duckdb.DuckDBPyConnection":
    """An in-memory database with a view `ledger`: the table's columns, its id as `entity_id`, and `day` as text.

    `folder` is the ledger's folder. Without any day in it, the view is empty.
    """
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    key = next(name for name in table.column_names if name.endswith("_id"))
    if any(folder.glob("day=*/*.parquet")):
        files = str(folder / "day=*" / "*.parquet").replace("'", "''")
        source = f"read_parquet('{files}', hive_partitioning = true, hive_types_autocast = false)"
    else:
        connection.register("nothing", arrow_schema(table).empty_table())
        source = "(SELECT *, NULL::VARCHAR AS day FROM nothing)"
    connection.execute(f"CREATE VIEW ledger AS SELECT * RENAME ({key} AS entity_id) FROM {source}")  # noqa: S608
    return connection


def is_model_known(folder: Path, table: Table, prompt_version: str, model_revision: str) -> bool:
    """Whether this model has ever answered, and the server has not answered only as another model since."""
    [(is_known,)] = (
        connect_to_ledger(folder, table)
        .execute(
            """
            SELECT coalesce(answered_at >= coalesce(replaced_at, answered_at), false) FROM (
                SELECT
                    max(generated_at) FILTER (error IS NULL) AS answered_at,
                    max(generated_at) FILTER (error = 'wrong_model') AS replaced_at
                FROM ledger WHERE prompt_version = $prompt AND model_revision = $model
            )
            """,
            {"prompt": prompt_version, "model": model_revision},
        )
        .fetchall()
    )
    return bool(is_known)


def least_input_tokens(folder: Path, table: Table, prompt_version: str, model_revision: str) -> int | None:
    """The fewest tokens that one prompt of this version had, as counted by the model; None without an answer."""
    [(least,)] = (
        connect_to_ledger(folder, table)
        .execute(
            """
            SELECT min(num_input_tokens) FROM ledger
            WHERE prompt_version = $prompt AND model_revision = $model
                AND error IS NULL AND num_attempts = 1 AND NOT is_repair AND num_input_tokens > 0
            """,
            {"prompt": prompt_version, "model": model_revision},
        )
        .fetchall()
    )
    return None if least is None else int(least)


def ledger_totals(
    folder: Path, table: Table, prompt_version: str, model_revision: str, *, day: str | None = None
) -> LedgerTotals:
    """Totals of this prompt and model on a day, or without `day` on the last `LAST_DAYS` days with answers."""
    connection = connect_to_ledger(folder, table)
    same: dict[str, Any] = {"prompt": prompt_version, "model": model_revision}
    where = "prompt_version = $prompt AND model_revision = $model"
    days = [day] if day else _last_days(connection, where, same)
    connection.execute(
        f"CREATE TABLE asked AS SELECT {_COLUMNS} FROM ledger WHERE {where} AND list_contains($days, day)",  # noqa: S608
        same | {"days": days},
    )
    outcomes, amounts = connection.execute(_TOTALS).fetchall()[0]
    reasons = {str(reason): int(num) for reason, num in connection.execute(_REASONS).fetchall()}
    return LedgerTotals(**outcomes, **amounts, reasons=reasons)


def _last_days(connection: "duckdb.DuckDBPyConnection", where: str, same: dict[str, Any]) -> list[str]:
    query = f"SELECT DISTINCT day FROM ledger WHERE {where} ORDER BY day DESC LIMIT {LAST_DAYS}"  # noqa: S608
    return [row[0] for row in connection.execute(query, same).fetchall()]
