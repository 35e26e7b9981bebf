"""Put one day's features online: `grasp materialise --day D [--rollback]`.

Reads:   user_features of the day
Writes:  Feast's registry and online store; `$GRASP_HOME/feast/online-<feature version>.json`

Item features stay offline: a ranker holds its release's items in memory.

Afterwards the online store holds exactly the day's rows. An entity that is not in the day (withdrawn, erased, or not
yet known on an earlier day) is overwritten with nulls and reads like one that never existed. The JSON file lists the
ids that may be online. Without the file, and on a rollback, the ids of all days of the lake are checked as well: a
writer on another host may have put a later day online.

Feast's stores keep whatever is written last, so this job guards the order:
* The JSON file names the day online; an earlier day is not written.
* Stale features are refused (GRASP_MAX_FEATURE_AGE_HOURS).
* Before the first write, the time of every online row is read; a newer row ends the run. It means that the JSON file
  was lost or that another host writes.
`--rollback` lifts all three and puts the named day online whatever is there. It also refills a lost online store.

At the end the rows of feature versions that no release on disk has are removed.

Rows go from parquet to the store in batches (`online_write_batch_size` of the configuration), so memory holds one
batch and the day's ids. If a run dies, run it again.
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

from feature_repo.feast_store import open_store, read_config
from feature_repo.online_expiry import remove_expired, remove_rows, state_file
from feature_repo.online_rows import clear_rows, read_keys, read_versions, write_rows
from grasp import partitions, tables
from grasp.days import age_hours, day_argument, end_of, last_second, start_of
from grasp.environment import prepare
from grasp.files import file_lock, write_json
from grasp.preflight import require_feature_store, require_models
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.tables import Table
from grasp.versions import Versions, digest, file_sha256

if TYPE_CHECKING:
    from feast import FeatureStore

NUM_PROGRESS_LINES = 10  # at most, per table
SQLITE_WAIT_SECONDS = 30


class StaleFeaturesError(ValueError):
    """The day's features are stale by GRASP_MAX_FEATURE_AGE_HOURS."""


class NewerOnlineError(ValueError):
    """The online store holds rows of a later day than the one to be written."""


class IncompleteError(ValueError):
    """The rows to write, or the rows online after the write, are not those of the day."""


@dataclass(frozen=True)
class OnlineState:
    """What the online store of one feature version holds."""

    day: str
    complete: bool  # False while a day is being written, and after a run that died
    hashes: dict[str, str]  # table -> content hash of the day
    definitions: str  # hash of what was registered
    keys: dict[str, list[str]]  # table -> ids that may have a row online


def materialise(settings: Settings, feature_version: str, day: str, rollback: bool = False) -> bool:
    """Put the day online; returns False when there is nothing to do.

    Raises `StaleFeaturesError`, `NewerOnlineError`, `IncompleteError` or `MissingPartitionError`. The state file then
    says that the day is incomplete, or is unchanged, and the same command may be run again.
    """
    hashes = {table.name: _content_hash(settings, table, feature_version, day) for table in tables.ONLINE_VIEWS}
    # One writer at a time. A second one waits, then finds nothing left to do.
    with file_lock(settings.home / "feast" / "materialise.lock", f"materialise {day}: waiting for another run to end"):
        state = read_state(settings, feature_version)
        if not rollback and state and _is_done(settings, state, day, hashes):
            return False
        if not rollback:
            check_age(settings, day)
        _write_day(settings, feature_version, day, hashes, state, may_go_back=rollback)
        remove_expired(settings, feature_version)
    return True


def check_age(settings: Settings, day: str) -> None:
    """Raise `StaleFeaturesError` when the day's features are stale by GRASP_MAX_FEATURE_AGE_HOURS."""
    hours = age_hours(day, settings.clock())
    if hours > settings.stale_after_hours:
        raise StaleFeaturesError(
            f"{settings.stale_message(day, hours)}: run `grasp refresh` for a later day, "
            "or pass --rollback to serve them"
        )


