"""The DAGs: every task works on a named day, publication comes last, every program that is started exists."""

import importlib.util
import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.dag_run import DagError, run_dag
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


def test_every_dag_has_a_page_retries_one_run_at_a_time_and_an_alert(dag_bag):
    for dag in dag_bag.dags.values():
        assert dag.doc_md
        assert dag.max_active_runs == 1
        assert all(task.retries == 2 for task in dag.tasks)
        assert dag.on_failure_callback.__name__ == "run_failed"


def test_every_task_has_a_time_limit(dag_bag):
    limits = {task.task_id: task.execution_timeout for dag in dag_bag.dags.values() for task in dag.tasks}
    assert limits["describe_items"] == limits["materialise"] == limits["train"] == timedelta(hours=12)
    assert limits["has_ended"] == limits["plan"] == timedelta(minutes=10)
    assert set(limits.values()) == {timedelta(hours=12), timedelta(minutes=10)}


def test_batch_files_are_waited_for(dag_bag, settings_with, monkeypatch):
    from dags import tasks

    batches = {"llm_batch_files": True, "llm_url": "http://localhost/v1", "llm_model": "m"}
    monkeypatch.setattr(tasks, "SETTINGS", settings_with(**batches, task_timeout_hours=2, llm_batch_patience_hours=25))
    assert tasks.time_limit("describe_users") == timedelta(hours=27)
    assert tasks.time_limit("ingest") == timedelta(hours=2)


