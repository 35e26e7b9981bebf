"""Where a table's partition lies and what it holds, without reading its rows.

Next to its parquet files every partition has `_content.json`: the number of rows and a hash of the rows. Partitions
with equal hashes hold the same rows, whatever their files look like. Stages compare these hashes to find changes.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from grasp.tables import Table

CONTENT_FILE = "_content.json"
FINISHED_FILES = "[!._]*.parquet"  # the name of a file that is being written begins with a dot
_ASIDE = ".replaced-"  # readers of parquet folders skip names that begin with a dot


@dataclass(frozen=True)
class Content:
    """Number and hash of a partition's rows. `hash` ignores row order, file layout and `computed_at`."""

    num_rows: int
    hash: str


class MissingPartitionError(FileNotFoundError):
    """A table has no data for the day; the message names table, day and the command that makes it."""


def table_path(lake: Path, table: Table, version: str | None) -> Path:
    if (table.versioned_by is None) != (version is None):
        raise ValueError(f"{table.name} is versioned by {table.versioned_by}, got version {version!r}")
    return lake / table.name / f"version={version}" if version else lake / table.name


def partition_path(lake: Path, table: Table, version: str | None, day: str) -> Path:
    return table_path(lake, table, version) / f"day={day}"


def days(lake: Path, table: Table, version: str | None, until: str | None = None) -> list[str]:
    """Days with a complete partition, or with any file of an appended table; sorted, up to and including `until`."""
    file = FINISHED_FILES if table.appended else CONTENT_FILE
    known = sorted(
        {path.parent.name.removeprefix("day=") for path in table_path(lake, table, version).glob(f"day=*/{file}")}
    )
    return [day for day in known if until is None or day <= until]


def latest_day(lake: Path, table: Table, version: str | None, until: str | None = None) -> str | None:
    known = days(lake, table, version, until)
    return known[-1] if known else None


def read_content(partition: Path) -> Content | None:
    """Number and hash of the partition's rows, or None if it does not exist."""
    file = partition / CONTENT_FILE
    return Content(**json.loads(file.read_text())) if file.exists() else None


def write_content(partition: Path, content: Content) -> None:
    (partition / CONTENT_FILE).write_text(json.dumps(asdict(content)))


def put_in_place(staged: Path, target: Path) -> None:
    """Replace a partition by a staged folder on the same file system.

    The old partition is moved aside and deleted once the new one is in place. `recover` moves it back after a crash.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{_ASIDE}{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    try:
        staged.rename(target)
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def recover(lake: Path) -> None:
    """Put back partitions that a killed process moved aside and did not replace."""
    for aside in [*lake.glob(f"*/{_ASIDE}day=*"), *lake.glob(f"*/version=*/{_ASIDE}day=*")]:
        target = aside.with_name(aside.name.removeprefix(_ASIDE))
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)


def require_partition(lake: Path, table: Table, version: str | None, day: str) -> Path:
    """The partition's folder; raises `MissingPartitionError` if the day was never written."""
    path = partition_path(lake, table, version, day)
    if not (path / CONTENT_FILE).exists():
        known = days(lake, table, version)
        have = f"it has {known[0]} to {known[-1]}" if known else "it has no day yet"
        raise MissingPartitionError(
            f"table {table.name} has no partition for {day} ({have}); run `grasp refresh --day {day}`"
        )
    return path


def state_hashes(lake: Path, table: Table, version: str | None, day: str) -> dict[str, str]:
    """Content hashes that a stage of `day` depends on: a delta table's days up to `day`, or a state table's day."""
    wanted = days(lake, table, version, until=day) if table.delta else [day]
    contents = {each: read_content(partition_path(lake, table, version, each)) for each in wanted}
    return {each: content.hash for each, content in contents.items() if content}
