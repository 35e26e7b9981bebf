"""Build the training set of a day: features as of the end of the cutoff day, and interactions before and after it.

    python -m training.build_training_set --day 1998-04-22 --cutoff 1998-02-28

Reads:   interactions up to `day`; user and item features as of the end of `cutoff`, through Feast
Writes:  <home>/training/<day>/training_set/{users,items,events,log}.parquet

Training and validation targets lie before the cutoff, test events after it. The log holds every interaction. Fresh
features of a test event come from the log up to the day before the event, as the daily refresh would know it. Those of
training and validation events come from training events alone.

One known leak remains: a user's description was written from interactions that include the training targets and the
validation target, which chooses the epoch. `GRASP_USER_HISTORY_HOLDOUT=1` leaves the last interaction, the validation
target, out of the description. A recipe with `user_text="mean_of_prefix_items"` reads no user descriptions. Test events
never leak.
"""

import json
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset

from grasp import partitions, tables
from grasp.days import end_of
from grasp.environment import prepare
from grasp.feature_store import configuration
from grasp.preflight import require_feature_store, require_models
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.versions import Versions, digest, feast_project, feature_service, file_sha256
from training.command import arguments, check_days
from training.data import training_set
from training.data.training_set import INPUTS_FILE, TIMESTAMP, VECTOR_COLUMNS, training_set_folder, write_training_set

if TYPE_CHECKING:
    from feast import FeatureStore

MIN_FOR_VALIDATION = 3  # interactions before the cutoff that a user needs for a validation target
MIN_FOR_TEST = 5  # interactions before the cutoff that a user needs for test events


def assign_splits(interactions: pd.DataFrame, cutoff: datetime) -> pd.DataFrame:
    """Assign each interaction to `train`, `validation` or `test`; sorted by user, time and row number.

    before the cutoff    `train`; but the last one is `validation` if the user has at least three before the cutoff
    after the cutoff     `test` if the user has at least five before the cutoff; otherwise dropped
    """
    events = interactions.sort_values(["user_id", "event_time", "row_number"], ignore_index=True)
    is_before = events["event_time"] <= cutoff
    num_before = is_before.groupby(events["user_id"]).transform("sum")
    from_last = events[is_before].groupby("user_id").cumcount(ascending=False).reindex(events.index)
    is_validation = is_before & (from_last == 0) & (num_before >= MIN_FOR_VALIDATION)
    is_test = ~is_before & (num_before >= MIN_FOR_TEST)
    events["split"] = np.select([is_validation, is_before, is_test], ["validation", "train", "test"], "")
    return events[events["split"] != ""].reset_index(drop=True)


def align_features(keys: Sequence[str], key: str, features: pd.DataFrame, day: str) -> pd.DataFrame:
    """The features in the order of `keys`, exactly one row per key.

    Feast silently drops keys whose features are too old or too new, and returns rows in another order. Raises
    `ValueError` with the number of missing or repeated keys.
    """
    if features[key].duplicated().any():
        raise ValueError(f"Feast returned {features[key].duplicated().sum()} rows twice for {key} as of {day}")
    joined = pd.DataFrame({key: list(keys)}).merge(features, how="left", on=key, validate="one_to_one")
    missing = joined.loc[joined[list(VECTOR_COLUMNS)].isna().any(axis=1), key]
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(joined)} {key}s have no features as of {day}, the first is {missing.iloc[0]!r}: "
            f"run `grasp refresh --day {day}`"
        )
    return joined


def open_feature_store(settings: Settings, feature_version: str) -> "FeatureStore":
    """The Feast store of a feature version, configured by `GRASP_FEATURE_STORE_YAML`."""
    import yaml
    from feast import FeatureStore, RepoConfig

    config = RepoConfig(**yaml.safe_load(configuration(settings)) | {"project": feast_project(feature_version)})
    config.repo_path = settings.feature_store_yaml.parent
    return FeatureStore(config=config)


