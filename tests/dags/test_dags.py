"""The DAGs: every task works on a named day, publication comes last, every program that is started exists."""

import importlib.util
import json
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from grasp import partitions, tables
from grasp.environment import process_environment
from grasp.settings import ROOT, Settings
from grasp.versions import Versions

pytestmark = pytest.mark.integration  # imports Airflow and its metadata models


@pytest.fixture(scope="module")
def dag_bag(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRASP_HOME", str(home))
        patch.setenv("AIRFLOW_HOME", str(home / "airflow"))
        patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        from airflow.dag_processing.dagbag import DagBag

        yield DagBag(ROOT / "dags")


@pytest.fixture(scope="module")
def retrain_module(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRASP_HOME", str(tmp_path_factory.mktemp("home")))
        from dags import retrain

        yield retrain


def test_both_dags_load_and_nothing_else_does(dag_bag):
    assert dag_bag.import_errors == {}
    assert set(dag_bag.dags) == {"daily_refresh", "retrain"}


def test_every_dag_has_a_page_retries_and_one_run_at_a_time(dag_bag):
    for dag in dag_bag.dags.values():
        assert dag.doc_md
        assert dag.max_active_runs == 1
        assert all(task.retries == 2 for task in dag.tasks)


@pytest.mark.parametrize(("dag_id", "last"), [("daily_refresh", "announce"), ("retrain", "publish")])
def test_publication_comes_last(dag_bag, dag_id, last):
    leaves = [task.task_id for task in dag_bag.dags[dag_id].tasks if not task.downstream_task_ids]
    assert leaves == [last]


def test_retraining_listens_to_what_the_refresh_announces(dag_bag):
    (announced,) = dag_bag.dags["daily_refresh"].task_dict["announce"].outlets
    assert announced in dag_bag.dags["retrain"].timetable.asset_condition.objects


def test_quality_is_checked_before_features_go_online(dag_bag):
    tasks = dag_bag.dags["daily_refresh"].task_dict
    assert tasks["check_quality"].upstream_task_ids == {"build_features"}
    assert tasks["is_fresh"].upstream_task_ids == {"check_quality"}
    assert tasks["materialise"].upstream_task_ids == {"is_fresh"}
    assert tasks["publish"].upstream_task_ids == {"materialise"}


def test_the_clock_is_checked_first_and_interactions_before_the_language_model(dag_bag):
    tasks = dag_bag.dags["daily_refresh"].task_dict
    assert tasks["has_ended"].upstream_task_ids == set()
    assert tasks["ingest"].upstream_task_ids == {"has_ended"}
    assert tasks["has_interactions"].upstream_task_ids == {"ingest"}
    assert tasks["describe_items"].upstream_task_ids == {"has_interactions"}


def test_the_two_describing_jobs_run_one_after_the_other(dag_bag):
    tasks = dag_bag.dags["daily_refresh"].task_dict
    assert tasks["describe_users"].upstream_task_ids == {"describe_items"}
    assert tasks["embed_descriptions"].upstream_task_ids == {"describe_users"}


@pytest.fixture(scope="module")
def dags_test(tmp_path_factory: pytest.TempPathFactory):
    """`dags_test(conf)`: `airflow dags test daily_refresh` by the clock of MovieLens, on an empty home."""
    home = tmp_path_factory.mktemp("home")
    environment = process_environment(Settings.load({"GRASP_HOME": str(home), "GRASP_NOW": "1998-04-22T23:59:59Z"}))
    subprocess.run(["airflow", "db", "migrate"], env=environment, check=True, capture_output=True)

    def run(conf: dict[str, object]) -> str:
        command = ["airflow", "dags", "test", "daily_refresh", "--conf", json.dumps(conf)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert not (home / "lake").exists()
        return result.stdout + result.stderr

    return run


def test_a_scheduled_day_after_the_clock_is_skipped(dags_test):
    shown = dags_test({})  # no day is named: the wall clock's yesterday, as a scheduler's run
    assert re.search(r"daily_refresh: skipped: 20\d\d-\d\d-\d\d is after the clock \(1998-04-22T23:59:59", shown)
    assert "state=success" in shown


def test_a_named_day_after_the_clock_fails_at_once(dags_test):
    shown = dags_test({"day": "1998-04-23"})
    assert "daily_refresh 1998-04-23: failed: 1998-04-23 is after the clock" in shown
    assert "state=failed" in shown


def test_a_day_without_interactions_fails_before_the_language_model(dag_bag, settings_with, monkeypatch):
    from airflow.sdk.exceptions import AirflowFailException

    has_interactions = dag_bag.dags["daily_refresh"].task_dict["has_interactions"].python_callable
    settings = settings_with(min_day_interactions=2)
    monkeypatch.setitem(has_interactions.__globals__, "SETTINGS", settings)
    for day, num_interactions in (("1998-03-01", 2), ("1998-03-02", 1)):
        folder = partitions.partition_path(settings.lake, tables.INTERACTIONS, None, day)
        folder.mkdir(parents=True)
        partitions.write_content(folder, partitions.Content(num_interactions, "x"))
    has_interactions("1998-03-01")
    with pytest.raises(AirflowFailException, match="1998-03-02 has 1 interactions, fewer than GRASP_MIN_DAY"):
        has_interactions("1998-03-02")


def test_every_program_a_task_starts_exists(dag_bag):
    for dag in dag_bag.dags.values():
        for task in dag.tasks:
            if hasattr(task, "module"):
                assert importlib.util.find_spec(task.module), task.module
            if hasattr(task, "job"):
                assert Path(task.application).is_file(), task.application
                assert task.application_args[0] == "--day"


def render_day(dag_bag, day_param, data_interval_end, run_after):
    """Render the DAY template the way Airflow does for a run."""
    task = dag_bag.dags["daily_refresh"].task_dict["ingest"]
    from airflow.sdk.execution_time import macros

    context = {
        "params": SimpleNamespace(day=day_param),
        "data_interval_end": data_interval_end,
        "dag_run": SimpleNamespace(run_after=run_after),
        "macros": macros,
    }
    return task.render_template(task.application_args[1], context)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "day_param", "data_interval_end", "run_after", "day"),
    [
        # At 02:00 on the 2nd the interval from the 1st, 02:00, ends: the last whole day is the 1st.
        ("scheduled", None, at("1998-03-02T02:00"), at("1998-03-02T02:00"), "1998-03-01"),
        ("back-fill", None, at("1998-03-02T02:00"), at("2026-01-01T00:00"), "1998-03-01"),
        ("manual without a date", None, None, at("1998-03-02T15:00"), "1998-03-01"),
        ("manual with a day", "1998-02-28", at("2026-01-01T00:00"), at("2026-01-01T00:00"), "1998-02-28"),
    ],
)
def test_each_kind_of_run_works_on_its_day(dag_bag, kind, day_param, data_interval_end, run_after, day):
    assert render_day(dag_bag, day_param, data_interval_end, run_after) == day


RUN_AFTER = datetime(1998, 3, 10, 5, tzinfo=UTC)


def events_of(retrain_module, days: list[str]):
    """The release events of these days, as Airflow hands them to a task of an asset-triggered run."""
    from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult
    from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor

    asset = {"name": retrain_module.RELEASE.name, "uri": retrain_module.RELEASE.uri, "extra": {}}
    source = {"source_dag_id": "daily_refresh", "source_task_id": "announce", "source_run_id": "r"}
    rest = {"asset": asset, **source, "source_map_index": -1, "source_aliases": [], "timestamp": RUN_AFTER}
    events = [AssetEventDagRunReferenceResult.model_validate({"extra": {"day": day}, **rest}) for day in days]
    return TriggeringAssetEventsAccessor.build(events)


@pytest.mark.parametrize(
    ("day_param", "event_days", "day"),
    [
        (None, ["1998-03-01"], "1998-03-01"),
        (None, ["1998-03-01", "1998-03-02"], "1998-03-02"),
        ("1998-02-28", ["1998-03-01"], "1998-02-28"),
        (None, [], "1998-03-09"),
    ],
)
def test_retraining_takes_the_day_from_the_release_event(retrain_module, day_param, event_days, day):
    events = events_of(retrain_module, event_days)
    assert retrain_module.choose_day({"day": day_param}, events, RUN_AFTER) == day


def test_retraining_waits_a_week(retrain_module, settings: Settings):
    assert retrain_module.is_due(settings, "1998-03-01")
    decided = settings.home / "training" / "1998-03-01"
    decided.mkdir(parents=True)
    (decided / "decision.json").write_text("{}")
    assert retrain_module.is_due(settings, "1998-03-01"), "decided, but its publication failed"
    (decided / "published.json").write_text("{}")
    assert not retrain_module.is_due(settings, "1998-03-07")
    assert retrain_module.is_due(settings, "1998-03-08")


def test_an_older_day_does_not_wait_for_a_later_retraining(retrain_module, settings: Settings):
    decided = settings.home / "training" / "1998-03-01"
    decided.mkdir(parents=True)
    (decided / "published.json").write_text("{}")
    assert retrain_module.is_due(settings, "1998-02-20")


def test_a_failing_module_shows_its_last_lines(settings: Settings, monkeypatch):
    monkeypatch.setenv("GRASP_HOME", str(settings.home))
    from airflow.sdk.exceptions import AirflowException

    from dags.tasks import ModuleTask

    task = ModuleTask(task_id="fails", module="cli.demo", arguments=["--cutoff", "never"], day="1998-03-01")
    with pytest.raises(AirflowException, match=r"(?s)failed with exit code 2.*not a day"):
        task.run_module()


SPARK_TASK = """
from dags.tasks import SparkJob
job = SparkJob(job="ingest", day="1998-03-01", force="False")
job._get_hook().submit(job.application)
"""


def test_a_killed_task_leaves_no_spark_behind(settings: Settings, monkeypatch, tmp_path, ends_soon):
    """A program called `spark-submit` that says its process id and becomes another, as Spark's becomes Java."""
    program = tmp_path / "bin" / "spark-submit"
    program.parent.mkdir()
    program.write_text(f"#!/bin/bash\necho $$ > {tmp_path}/made && mv {tmp_path}/made {tmp_path}/pid\nexec sleep 120\n")
    program.chmod(0o755)
    environment = process_environment(settings)
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    with subprocess.Popen([sys.executable, "-c", SPARK_TASK], env=environment, cwd=ROOT) as task:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        task.kill()
    assert ends_soon(int((tmp_path / "pid").read_text()))


def test_the_first_week_has_nothing_to_train_on(retrain_module, settings: Settings):
    assert retrain_module.choose_cutoff(settings, None, "1998-03-08") is None
    assert retrain_module.choose_cutoff(settings, "1998-02-28", "1998-03-08") == "1998-02-28"
    version = Versions(settings).feature
    features = partitions.partition_path(settings.lake, tables.USER_FEATURES, version, "1998-03-01")
    features.mkdir(parents=True)
    partitions.write_content(features, partitions.Content(1, "x"))
    assert retrain_module.choose_cutoff(settings, None, "1998-03-08") == "1998-03-01"
