"""A stage runs again when something that it depends on changed, and only then."""

from pathlib import Path

import pytest

from grasp import partitions, stages, tables
from grasp.partitions import Content, MissingPartitionError
from grasp.settings import ROOT, Settings

DAY, NEXT = "1998-03-01", "1998-03-02"


def put(settings: Settings, table: tables.Table, day: str, content: str) -> None:
    version = stages.Versions(settings).of(table.versioned_by)
    folder = partitions.partition_path(settings.lake, table, version, day)
    folder.mkdir(parents=True, exist_ok=True)
    partitions.write_content(folder, Content(1, content))


def run_stage(settings: Settings, name: str, day: str) -> None:
    before = stages.fingerprint(settings, name, day)
    for table in stages.STAGES[name].writes:
        put(settings, table, day, "result")
    stages.stamp(settings, name, day, before)


@pytest.fixture
def ran(settings: Settings) -> Settings:
    for table in stages.STAGES["describe_users"].reads:
        put(settings, table, DAY, "input")
    run_stage(settings, "describe_users", DAY)
    return settings


def test_a_stage_that_never_ran_is_not_current(settings):
    assert not stages.is_current(settings, "ingest", DAY)


def test_a_stage_that_ran_is_current_for_its_day_alone(ran):
    assert stages.is_current(ran, "describe_users", DAY)
    assert not stages.is_current(ran, "describe_users", NEXT)


def test_a_changed_input_makes_it_run_again(ran):
    put(ran, tables.USERS, DAY, "other input")
    assert not stages.is_current(ran, "describe_users", DAY)


def test_a_late_event_of_an_earlier_day_makes_it_run_again(ran):
    put(ran, tables.INTERACTIONS, "1998-02-20", "late")
    assert not stages.is_current(ran, "describe_users", DAY)


def test_an_event_of_a_later_day_does_not(ran):
    put(ran, tables.INTERACTIONS, NEXT, "future")
    assert stages.is_current(ran, "describe_users", DAY)


def test_a_lost_result_makes_it_run_again(ran):
    put(ran, tables.USER_DESCRIPTION, DAY, "tampered")
    assert not stages.is_current(ran, "describe_users", DAY)


@pytest.mark.parametrize(("changed", "current"), [({"llm_budget": 1}, False), ({"port": 9000}, True)])
def test_only_settings_of_a_stage_make_it_run_again(ran, settings_with, changed, current):
    assert stages.is_current(settings_with(**changed), "describe_users", DAY) is current


@pytest.mark.parametrize("name", sorted(stages.STAGES))
def test_another_clock_makes_no_stage_run_again(settings, settings_with, name):
    """The demo, the README's command and the wall clock name three moments after the same day."""
    for table in stages.STAGES[name].reads:
        put(settings, table, DAY, "input")
    settings.source.mkdir(parents=True)
    run_stage(settings_with(now="1998-03-01T23:59:59Z"), name, DAY)
    for now in (None, "1998-03-01T23:59:59.999999Z", "1998-03-05T12:00:00Z"):
        assert stages.is_current(settings_with(now=now), name, DAY)


def test_a_damaged_stamp_makes_it_run_again(ran):
    (ran.home / "stages" / "describe_users" / f"{DAY}.json").write_text('{"fingerprint"')
    assert not stages.is_current(ran, "describe_users", DAY)


def test_new_source_data_makes_ingestion_run_again(settings_with, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "interactions.tsv").write_text("a")
    settings = settings_with(source=str(source))
    run_stage(settings, "ingest", DAY)
    assert stages.is_current(settings, "ingest", DAY)
    (source / "interactions.tsv").write_text("ab")
    assert not stages.is_current(settings, "ingest", DAY)


def test_new_data_in_a_linked_folder_makes_ingestion_run_again(settings_with, tmp_path):
    source, export = tmp_path / "source", tmp_path / "export"
    source.mkdir()
    export.mkdir()
    (source / "interactions.parquet").symlink_to(export)
    settings = settings_with(source=str(source))
    run_stage(settings, "ingest", DAY)
    (export / "part.parquet").write_text("new")
    assert not stages.is_current(settings, "ingest", DAY)


def test_a_missing_day_names_table_and_day(settings):
    with pytest.raises(MissingPartitionError, match="items has no partition for 1998-03-01"):
        partitions.require_partition(settings.lake, tables.ITEMS, None, DAY)


def test_every_spark_stage_has_its_job():
    for stage in stages.STAGES.values():
        if stage.code == "spark_jobs":
            assert (Path(ROOT) / "spark_jobs" / f"{stage.name}.py").exists()


def test_other_votes_of_similar_moments_make_features_be_built_again(settings):
    for table in stages.STAGES["build_features"].reads:
        put(settings, table, DAY, "input")
    run_stage(settings, "build_features", DAY)
    assert stages.is_current(settings, "build_features", DAY)
    put(settings, tables.USER_NEIGHBOUR_ITEMS, DAY, "other votes")
    assert not stages.is_current(settings, "build_features", DAY)


def test_without_moments_features_need_no_votes(settings_with):
    off = settings_with(moments=False)
    for table in stages.STAGES["build_features"].reads:
        if table is not tables.USER_NEIGHBOUR_ITEMS:
            put(off, table, DAY, "input")
    run_stage(off, "build_features", DAY)
    assert stages.is_current(off, "build_features", DAY)
    assert not stages.is_current(settings_with(moments=True), "build_features", DAY)


def test_days_of_moments_that_a_later_day_removed_undo_no_stamp(settings):
    for table in stages.STAGES["find_moments"].reads:
        put(settings, table, DAY, "input")
    put(settings, tables.MOMENTS, DAY, "moments")
    run_stage(settings, "find_moments", DAY)
    assert stages.is_current(settings, "find_moments", DAY)
    (partitions.partition_path(settings.lake, tables.MOMENTS, None, DAY) / partitions.CONTENT_FILE).unlink()
    assert stages.is_current(settings, "find_moments", DAY)


@pytest.mark.parametrize("changed", [{"moment_exact_up_to": 5}, {"moment_sharpness": 5}, {"moment_days": 5}])
def test_how_moments_vote_makes_find_moments_run_again(settings, settings_with, changed):
    run_stage(settings, "find_moments", DAY)
    assert not stages.is_current(settings_with(**changed), "find_moments", DAY)
