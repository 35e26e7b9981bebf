"""Put one day's features online: `python -m feature_repo.materialise --day D [--rollback]`.

Reads:   user_features, item_features of the day
Writes:  Feast's registry and online store; `$GRASP_HOME/feast/online-<feature version>.json`

Afterwards the online store holds exactly the day's rows: an entity that the day does not know any more (withdrawn,
erased, or not yet there on an earlier day) is overwritten with nulls and reads like one that never existed. Which ids
may be online is known from the JSON file. Where there is none, and on the way back, since a writer on another host may
have put a later day online, every id of any day of the lake is looked for as well.

Feast's stores keep whatever is written last, so the order is guarded here. By the JSON file: a day before the one
online is left alone, and features older than GRASP_MAX_FEATURE_AGE_HOURS are refused. By the store itself: before the
first row is written every row online is asked for its time, and a newer one ends the run, which tells of a JSON file
that was lost or of a writer elsewhere. `--rollback` lifts all three: it puts the named day online whatever is there,
and so also refills an online store that was lost.

Rows go from parquet to the store in batches (`online_write_batch_size` of the configuration), so memory holds one
batch and the day's ids. A run that dies is simply run again.
"""

import argparse
import json
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from feature_repo.online import forget, read_keys, read_versions, write_rows
from feature_repo.store import open_store, read_config
from grasp import partitions, tables
from grasp.days import age_hours, day_argument, end_of, start_of
from grasp.files import held, write_json
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.tables import Table
from grasp.versions import Versions, digest, file_sha256

if TYPE_CHECKING:
    from feast import FeatureStore

VIEWS = (tables.USER_FEATURES, tables.ITEM_FEATURES)
NUM_PROGRESS_LINES = 10  # at most, for each table
SQLITE_WAIT_SECONDS = 30


class StaleFeaturesError(ValueError):
    """The day's features are older than GRASP_MAX_FEATURE_AGE_HOURS."""


class NewerOnlineError(ValueError):
    """The online store holds rows of a later day than the one to be written."""


class IncompleteError(ValueError):
    """What is to be written or what is online after the write is not what the day holds."""


@dataclass(frozen=True)
class OnlineState:
    """What the online store of one feature version holds."""

    day: str
    complete: bool  # False while a day is being written, and after a run that died on the way
    hashes: dict[str, str]  # table -> content hash of the day
    definitions: str  # hash of what was registered
    keys: dict[str, list[str]]  # table -> ids that may have a row online


def materialise(settings: Settings, feature_version: str, day: str, rollback: bool = False) -> bool:
    """Put the day online; returns False when there is nothing to do.

    Raises `StaleFeaturesError`, `NewerOnlineError`, `IncompleteError` or `MissingPartitionError`; then the state file
    still names the day as incomplete, or was not touched, and the same command may simply be run again.
    """
    hashes = {table.name: _content_hash(settings, table, feature_version, day) for table in VIEWS}
    # One writer at a time; a second one waits and then finds the work done.
    with held(settings.home / "feast" / "materialise.lock", f"materialise {day}: waiting for another run to end"):
        state = read_state(settings, feature_version)
        if not rollback and state and _is_settled(settings, state, day, hashes):
            return False
        if not rollback:
            check_age(settings, day)
        _write_day(settings, feature_version, day, hashes, state, may_go_back=rollback)
    return True


def check_age(settings: Settings, day: str) -> None:
    """Age is the clock minus the end of the day, which is the event timestamp of its rows."""
    hours = age_hours(day, settings.clock())
    if hours > settings.max_feature_age_hours:
        raise StaleFeaturesError(
            f"features of {day} are {hours:.0f} h old, GRASP_MAX_FEATURE_AGE_HOURS is "
            f"{settings.max_feature_age_hours:g}: run daily_refresh for a later day, or pass --rollback to serve them"
        )


def state_file(settings: Settings, feature_version: str) -> Path:
    return settings.home / "feast" / f"online-{feature_version}.json"