def features_as_of(
    settings: Settings, user_ids: Sequence[str], item_ids: Sequence[str], cutoff: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """User and item features as of the end of the cutoff day, one row per id in the order of the ids."""
    feature_version = Versions(settings).feature
    store = open_feature_store(settings, feature_version)
    service = store.get_feature_service(feature_service(feature_version))
    item_names = [f"{tables.ITEM_FEATURES.name}:{name}" for name in ("popularity", "is_tail", *VECTOR_COLUMNS)]
    moment = end_of(cutoff)
    result = []
    for key, keys, features in (("user_id", user_ids, service), ("item_id", item_ids, item_names)):
        entities = pd.DataFrame({key: list(keys), "event_timestamp": moment})
        job = store.get_historical_features(entity_df=entities, features=features)
        result.append(align_features(keys, key, job.to_df(), cutoff))
    return result[0], result[1]


def read_interactions(settings: Settings, day: str) -> pd.DataFrame:
    """All interactions up to the end of the day. Raises `FileNotFoundError` if the day has no partition."""
    partitions.require_partition(settings.lake, tables.INTERACTIONS, None, day)
    days = partitions.days(settings.lake, tables.INTERACTIONS, None, until=day)
    rows = [_read_partition(settings, tables.INTERACTIONS, each) for each in days]
    return pa.concat_tables(rows).to_pandas()


def _read_partition(settings: Settings, table: tables.Table, day: str) -> pa.Table:
    path = partitions.require_partition(settings.lake, table, Versions(settings).of(table.versioned_by), day)
    files = sorted(str(file) for file in path.glob("*.parquet"))
    rows = pyarrow.dataset.dataset(files, format="parquet").to_table(columns=list(table.column_names))
    if "event_time" in rows.column_names:
        index = rows.column_names.index("event_time")
        rows = rows.set_column(index, "event_time", rows["event_time"].cast(TIMESTAMP))
    return rows


def build_tables(settings: Settings, day: str, cutoff: str) -> dict[str, pd.DataFrame]:
    """The tables `users`, `items`, `events` and `log` of the training set."""
    interactions = read_interactions(settings, day)
    events = assign_splits(interactions, end_of(cutoff))
    user_ids = sorted(events.loc[events["split"] != "test", "user_id"].unique())
    if not user_ids:
        raise ValueError(f"no interactions up to {cutoff}: choose a later cutoff")
    item_ids = sorted(_read_partition(settings, tables.ITEMS, cutoff)["item_id"].to_pylist())
    users, items = features_as_of(settings, user_ids, item_ids, cutoff)
    unknown = set(events.loc[events["split"] != "test", "item_id"]) - set(item_ids)
    if unknown:
        raise ValueError(
            f"{len(unknown)} items of interactions up to {cutoff} are not in the catalogue, such as {min(unknown)!r}"
        )
    log = interactions.sort_values(["user_id", "event_time", "row_number"], ignore_index=True)
    return {"users": users, "items": items, "events": events, "log": log}


def fingerprint(settings: Settings, day: str, cutoff: str) -> str:
    """SHA-256 of everything the training set depends on."""
    versions = Versions(settings)
    wanted = ((tables.INTERACTIONS, day), *((t, cutoff) for t in (tables.ITEMS, *tables.FEATURE_VIEWS)))
    states = {
        table.name: partitions.state_hashes(settings.lake, table, versions.of(table.versioned_by), each)
        for table, each in wanted
    }
    code = [file_sha256(Path(__file__)), file_sha256(Path(training_set.__file__))]
    return digest([day, cutoff, versions.feature, code, states])


def _say_counts(frames: dict[str, pd.DataFrame]) -> None:
    events = frames["events"]
    count = events["split"].value_counts()
    test = events[events["split"] == "test"]
    unknown = (~test["item_id"].isin(frames["items"]["item_id"])).sum()
    # The first interaction of a user is not a target.
    num_targets = count.get("train", 0) - events.loc[events["split"] == "train", "user_id"].nunique()
    say(
        f"training set: {len(frames['users']):,} users, {len(frames['items']):,} items, {num_targets:,} training "
        f"targets, {count.get('validation', 0):,} validation targets"
    )
    say(
        f"training set: {len(test):,} test events of {test['user_id'].nunique():,} users; "
        f"{unknown:,} have items unknown at the cutoff and count as misses"
    )


def main(arguments_given: Any = None) -> None:
    given = arguments(__doc__).parse_args(arguments_given)
    started = time.monotonic()
    try:
        settings = Settings.load()
        check_days(given.day, given.cutoff)
        inputs, target = fingerprint(settings, given.day, given.cutoff), training_set_folder(settings, given.day)
        if (target / INPUTS_FILE).is_file() and json.loads((target / INPUTS_FILE).read_text())["fingerprint"] == inputs:
            say(f"training set {given.day}: unchanged")
            return
        frames = build_tables(settings, given.day, given.cutoff)
        write_training_set(target, frames, inputs, given.cutoff)
    except (SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    _say_counts(frames)
    say(f"training set {given.day}: done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    prepare(require_models, require_feature_store)
    main()
