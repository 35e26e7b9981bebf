"""The online store holds exactly one day, never an older one by accident; an error says when it does not."""

import json
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from feature_repo.materialise import (
    IncompleteError,
    NewerOnlineError,
    StaleFeaturesError,
    check_age,
    materialise,
    read_state,
)
from feature_repo.online_expiry import state_file
from grasp import tables
from grasp.days import end_of
from grasp.manifest import release_folder
from grasp.partitions import MissingPartitionError
from grasp.settings import ROOT, Settings
from grasp.versions import Versions

DAY, NEXT = "1998-03-01", "1998-03-02"


def put(settings, day, rollback=False):
    return materialise(settings, Versions(settings).feature, day, rollback)


def look_up(settings, ids, features=("description",)):
    """Values of the features for each id, None for an unknown one."""
    from feature_repo.feast_store import open_store

    store = open_store(settings, Versions(settings).feature)
    answer = store.get_online_features([f"user_features:{name}" for name in features], [{"user_id": i} for i in ids])
    values = answer.to_dict()
    return [tuple(values[name][row] for name in features) for row in range(len(ids))]


@pytest.mark.parametrize(("hours", "fresh"), [(24, True), (48.5, True), (26 + 48, True), (26 + 49, False)])
def test_features_are_refused_48_hours_after_their_next_refresh_was_due(settings_with, hours, fresh):
    settings = settings_with(now=end_of(DAY) + timedelta(hours=hours))
    if fresh:
        check_age(settings, DAY)
    else:
        with pytest.raises(StaleFeaturesError, match="1998-03-01 are 75 h old: stale, 74 h is the limit"):
            check_age(settings, DAY)


def test_the_clock_of_the_age_is_the_setting(two_days, environment):
    """The whole command, refused before Feast is imported."""
    now = (end_of(DAY) + timedelta(hours=75)).isoformat()
    command = [sys.executable, "-m", "feature_repo.materialise", "--day", DAY]
    result = subprocess.run(command, env=environment | {"GRASP_NOW": now}, capture_output=True, text=True)
    assert result.returncode == 1
    assert "features of 1998-03-01 are 75 h old" in result.stderr


def test_all_rows_of_a_day_arrive(two_days, capsys):
    settings = two_days.settings
    assert put(settings, DAY)
    assert look_up(settings, ["u1", "u2", "u3", "u4"]) == [(f"u{n} on {DAY}",) for n in (1, 2, 3)] + [(None,)]
    assert "user_features 3 rows written and read back" in capsys.readouterr().out
    state = read_state(settings, Versions(settings).feature)
    assert (state.day, state.complete) == (DAY, True)


def test_every_type_of_value_reads_back_unchanged(small_lake):
    """Production encoders are wider than the demo's: 1536 numbers through Feast and back."""
    small_lake.write_features(DAY, dimension=1536)
    put(small_lake.settings, DAY)
    names = [
        column.name for column in tables.USER_FEATURES.columns if column.name not in ("user_id", "event_timestamp")
    ]
    (online,) = look_up(small_lake.settings, ["u2"], names)
    offline = small_lake.rows(tables.USER_FEATURES, DAY)[1]
    values = dict(zip(names, online, strict=True))
    assert len(values["semantic_embedding"]) == 1536
    # Feast keeps whole seconds of a time.
    assert values.pop("computed_at") == offline["computed_at"].replace(microsecond=0)
    assert values == {name: offline[name] for name in values}


def test_the_next_day_replaces_the_rows_and_clears_those_of_users_who_left(two_days):
    settings = two_days.settings
    put(settings, DAY)
    two_days.write_features(NEXT, users=["u1", "u4"])
    put(settings, NEXT)
    assert look_up(settings, ["u1", "u2", "u4"]) == [(f"u1 on {NEXT}",), (None,), (f"u4 on {NEXT}",)]


def test_an_older_day_never_overwrites_a_newer_one(two_days, capsys):
    settings = two_days.settings
    put(settings, NEXT)
    assert not put(settings, DAY)
    assert look_up(settings, ["u1"]) == [(f"u1 on {NEXT}",)]
    assert "skipped, 1998-03-02 is online" in capsys.readouterr().out


def test_a_rollback_puts_exactly_the_older_day_online(two_days):
    """Whoever came only later reads as unknown again."""
    settings = two_days.settings
    two_days.write_features(NEXT, users=["u1", "u2", "u3", "u4"])
    put(settings, NEXT)
    put(settings, DAY, rollback=True)
    assert look_up(settings, ["u1", "u4"]) == [(f"u1 on {DAY}",), (None,)]
    assert read_state(settings, Versions(settings).feature).day == DAY


