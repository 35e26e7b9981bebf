"""Cut a small folder of the data contract out of a large one, for a quick trial on a company's own data.

    python -m spark_jobs.source.sample SOURCE_FOLDER OUT_FOLDER --users 600 --seed 0

Takes random users with at least five interactions, together with their interactions, items and attributes. Only days
that are over by the wall clock count. Reads the rows a few times, without Spark. The last line of the output is JSON:
the counts, what was left out, the `latest` day of the sample, and a `cutoff` day by which four fifths of the
interactions had happened.
"""

import argparse
import gzip
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from grasp.days import end_of, plus_days, start_of
from grasp.environment import prepare
from grasp.progress import say
from spark_jobs.source.contract import EARLIEST, REQUIRED_COLUMNS, SourceTable, find_table, require_table
from spark_jobs.source.parquet_files import table_values
from spark_jobs.source.reader import plan_table
from spark_jobs.source.text_files import decoded, line_reader, raw_lines, text_columns
from spark_jobs.source.values import as_fields, as_text

MIN_INTERACTIONS = 5
CUTOFF_SHARE = 0.8
LATEST = datetime(2100, 1, 1, tzinfo=UTC)  # a later time is one in another unit

Row = dict[str, object]


def table_rows(table: SourceTable) -> Iterator[Row]:
    """The rows of a table: values as they were written, numbers of JSON lines as text, parquet times as unix seconds.

    Rows that cannot be read, and those without a required value, are left out.
    """
    required = REQUIRED_COLUMNS[table.name]
    for row in table_values(table) if table.format == "parquet" else _text_values(table):
        fields = as_fields(row, required)
        if fields is not None and all(name in fields for name in required):
            yield row


def _text_values(table: SourceTable) -> Iterator[Row]:
    values_of = line_reader(table, text_columns(table))
    for number, raw in enumerate(raw_lines(table.path), start=1):
        line = decoded(raw, number)
        values = None if line is None or (number == 1 and table.format == "tsv") else values_of(line)
        if values is not None:
            yield values


def choose_users(num_interactions: Counter[str], num_users: int, seed: int) -> set[str]:
    """Random users with enough interactions. The seed alone decides, not the order of the source."""
    eligible = [user for user, num in num_interactions.items() if num >= MIN_INTERACTIONS]
    eligible.sort(key=lambda user: (hashlib.sha256(f"{seed}:{user}".encode()).hexdigest(), user))
    return set(eligible[:num_users])


def suggest_days(times: list[float]) -> tuple[str, str]:
    """The day by which four fifths of the events had happened, and the last day; `ValueError` for a single day."""
    days = sorted(datetime.fromtimestamp(seconds, UTC).date().isoformat() for seconds in times)
    if not days or days[0] == days[-1]:
        raise ValueError("the sample covers fewer than two days, so there is no cutoff: take more users")
    cutoff = days[int(CUTOFF_SHARE * (len(days) - 1))]
    return min(cutoff, plus_days(days[-1], -1)), days[-1]


def write_sample(folder: Path, out: Path, num_users: int, seed: int) -> dict[str, object]:
    """Write the sample to `out`; returns the counts and the suggested days. Raises `ValueError` without any user."""
    today = start_of(datetime.now(UTC).date().isoformat()).timestamp()
    source_table = require_table(folder, "interactions")
    item_table, user_table = require_table(folder, "items"), find_table(folder, "users")
    for table in filter(None, (source_table, item_table, user_table)):
        if not plan_table(table).num_rows and table is not user_table:
            raise ValueError(f"{table.path} holds no rows")
    num_interactions, num_later = count_by_user(source_table, today)
    users = choose_users(num_interactions, num_users, seed)
    if not users:
        raise ValueError(
            f"{source_table.path}: none of its {len(num_interactions):,} users has {MIN_INTERACTIONS} interactions"
        )
    kept = [
        {
            "user_id": as_text(row["user_id"]),
            "item_id": as_text(row["item_id"]),
            "timestamp": seconds,
            "row_number": row.get("row_number", position),
        }
        for position, row in enumerate(table_rows(source_table), start=1)
        if as_text(row["user_id"]) in users
        and (seconds := unix_seconds(row["timestamp"])) is not None
        and float(seconds) < today
    ]
    cutoff, latest = suggest_days([float(str(row["timestamp"])) for row in kept])
    touched = {row["item_id"] for row in kept}
    items = [row for row in table_rows(item_table) if as_text(row["item_id"]) in touched]
    if not items:
        example = min(str(item_id) for item_id in touched)
        raise ValueError(f"{item_table.path} holds none of the items of {source_table.path.name}, such as {example!r}")
    facts = [row for row in table_rows(user_table) if as_text(row["user_id"]) in users] if user_table else []
    out.mkdir(parents=True, exist_ok=True)
    _write_lines(out / "interactions.jsonl.gz", kept)
    _write_lines(out / "items.jsonl.gz", items)
    if user_table:
        _write_lines(out / "users.jsonl.gz", facts)
    return {
        "users": len(users),
        "items": len(items),
        "interactions": len(kept),
        "later_interactions": num_later,
        "users_with_few": sum(num < MIN_INTERACTIONS for num in num_interactions.values()),
        "users_beyond_limit": sum(num >= MIN_INTERACTIONS for num in num_interactions.values()) - len(users),
        "cutoff": cutoff,
        "latest": latest,
        "qualifying_users": count_qualifying(kept, cutoff),
    }


