"""Cut a small folder of the data contract out of a large one, for a quick trial on a company's own data.

    python -m spark_jobs.source.sample SOURCE_FOLDER OUT_FOLDER --users 600 --seed 0

Takes random users with at least five interactions, together with their interactions, items and attributes. Reads the
rows twice, without Spark. The last line of the output is JSON: the counts, how many users were left out, the `latest`
day of the sample, and a `cutoff` day by which four fifths of the interactions had happened.
"""

import argparse
import gzip
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time
from pathlib import Path

from grasp.days import end_of, plus_days
from grasp.environment import prepare
from grasp.progress import say
from spark_jobs.source.reader import REQUIRED_COLUMNS, SourceTable, find_table, require_table, text_lines

MIN_INTERACTIONS = 5
CUTOFF_SHARE = 0.8

Row = dict[str, object]


def table_rows(table: SourceTable) -> Iterator[Row]:
    """The rows of a table, unchanged. Unreadable lines and rows without a required value are left out."""
    required = REQUIRED_COLUMNS[table.name]
    for row in _READERS[table.format](table.path):
        if all(row.get(name) not in (None, "") for name in required):
            yield row


def _tsv_rows(path: Path) -> Iterator[Row]:
    lines = text_lines(path)
    header = next(lines, "").split("\t")
    for line in lines:
        values = line.split("\t")
        if len(values) == len(header):
            yield dict(zip(header, values, strict=True))


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for line in text_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # ingest would quarantine it; a sample holds only valid rows
        if isinstance(row, dict):
            yield row


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import dataset

    for batch in dataset.dataset(path, format="parquet").to_batches():
        yield from batch.to_pylist()


_READERS = {"tsv": _tsv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}


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
    source_table = require_table(folder, "interactions")
    item_table, user_table = require_table(folder, "items"), find_table(folder, "users")
    num_interactions = Counter(str(row["user_id"]) for row in table_rows(source_table))
    users = choose_users(num_interactions, num_users, seed)
    if not users:
        raise ValueError(
            f"{source_table.path}: none of its {len(num_interactions):,} users has {MIN_INTERACTIONS} interactions"
        )
    kept = [
        {
            "user_id": str(row["user_id"]),
            "item_id": str(row["item_id"]),
            "timestamp": seconds,
            "row_number": row.get("row_number", position),
        }
        for position, row in enumerate(table_rows(source_table), start=1)
        if str(row["user_id"]) in users and (seconds := _seconds(row["timestamp"])) is not None
    ]
    cutoff, latest = suggest_days([float(str(row["timestamp"])) for row in kept])
    touched = {row["item_id"] for row in kept}
    items = [row for row in table_rows(item_table) if str(row["item_id"]) in touched]
    facts = [row for row in table_rows(user_table) if str(row["user_id"]) in users] if user_table else []
    out.mkdir(parents=True, exist_ok=True)
    _write_lines(out / "interactions.jsonl.gz", kept)
    _write_lines(out / "items.jsonl.gz", items)
    if user_table:
        _write_lines(out / "users.jsonl.gz", facts)
    return {
        "users": len(users),
        "items": len(items),
        "interactions": len(kept),
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


def _seconds(value: object) -> str | None:
    """Unix seconds as text, from a number or a parquet time; None for anything else."""
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return str(aware.timestamp())
    if isinstance(value, date):
        return str(datetime.combine(value, time.min, UTC).timestamp())
    try:
        datetime.fromtimestamp(float(str(value)), UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return str(value)


def _write_lines(path: Path, rows: Iterable[Row]) -> None:
    text = "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)
    content = gzip.compress(text.encode(), mtime=0)
    if (
        not path.exists() or path.read_bytes() != content
    ):  # an unchanged file keeps its time, so ingest sees nothing new
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
    say(
        f"sample: {found['qualifying_users']} users have {MIN_INTERACTIONS} interactions up to {found['cutoff']} "
        "and some after it"
    )
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    prepare()
    main()