def test_a_rollback_may_be_stale(two_days, settings_with):
    settings = settings_with(now=end_of(DAY) + timedelta(days=30))
    with pytest.raises(StaleFeaturesError):
        put(settings, DAY)
    put(settings, DAY, rollback=True)
    assert look_up(settings, ["u1"]) == [(f"u1 on {DAY}",)]


def test_a_corrected_row_of_the_same_day_arrives(two_days):
    settings = two_days.settings
    put(settings, DAY)
    two_days.change(tables.USER_FEATURES, DAY, 0, description="corrected")
    assert put(settings, DAY)
    assert look_up(settings, ["u1"]) == [("corrected",)]


def test_a_half_written_day_is_written_again_and_still_blocks_older_days(two_days):
    settings = two_days.settings
    version = Versions(settings).feature
    put(settings, NEXT)
    file = state_file(settings, version)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"complete": False}))
    assert not put(settings, DAY)
    assert put(settings, NEXT)
    assert read_state(settings, version).complete


def test_a_row_with_another_event_timestamp_is_refused(two_days):
    two_days.change(tables.USER_FEATURES, DAY, 1, event_timestamp=end_of("1998-02-01"))
    with pytest.raises(IncompleteError, match=r"1 of 3 rows have another event_timestamp .*, such as u2"):
        put(two_days.settings, DAY)
    assert read_state(two_days.settings, Versions(two_days.settings).feature) is None


def test_an_older_day_is_refused_when_the_state_was_lost(two_days):
    settings = two_days.settings
    put(settings, NEXT)
    state_file(settings, Versions(settings).feature).unlink()
    with pytest.raises(NewerOnlineError, match="3 rows online are newer than 1998-03-01, such as u1 of 1998-03-02"):
        put(settings, DAY)
    assert look_up(settings, ["u1"]) == [(f"u1 on {NEXT}",)]
    assert put(settings, NEXT)


def test_a_long_table_logs_its_progress(two_days, settings_with, tmp_path, capsys):
    """Batches of one row: 1 and 2 of 3."""
    file = tmp_path / "small_batches.yaml"
    text = (ROOT / "feature_repo" / "feature_store.embedded.yaml").read_text()
    file.write_text(text.replace("online_write_batch_size: 200", "online_write_batch_size: 1"))
    settings = settings_with(feature_store_yaml=str(file))
    put(settings, DAY)
    said = capsys.readouterr().out
    assert [f"user_features {number} of 3 rows" in said for number in (1, 2, 3)] == [True, True, False]
    assert look_up(settings, ["u1", "u3"]) == [(f"u1 on {DAY}",), (f"u3 on {DAY}",)]


def test_a_day_without_features_says_what_to_run(small_lake):
    with pytest.raises(MissingPartitionError, match="user_features has no partition for 1998-03-01"):
        put(small_lake.settings, DAY)


def test_a_second_run_ends_before_feast_is_imported(two_days, environment):
    put(two_days.settings, DAY)
    command = [sys.executable, "-X", "importtime", "-m", "feature_repo.materialise", "--day", DAY]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "materialise 1998-03-01: already online, nothing changed" in result.stdout
    assert " feast" not in result.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 5  # under a second where nothing else runs


def test_a_read_succeeds_while_a_day_is_written(two_days):
    """SQLite's write-ahead mode: an open write transaction holds nobody up."""
    put(two_days.settings, DAY)
    with sqlite3.connect(two_days.settings.home / "feast" / "online.db", isolation_level=None) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        assert look_up(two_days.settings, ["u1"]) == [(f"u1 on {DAY}",)]
        assert time.monotonic() - started < 2
        writer.execute("ROLLBACK")


def test_a_damaged_state_names_its_file(two_days):
    file = state_file(two_days.settings, Versions(two_days.settings).feature)
    file.parent.mkdir(parents=True)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"online-v\d+_\w+\.json is damaged"):
        put(two_days.settings, DAY)


def test_a_missing_variable_of_the_store_is_named(two_days, settings_with, tmp_path):
    yaml = tmp_path / "store.yaml"
    yaml.write_text("project: grasp\nprovider: local\nregistry: ${NO_SUCH_PLACE}/registry.db\n")
    settings: Settings = settings_with(feature_store_yaml=str(yaml))
    with pytest.raises(ValueError, match=r"store\.yaml uses the variable 'NO_SUCH_PLACE', which is not set"):
        put(settings, DAY)


