"""What a delivery replaces, and what it must hold: its days, every row of its files, and what was ingested before.

Absence is not deletion (docs/data.md). Of days and tables that a source calls complete, only those rows are missing
that it holds and that were refused: it did not say that these were deleted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from grasp.days import end_of, has_ended, plus_days, start_of
from spark_jobs.source.contract import TablePlan
from spark_jobs.source.reader import MARKER

LATE_REASONS = ("too_late", "incomplete_day")
OTHER_FOLDER = "folder_of_another_day"
LEAST_SHARE_OF_ITEMS = 0.5  # a catalogue that loses more than half its items at once has lost its source

_EVENT = ("user_id", "item_id", "event_time")  # what makes two interactions the same


class DeliveryError(ValueError):
    """The source lacks rows, or days, that it should hold; the message has both counts."""


@dataclass(frozen=True)
class RowCount:
    """Number of rows by table, event day and reason; `reason` is None for accepted rows."""

    source_table: str
    day: str | None
    reason: str | None
    num_rows: int


@dataclass(frozen=True)
class DaysRead:
    """Which event days a run replaces: from `first` (None: from the beginning) to `last`.

    If the source names its complete days, only these.
    """

    first: str | None
    last: str
    complete: frozenset[str] | None = None

    def __contains__(self, day: str) -> bool:
        is_between = (self.first is None or day >= self.first) and day <= self.last
        return is_between and (self.complete is None or day in self.complete)

    def since_first(self) -> Column:
        """Whether an event is not before the first day."""
        return F.col("event_time") >= F.lit(start_of(self.first)) if self.first else F.lit(True)


@dataclass(frozen=True)
class Vanished:
    """How much of what was ingested before is missing from the source."""

    group: str
    num_before: int
    num_gone: int

    def of_complete(self, num_refused: int) -> "Vanished":
        """The same for a group that the source calls complete: missing is what it holds and what was refused."""
        return Vanished(f"{self.group} (refused now)", self.num_before, min(self.num_gone, num_refused))

    def is_above(self, limit: float) -> bool:
        """Whether too much is missing. One row may always be, unless it was the only one."""
        is_one_of_many = self.num_gone == 1 < self.num_before
        return self.num_gone > limit * self.num_before and not is_one_of_many


def event_day() -> Column:
    return F.date_format("event_time", "yyyy-MM-dd")


def require_days(complete: frozenset[str], last_ingested: str | None, day: str, folder: Path) -> None:
    """Raise `DeliveryError` unless the complete days of a source include every day since the last ingested one."""
    wanted = plus_days(last_ingested, 1) if last_ingested else day
    while wanted <= day:
        if wanted not in complete:
            held = f"{min(complete)} to {max(complete)}" if complete else "none"
            raise DeliveryError(
                f"{folder}: {wanted} is not among the complete days of this delivery ({held}). Deliver it; if nothing "
                f"happened on it, say so in {folder / MARKER} (docs/data.md)"
            )
        wanted = plus_days(wanted, 1)


@dataclass(frozen=True)
class PartOfPlan:
    """The part of a plan that a run reads, and how many rows lie in the folders that it leaves out."""

    plan: TablePlan
    num_later: int
    num_earlier: int


def leave_folders(
    plan: TablePlan, days: DaysRead, num_ingested: Mapping[str, int | None], clock: datetime
) -> PartOfPlan:
    """Leave out folders of days that a run does not replace, so that its cost does not grow with the history.

    An earlier folder is left out if as many rows of its day were ingested as it holds: then none of them is late.
    A later one is left out if its day is over: then none of its events is in the future.
    """
    num_rows = plan.days or {}
    later = {day for day in num_rows if day > days.last and has_ended(day, clock)}
    earlier = {
        day for day, num in num_rows.items() if day <= days.last and day not in days and num == num_ingested.get(day)
    }
    splits = tuple(split for split in plan.splits if split.day not in later | earlier)
    return PartOfPlan(
        replace(plan, splits=splits),
        sum(num_rows[day] for day in later),
        sum(num_rows[day] for day in earlier),
    )


def placed(checked: DataFrame, days: DaysRead) -> DataFrame:
    """Set `place`: `read` for rows of the days read and those that have no day, else `earlier` or `later`."""
    has_no_day = ~F.col("dated") | F.coalesce(F.col("reason") == OTHER_FOLDER, F.lit(False))
    is_read = days.since_first()
    if days.complete is not None:
        is_read = is_read & event_day().isin([day for day in days.complete if day in days])
    place = (
        F.when(has_no_day, "read")
        .when(F.col("event_time") > F.lit(end_of(days.last)), "later")
        .when(is_read, "read")
        .otherwise("earlier")
    )
    return checked.withColumn("place", place)


def late_rows(checked: DataFrame, ingested: DataFrame, days: DaysRead) -> DataFrame:
    """Valid rows of earlier days that were never ingested, with their reason."""
    earlier = checked.where("place = 'earlier' and reason is null")
    reason = F.when(days.since_first(), "incomplete_day").otherwise("too_late")
    return earlier.join(ingested.select(*_EVENT), list(_EVENT), "left_anti").withColumn("reason", reason)


def vanished_interactions(ingested: DataFrame, accepted: DataFrame) -> dict[str, Vanished]:
    """Number of ingested and of missing interactions, by day."""
    there = accepted.select(*_EVENT, F.lit(True).alias("is_there"))
    compared = ingested.select(*_EVENT).join(there, list(_EVENT), "left").withColumn("day", event_day())
    counted = compared.groupBy("day").agg(F.count("*"), F.count_if(F.col("is_there").isNull()))
    return {day: Vanished(f"interactions of {day}", before, gone) for day, before, gone in sorted(counted.collect())}


def vanished_entities(before: DataFrame, now: DataFrame, group: str) -> Vanished:
    """Number of entities of before and of those that are missing now; both frames hold the key alone."""
    (key,) = before.columns
    compared = before.join(now.withColumn("is_there", F.lit(True)), key, "left")
    num_before, num_gone = compared.agg(F.count("*"), F.count_if(F.col("is_there").isNull())).collect()[0]
    return Vanished(group, num_before, num_gone)


def check_vanished(vanished: list[Vanished], limit: float, folder: Path) -> None:
    """Raise `DeliveryError` if the missing share of a group is above the limit."""
    too_many = [each for each in vanished if each.is_above(limit)]
    if too_many:
        worst = ", ".join(f"{each.num_gone:,} of {each.num_before:,} {each.group}" for each in too_many[:3])
        more = f" and {len(too_many) - 3} more days" if len(too_many) > 3 else ""
        raise DeliveryError(
            f"{folder} lacks what was ingested before: {worst}{more}; a larger share than "
            f"GRASP_MAX_VANISHED_SHARE={limit}. Nothing was replaced. If it was deleted on purpose, confirm with "
            f"GRASP_MAX_VANISHED_SHARE=1 for this run, or in {folder / MARKER} (docs/data.md)"
        )


def require_items(num_items: int, num_before: int, limit: float, path: Path) -> None:
    """Raise `DeliveryError` without any item, or with fewer than half as many as before, also if it is complete.

    All items would be withdrawn, and the release would recommend nothing. A limit above a half confirms a large loss.
    """
    if not num_items:
        raise DeliveryError(f"{path} holds no item that can be used, so there is nothing to recommend")
    if num_items < min(LEAST_SHARE_OF_ITEMS, 1 - limit) * num_before:
        raise DeliveryError(
            f"{path} holds {num_items:,} items, fewer than half of the {num_before:,} before. Nothing was replaced. "
            "If the others were withdrawn on purpose, confirm with GRASP_MAX_VANISHED_SHARE=1 for this run"
        )


def require_all_rows(counts: list[RowCount], elsewhere: int, plans: dict[str, TablePlan]) -> None:
    """Raise `DeliveryError` if a row of the files is not among those counted; `elsewhere`: of other days."""
    for name, plan in plans.items():
        num_found = sum(count.num_rows for count in counts if count.source_table == name)
        num_found += elsewhere if name == "interactions" else 0
        if num_found != plan.num_rows:
            raise DeliveryError(
                f"{plan.table.path} holds {plan.num_rows:,} rows, {num_found:,} were read: the source was changed "
                "meanwhile; run again"
            )