def read_state(settings: Settings, feature_version: str) -> OnlineState | None:
    """Raises `ValueError` that names the file when it is damaged."""
    file = state_file(settings, feature_version)
    try:
        return OnlineState(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it and materialise with --rollback") from error


def _is_settled(settings: Settings, state: OnlineState, day: str, hashes: dict[str, str]) -> bool:
    """True, and said, when the online store already holds this day or a later one."""
    if day < state.day:
        say(f"materialise {day}: {state.day} is online, left alone (--rollback puts {day} online)")
        return True
    if day == state.day and state.complete and (state.hashes, state.definitions) == (hashes, _definitions(settings)):
        say(f"materialise {day}: online already, nothing changed")
        return True
    return False


def _write_day(
    settings: Settings,
    feature_version: str,
    day: str,
    hashes: dict[str, str],
    before: OnlineState | None,
    *,
    may_go_back: bool,
) -> None:
    started = time.monotonic()
    ids = {table.name: _ids(settings, table, feature_version, day) for table in VIEWS}
    registered = before.definitions if before else None
    target = OnlineState(day, True, hashes, _definitions(settings), ids)
    store = open_for_writing(settings, feature_version, apply=registered != target.definitions)
    known = {table.name: set(before.keys.get(table.name, []) if before else []) for table in VIEWS}
    if may_go_back or before is None:
        for table in VIEWS:
            known[table.name] |= _online_of_any_day(settings, feature_version, store, table)
    gone = {name: sorted(known[name] - set(ids[name])) for name in ids}
    if not may_go_back:
        for table in VIEWS:
            _refuse_newer(store, table, [*ids[table.name], *gone[table.name]], day)
    # Said before the first row is written: after a crash the file names the day and every id that may be online.
    writing = replace(target, complete=False, keys={name: [*ids[name], *gone[name]] for name in ids})
    _write_state(settings, feature_version, writing)

    for table in VIEWS:
        partition = partitions.partition_path(settings.lake, table, feature_version, day)
        write_rows(store, table, partition, _progress(day, table, len(ids[table.name])))
        forget(store, table, gone[table.name], end_of(day))
        _check_arrived(store, table, ids[table.name], gone[table.name], (feature_version, int(end_of(day).timestamp())))
        forgotten = f", {len(gone[table.name])} forgotten" if gone[table.name] else ""
        say(f"materialise {day}: {table.name} {len(ids[table.name])} rows in, as many online{forgotten}")
        view = store.get_feature_view(table.name)
        store.registry.apply_materialization(view, store.project, start_of(day), end_of(day))
    _write_state(settings, feature_version, target)
    say(f"materialise {day}: {feature_version} online in {time.monotonic() - started:.1f} s")


def _online_of_any_day(settings: Settings, feature_version: str, store: "FeatureStore", table: Table) -> set[str]:
    """Ids of all days of the lake that have a row online, whoever wrote it."""
    days = partitions.days(settings.lake, table, feature_version)
    places = [partitions.partition_path(settings.lake, table, feature_version, each) for each in days]
    ids = {each for place in places for each in read_keys(place, table)}
    return {each for each, row in read_versions(store, table, sorted(ids)).items() if row}


def open_for_writing(settings: Settings, feature_version: str, apply: bool) -> "FeatureStore":
    """The store, with the definitions registered when `apply` asks for it."""
    from feature_repo.features import definitions  # Feast takes eight seconds to import

    store = open_store(settings, feature_version)
    if apply:
        if store.config.online_store.type == "sqlite":
            _let_readers_read(Path(store.config.online_store.path))
        store.apply(definitions(settings, feature_version, store.config.offline_store.type))
        say(f"materialise: definitions of {feature_version} registered in project {store.project}")
    return store


def _let_readers_read(database: Path) -> None:
    """In SQLite's write-ahead mode, which stays with the file, a writer never blocks serving's reads."""
    with closing(sqlite3.connect(database, timeout=SQLITE_WAIT_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _progress(day: str, table: Table, num_rows: int) -> Callable[[int], None]:
    """Says how far the table is, whenever another tenth is online."""
    num_lines = 0

    def say_done(num_done: int) -> None:
        nonlocal num_lines
        if num_done < num_rows and num_done * NUM_PROGRESS_LINES >= (num_lines + 1) * num_rows:
            num_lines = num_done * NUM_PROGRESS_LINES // num_rows
            say(f"materialise {day}: {table.name} {num_done:,} of {num_rows:,} rows")

    return say_done


def _refuse_newer(store: "FeatureStore", table: Table, ids: list[str], day: str) -> None:
    """A row online that is newer than the day, forgotten ones included, ends the run before anything is written."""
    limit = int(end_of(day).timestamp())
    newer = {each: row[1] for each, row in read_versions(store, table, ids).items() if row and row[1] > limit}
    if newer:
        example, seconds = next(iter(newer.items()))
        raise NewerOnlineError(
            f"{table.name}: {len(newer)} rows online are newer than {day}, such as {example} of "
            f"{datetime.fromtimestamp(seconds, UTC).date()}: nothing was written (--rollback puts {day} online)"
        )


def _check_arrived(store: "FeatureStore", table: Table, ids: list[str], gone: list[str], row: tuple[str, int]) -> None:
    """Read every id back: each of the day is there with the version and time of `row`, and what is gone is unknown."""
    online = read_versions(store, table, [*ids, *gone])
    missing = [each for each in ids if online[each] != row]
    if missing:
        raise IncompleteError(
            f"{table.name}: {len(ids)} rows in, {len(ids) - len(missing)} online; {missing[0]} is missing: "
            "materialise again"
        )
    left = [each for each in gone if (online[each] or ("", 0))[0]]
    if left:
        raise IncompleteError(f"{table.name}: {len(left)} rows of other days are still online, such as {left[0]}")


def _content_hash(settings: Settings, table: Table, feature_version: str, day: str) -> str:
    content = partitions.read_content(partitions.require_partition(settings.lake, table, feature_version, day))
    return content.hash if content else ""


def _ids(settings: Settings, table: Table, feature_version: str, day: str) -> list[str]:
    """Ids of the day's rows; raises `IncompleteError` for a row that is not stamped with the end of the day."""
    moments = read_keys(partitions.partition_path(settings.lake, table, feature_version, day), table)
    strange = [each for each, moment in moments.items() if moment != end_of(day)]
    if strange:
        raise IncompleteError(
            f"{table.name} of {day}: {len(strange)} of {len(moments)} rows have another event_timestamp than the end "
            f"of the day, such as {strange[0]}: run build_features for {day} again"
        )
    return list(moments)


def _definitions(settings: Settings) -> str:
    """Hash of everything `features.definitions` and the store's configuration depend on."""
    return digest(
        [
            file_sha256(Path(__file__).with_name("features.py")),
            read_config(settings),
            [asdict(table) for table in VIEWS],
            [str(settings.lake), settings.max_feature_age_hours],
        ]
    )


def _write_state(settings: Settings, feature_version: str, state: OnlineState) -> None:
    write_json(state_file(settings, feature_version), asdict(state))


def main() -> None:
    parser = argparse.ArgumentParser(prog="feature_repo.materialise", description=__doc__)
    parser.add_argument("--day", type=day_argument, required=True, help="UTC day to put online, YYYY-MM-DD")
    parser.add_argument("--rollback", action="store_true", help="put the day online even over a later one")
    arguments = parser.parse_args()
    try:
        settings = Settings.load()
        materialise(settings, Versions(settings).feature, arguments.day, arguments.rollback)
    except (SettingsError, ValueError, FileNotFoundError) as error:
        say(f"materialise {arguments.day}: failed: {error}")
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