def online_tables(settings):
    with sqlite3.connect(settings.home / "feast" / "online.db") as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_item_features_stay_offline_and_those_of_before_are_removed(two_days):
    settings = two_days.settings
    table = f"grasp_{Versions(settings).feature}_item_features"
    put(settings, DAY)
    assert table not in online_tables(settings)
    with sqlite3.connect(settings.home / "feast" / "online.db") as database:
        database.execute(f"CREATE TABLE {table} (entity_key BLOB)")
    file = state_file(settings, Versions(settings).feature)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"definitions": "older"}))
    put(settings, DAY)
    assert table not in online_tables(settings)


def put_two_versions(two_days, settings_with):
    """A released version is online, then another one. Returns the release and the later settings."""
    released = two_days.publish(DAY)
    put(two_days.settings, DAY)
    later = settings_with(num_neighbours=3)
    replace(two_days, settings=later).write_features(NEXT)
    put(later, NEXT)
    return released, later


def test_a_version_stays_online_while_a_release_on_disk_has_it(two_days, settings_with):
    put_two_versions(two_days, settings_with)
    assert look_up(two_days.settings, ["u1"]) == [(f"u1 on {DAY}",)]


def test_nothing_is_removed_while_no_release_can_be_seen(two_days, settings_with):
    """The folder of the releases is not mounted, or a setting names another one."""
    elsewhere = settings_with(num_neighbours=3, releases=str(two_days.settings.home / "elsewhere"))
    two_days.publish(DAY)
    put(two_days.settings, DAY)
    replace(two_days, settings=elsewhere).write_features(NEXT)
    put(elsewhere, NEXT)
    assert look_up(two_days.settings, ["u1"]) == [(f"u1 on {DAY}",)]


def test_a_version_that_no_release_has_is_removed_with_its_project(two_days, settings_with, capsys):
    from feature_repo.feast_store import open_store

    released, later = put_two_versions(two_days, settings_with)
    shutil.rmtree(release_folder(later.releases, released))
    replace(two_days, settings=later).publish(NEXT)

    put(later, NEXT, rollback=True)

    assert f"feature version {released.feature_version} removed from the online store" in capsys.readouterr().out
    assert online_tables(later) == {f"grasp_{Versions(later).feature}_user_features"}
    projects = {project.name for project in open_store(later, Versions(later).feature).list_projects()}
    assert projects == {f"grasp_{Versions(later).feature}"}
    assert not state_file(two_days.settings, released.feature_version).exists()
    assert look_up(later, ["u1"]) == [(f"u1 on {NEXT}",)]
    put(two_days.settings, DAY)  # settings that come back fill the version anew
    assert look_up(two_days.settings, ["u1"]) == [(f"u1 on {DAY}",)]


def test_a_damaged_manifest_keeps_every_version(two_days, settings_with, capsys):
    released, later = put_two_versions(two_days, settings_with)
    (release_folder(later.releases, released) / "manifest.json").write_text("{")
    put(later, NEXT, rollback=True)
    assert "no old feature version is removed" in capsys.readouterr().out
    assert look_up(two_days.settings, ["u1"]) == [(f"u1 on {DAY}",)]


class TestWhatFeastDoesNotGuard:
    """Reasons for our own guards. When one of these fails, Feast guards this itself and ours may go."""

    def test_a_late_write_overwrites_a_newer_value(self, two_days):
        from feature_repo.feast_store import open_store

        settings = two_days.settings
        put(settings, NEXT)
        store = open_store(settings, Versions(settings).feature)
        rows = pd.DataFrame(two_days.rows(tables.USER_FEATURES, DAY))
        store.write_to_online_store("user_features", rows)
        assert look_up(settings, ["u1"]) == [(f"u1 on {DAY}",)]

    def test_a_row_without_values_is_skipped_and_the_old_one_stays(self, two_days):
        from feature_repo.feast_store import open_store

        settings = two_days.settings
        put(settings, DAY)
        store = open_store(settings, Versions(settings).feature)
        nulls = {column.name: None for column in tables.USER_FEATURES.columns}
        with pytest.warns(UserWarning, match="empty feature columns"):
            store.write_to_online_store(
                "user_features", pd.DataFrame([nulls | {"user_id": "u1", "event_timestamp": datetime.now(UTC)}])
            )
        assert look_up(settings, ["u1"]) == [(f"u1 on {DAY}",)]

    def test_the_age_limit_of_a_view_is_not_applied_online(self, two_days):
        """The row is 28 years older than the view's 48 hours."""
        put(two_days.settings, DAY)
        assert look_up(two_days.settings, ["u1"]) == [(f"u1 on {DAY}",)]