def test_no_spark_job_pays_twice_whatever_the_cluster_s_default(dag_bag, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", '{"conn_type": "spark", "host": "spark://cluster:7077"}')
    jobs = [task for task in dag_bag.dags["daily_refresh"].tasks if hasattr(task, "job")]
    assert len(jobs) == 8
    for job in jobs:
        command = job._get_hook()._build_spark_submit_command(job.application)
        assert "--conf spark.speculation=false" in " ".join(command)


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


def test_recent_moments_come_between_the_neighbours_and_the_features(dag_bag):
    tasks = dag_bag.dags["daily_refresh"].task_dict
    assert tasks["find_moments"].upstream_task_ids == {"aggregate_neighbours"}
    assert tasks["build_features"].upstream_task_ids == {"find_moments"}


def test_without_recent_moments_the_stage_is_left_out(dag_bag, monkeypatch):
    from airflow.dag_processing.dagbag import DagBag

    monkeypatch.setenv("GRASP_MOMENTS", "false")
    tasks = DagBag(ROOT / "dags").dags["daily_refresh"].task_dict
    assert "find_moments" not in tasks
    assert tasks["build_features"].upstream_task_ids == {"aggregate_neighbours"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home whose Airflow knows both DAGs."""
    home = tmp_path_factory.mktemp("home")
    for command in ("db migrate", "dags reserialize"):
        airflow(home, *command.split())
    return home


def airflow(home: Path, *arguments: str) -> None:
    environment = process_environment(Settings.load({"GRASP_HOME": str(home)}))
    subprocess.run(["airflow", *arguments], env=environment, check=True, capture_output=True)


MOVIELENS_NOW = "1998-04-22T23:59:59Z"


@pytest.fixture
def dags_test(home):
    """`dags_test(conf)`: `airflow dags test daily_refresh` by the clock of MovieLens; returns all that is printed."""

    def run(conf: dict[str, object], **variables: str) -> str:
        settings = Settings.load({"GRASP_HOME": str(home), "GRASP_NOW": MOVIELENS_NOW, **variables})
        log = home / "run.log"
        log.unlink(missing_ok=True)
        with suppress(DagError):
            run_dag(settings, "daily_refresh", conf, log)
        assert not (home / "lake").exists()
        return log.read_text()

    return run


def test_a_scheduled_day_after_the_clock_is_skipped(dags_test):
    shown = dags_test({})  # no day is named: the wall clock's yesterday, as a scheduler's run
    assert re.search(r"daily_refresh: skipped: 20\d\d-\d\d-\d\d is after the clock \(1998-04-22T23:59:59", shown)
    assert "state=success" in shown


SHOW_RUNS = """
import json
from airflow.models import DagRun, TaskInstance
from airflow.utils.log.log_reader import TaskLogReader
from airflow.utils.session import create_session
from dags.runs import day_of_run

with create_session() as session:
    ids = [id for id, in session.query(DagRun.id).order_by(DagRun.id)]
for each in ids:
    with create_session() as session:
        run = session.get(DagRun, each)
        seen = [run.run_type, day_of_run(run), run.note]
        task = session.query(TaskInstance).filter_by(run_id=run.run_id, task_id="has_ended").one()
        log = "".join(TaskLogReader().read_log_stream(task, 1, {})) if task.state else ""  # ends the session
        print("run", json.dumps([*seen, log]))
"""


def runs(home: Path) -> list[tuple[str, str, str | None, str]]:
    """Kind, day, note and first task's log of each run, as Airflow's UI reads them."""
    environment = process_environment(Settings.load({"GRASP_HOME": str(home)}))
    shown = subprocess.run([sys.executable, "-c", SHOW_RUNS], env=environment, cwd=ROOT, capture_output=True, text=True)
    lines = [line.removeprefix("run ") for line in shown.stdout.splitlines() if line.startswith("run ")]
    assert lines, shown.stderr
    return [tuple(json.loads(line)) for line in lines]


def test_a_named_day_after_the_clock_fails_at_once_and_is_told(dags_test, webhook, home):
    shown = dags_test({"day": "1998-04-23"}, GRASP_ALERT_WEBHOOK=webhook.url, GRASP_TASK_RETRIES="0")
    assert "daily_refresh 1998-04-23: failed: 1998-04-23 is after the clock" in shown
    assert "state=failed" in shown
    (alert,) = webhook.received
    assert alert["text"] == "GRASP: daily_refresh of 1998-04-23: failed at has_ended"
    assert alert["log"].startswith("http://127.0.0.1:8180/dags/daily_refresh/runs/manual__")
    *before, (_, day, note, log) = runs(home)
    assert day == "1998-04-23"
    assert note == "day 1998-04-23"
    assert all(note == f"day {day}" for _, day, note, _ in before), "of runs that succeeded too"
    assert "failed: 1998-04-23 is after the clock" in log


def test_a_logical_date_and_a_back_fill_name_their_days(home):
    """`dags trigger` gives a run by a logical date the data interval of the present day."""
    airflow(home, "dags", "trigger", "daily_refresh", "--logical-date", "2024-03-08T02:00:00+00:00")
    dates = ["--from-date", "1998-04-01", "--to-date", "1998-04-04"]
    airflow(home, "backfill", "create", "--dag-id", "daily_refresh", "--max-active-runs", "1", *dates)
    found = [run[:2] for run in runs(home)]
    assert ("manual", "2024-03-08") in found
    assert [day for kind, day in found if kind == "backfill"] == ["1998-04-01", "1998-04-02", "1998-04-03"]


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


def test_a_task_s_day_is_that_of_its_run(dag_bag):
    dag = dag_bag.dags["daily_refresh"]
    moment = datetime(1998, 3, 2, 2, tzinfo=UTC)
    run = {"run_type": "scheduled", "conf": {}, "consumed_asset_events": [], "run_after": moment}
    context = {"dag_run": SimpleNamespace(logical_date=moment - timedelta(days=1), **run)}
    task = dag.task_dict["ingest"]
    assert task.render_template(task.application_args[1], context, dag.get_template_env()) == "1998-03-01"


def test_a_release_event_without_a_day_fails_with_one_line(retrain_module, capsys):
    from airflow.sdk.exceptions import AirflowFailException

    run = SimpleNamespace(conf={}, consumed_asset_events=[SimpleNamespace(extra={})])
    with pytest.raises(AirflowFailException, match="names no day"):
        retrain_module.choose_day(run)
    assert capsys.readouterr().out.startswith("[grasp] retrain: failed: an event of the asset grasp_release")


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


def test_a_task_whose_time_is_over_ends_its_process(settings: Settings, monkeypatch, tmp_path, ends_soon):
    from airflow.sdk.exceptions import AirflowTaskTimeout
    from airflow.sdk.execution_time.timeout import timeout

    from dags.tasks import ModuleTask

    (tmp_path / "sleeps.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    monkeypatch.setenv("GRASP_HOME", str(settings.home))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    task = ModuleTask(task_id="sleeps", module="sleeps", arguments=[], day="1998-03-01")
    started = time.monotonic()
    with pytest.raises(AirflowTaskTimeout), timeout(5):
        task.run_module()
    assert time.monotonic() - started < 30
    assert ends_soon(task.process.pid)