def count_qualifying(interactions: Iterable[Row], cutoff: str) -> int:
    """Users with at least five interactions up to the end of the cutoff day and one after it."""
    end = end_of(cutoff).timestamp()
    before, after = Counter[str](), set()
    for row in interactions:
        user = str(row["user_id"])
        if float(str(row["timestamp"])) <= end:
            before[user] += 1
        else:
            after.add(user)
    return sum(before[user] >= MIN_INTERACTIONS for user in after)


def count_by_user(table: SourceTable, today: float) -> tuple[Counter[str], int]:
    """Interactions before `today` by user, and the number of later ones; those without a usable time are left out.

    Raises `ValueError` if most times are not unix seconds, or none is before `today`.
    """
    by_user, num_later, unusable, num_unusable = Counter[str](), 0, "", 0
    for row in table_rows(table):
        seconds = unix_seconds(row["timestamp"])
        if seconds is None:
            unusable, num_unusable = unusable or as_text(row["timestamp"]), num_unusable + 1
        elif float(seconds) >= today:
            num_later += 1
        else:
            by_user[as_text(row["user_id"])] += 1
    if num_unusable > by_user.total() + num_later:
        raise ValueError(f"{table.path}: timestamp {unusable!r} is not in unix seconds{_unit_of(unusable)}")
    if num_later and not by_user:
        raise ValueError(f"{table.path}: all {num_later:,} interactions are of today or later: those days are not over")
    if not by_user:
        required = ", ".join(REQUIRED_COLUMNS[table.name])
        raise ValueError(f"{table.path}: no row can be read and has a value for each of {required}")
    return by_user, num_later


def unix_seconds(value: object) -> str | None:
    """The time as it is written; None unless it is a number of unix seconds from 1990 on."""
    text = as_text(value)
    return text if _is_second(text) else None


def _is_second(text: str, unit: float = 1) -> bool:
    try:
        return EARLIEST.timestamp() <= float(text) / unit < LATEST.timestamp()
    except ValueError:
        return False


def _unit_of(text: str) -> str:
    units = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
    return "".join(f", but in {name}: divide by {unit:,.0f}" for name, unit in units.items() if _is_second(text, unit))


def _write_lines(path: Path, rows: Iterable[Row]) -> None:
    text = "".join(f"{json.dumps(row, ensure_ascii=False, default=as_text)}\n" for row in rows)
    content = gzip.compress(text.encode(), mtime=0)
    is_unchanged = path.exists() and path.read_bytes() == content
    if not is_unchanged:  # an unchanged file keeps its time, so ingest sees nothing new
        path.write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(prog="grasp sample", description="A small part of a source folder")
    parser.add_argument("source", type=Path, help="folder of the data contract")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--users", type=int, default=600, help="most users to take")
    parser.add_argument("--seed", type=int, default=0, help="which users are drawn")
    arguments = parser.parse_args()
    try:
        found = write_sample(arguments.source, arguments.out, arguments.users, arguments.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    counts = ", ".join(f"{found[name]:,} {name}" for name in ("users", "items", "interactions"))
    say(f"sample: {counts} in {arguments.out}")
    say(
        f"sample: left out {found['users_with_few']:,} users with fewer than {MIN_INTERACTIONS} interactions "
        f"and {found['users_beyond_limit']:,} because a sample has at most {arguments.users:,} users"
    )
    if found["later_interactions"]:
        say(f"sample: left out {found['later_interactions']:,} interactions of today or later: those days are not over")
    say(
        f"sample: {found['qualifying_users']} users have {MIN_INTERACTIONS} interactions up to {found['cutoff']} "
        "and some after it"
    )
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    prepare()
    main()