def read_state(settings: Settings, feature_version: str) -> OnlineState | None:
    """Raises `ValueError` that names the file when it is damaged."""
    file = state_file(settings, feature_version)
    try:
        return OnlineState(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it and materialise with --rollback") from error


def _is_done(settings: Settings, state: OnlineState, day: str, hashes: dict[str, str]) -> bool:
    """True when the online store already holds this day or a later one; logs which."""
    if day < state.day:
        say(f"materialise {day}: skipped, {state.day} is online (--rollback puts {day} online)")
        return True
    if (
        day == state.day
        and state.complete
        and (state.hashes, state.definitions) == (hashes, _definitions_hash(settings))
    ):
        say(f"materialise {day}: already online, nothing changed")
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
    ids = {table.name: _ids(settings, table, feature_version, day) for table in tables.ONLINE_VIEWS}
    registered = before.definitions if before else None
    target = OnlineState(day, True, hashes, _definitions_hash(settings), ids)
    # Applying also makes the tables of a store that was lost.
    store = open_for_writing(settings, feature_version, apply=may_go_back or registered != target.definitions)
    known = {table.name: set(before.keys.get(table.name, []) if before else []) for table in tables.ONLINE_VIEWS}
    if may_go_back or before is None:
        for table in tables.ONLINE_VIEWS:
            known[table.name] |= _online_of_any_day(settings, feature_version, store, table)
    gone = {name: sorted(known[name] - set(ids[name])) for name in ids}
    if not may_go_back:
        for table in tables.ONLINE_VIEWS:
            _refuse_newer(store, table, [*ids[table.name], *gone[table.name]], day)
    # Recorded before the first write: after a crash the file names the day and every id that may be online.
    writing = replace(target, complete=False, keys={name: [*ids[name], *gone[name]] for name in ids})
    _write_state(settings, feature_version, writing)

    for table in tables.ONLINE_VIEWS:
        partition = partitions.partition_path(settings.lake, table, feature_version, day)
        write_rows(store, table, partition, _progress(day, table, len(ids[table.name])))
        clear_rows(store, table, gone[table.name], last_second(day))
        _check_arrived(
            store, table, ids[table.name], gone[table.name], (feature_version, int(last_second(day).timestamp()))
        )
        cleared = f", {len(gone[table.name])} cleared" if gone[table.name] else ""
        say(f"materialise {day}: {table.name} {len(ids[table.name])} rows written and read back{cleared}")
        view = store.get_feature_view(table.name)
        store.registry.apply_materialization(view, store.project, start_of(day), end_of(day))
    _write_state(settings, feature_version, target)
    say(f"materialise {day}: {feature_version} online in {time.monotonic() - started:.1f} s")


def _online_of_any_day(settings: Settings, feature_version: str, store: "FeatureStore", table: Table) -> set[str]:
    """Ids of all days of the lake that have a row online."""
    days = partitions.days(settings.lake, table, feature_version)
    folders = [partitions.partition_path(settings.lake, table, feature_version, each) for each in days]
    ids = {each for folder in folders for each in read_keys(folder, table)}
    return {each for each, row in read_versions(store, table, sorted(ids)).items() if row}


def open_for_writing(settings: Settings, feature_version: str, apply: bool) -> "FeatureStore":
    """Open the store; with `apply`, register the definitions first."""
    from feature_repo.features import definitions  # Feast takes eight seconds to import

    store = open_store(settings, feature_version)
    if apply:
        if store.config.online_store.type == "sqlite":
            _use_write_ahead_log(Path(store.config.online_store.path))
        store.apply(definitions(settings, feature_version, store.config.offline_store.type))
        remove_rows(store, [view for view in store.list_feature_views() if not view.online])
        say(f"materialise: definitions of {feature_version} registered in project {store.project}")
    return store


def _use_write_ahead_log(database: Path) -> None:
    """Set SQLite's write-ahead mode, in which a writer never blocks serving's reads. The file keeps the mode."""
    with closing(sqlite3.connect(database, timeout=SQLITE_WAIT_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _progress(day: str, table: Table, num_rows: int) -> Callable[[int], None]:
    """A function that logs progress after each tenth of the table."""
    num_lines = 0

    def say_done(num_done: int) -> None:
        nonlocal num_lines
        if num_done < num_rows and num_done * NUM_PROGRESS_LINES >= (num_lines + 1) * num_rows:
            num_lines = num_done * NUM_PROGRESS_LINES // num_rows
            say(f"materialise {day}: {table.name} {num_done:,} of {num_rows:,} rows")

    return say_done


def _refuse_newer(store: "FeatureStore", table: Table, ids: list[str], day: str) -> None:
    """Raise `NewerOnlineError`, before anything is written, if a row online is newer than the day, cleared ones too."""
    limit = int(last_second(day).timestamp())
    newer = {each: row[1] for each, row in read_versions(store, table, ids).items() if row and row[1] > limit}
    if newer:
        example, seconds = next(iter(newer.items()))
        raise NewerOnlineError(
            f"{table.name}: {len(newer)} rows online are newer than {day}, such as {example} of "
            f"{datetime.fromtimestamp(seconds, UTC).date()}: nothing was written (--rollback puts {day} online)"
        )


def _check_arrived(store: "FeatureStore", table: Table, ids: list[str], gone: list[str], row: tuple[str, int]) -> None:
    """Read every id back. The day's ids must have the version and time of `row`; ids in `gone` must be cleared."""
    online = read_versions(store, table, [*ids, *gone])
    missing = [each for each in ids if online[each] != row]
    if missing:
        raise IncompleteError(
            f"{table.name}: {len(ids)} rows written, {len(ids) - len(missing)} online; {missing[0]} is missing: "
            "materialise again"
        )
    left = [each for each in gone if (online[each] or ("", 0))[0]]
    if left:
        raise IncompleteError(f"{table.name}: {len(left)} rows of other days are still online, such as {left[0]}")


def _content_hash(settings: Settings, table: Table, feature_version: str, day: str) -> str:
    content = partitions.read_content(partitions.require_partition(settings.lake, table, feature_version, day))
    return content.hash if content else ""


def _ids(settings: Settings, table: Table, feature_version: str, day: str) -> list[str]:
    """Ids of the day's rows; raises `IncompleteError` if an event timestamp is not in the last second of the day."""
    moments = read_keys(partitions.partition_path(settings.lake, table, feature_version, day), table)
    wrong = [each for each, moment in moments.items() if moment.replace(microsecond=0) != last_second(day)]
    if wrong:
        raise IncompleteError(
            f"{table.name} of {day}: {len(wrong)} of {len(moments)} rows have another event_timestamp than the last "
            f"second of the day, such as {wrong[0]}: run build_features for {day} again"
        )
    return list(moments)


def _definitions_hash(settings: Settings) -> str:
    """Hash of everything that `features.definitions` and the store's configuration depend on."""
    return digest(
        [
            file_sha256(Path(__file__).with_name("features.py")),
            read_config(settings),
            [(asdict(table), table in tables.ONLINE_VIEWS) for table in tables.FEATURE_VIEWS],
            [str(settings.lake), settings.stale_after_hours],
        ]
    )


def _write_state(settings: Settings, feature_version: str, state: OnlineState) -> None:
    write_json(state_file(settings, feature_version), asdict(state))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="grasp materialise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    prepare(require_models, require_feature_store)
    main()
