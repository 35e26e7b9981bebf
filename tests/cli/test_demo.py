"""The demo shows progress lines only, counts skipped stages, and ends with the log when a run fails."""

import gzip
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cli import dag_run
from cli.dag_run import DagError, migrate, output_of, run_dag
from cli.demo import DAMAGED_ROWS, DemoError, Plan, plan_folder, plan_movielens, run_all
from cli.showcase import _show_user, three_users
from grasp.days import last_second
from grasp.settings import Settings


def fake_airflow(tmp_path, monkeypatch, *lines: str) -> None:
    """A program called `airflow` that prints these lines."""
    program = tmp_path / "bin" / "airflow"
    program.parent.mkdir()
    printed = "\n".join(f"print({line!r})" for line in lines)
    program.write_text(f"#!{sys.executable}\n{printed}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_stage_times_are_read_from_the_progress_lines(settings, tmp_path, monkeypatch, capsys):
    fake_airflow(
        tmp_path,
        monkeypatch,
        "2026 [info] noise",
        "2026 [info] b'[grasp] ingest 1998-03-01: 12 rows'   [airflow.task]",
        "[grasp] stage ingest 1998-03-01 took 12.5 s",
        "[grasp] describe_items 1998-03-01: inputs unchanged, skipped",
    )
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    times = run_dag(settings, "daily_refresh", {"day": "1998-03-01"}, tmp_path / "log")
    assert [(each.stage, each.seconds) for each in times] == [("ingest", 12.5), ("describe_items", None)]
    shown = capsys.readouterr().out
    assert "noise" not in shown
    assert "12 rows" in shown
    assert "noise" in (tmp_path / "log").read_text()


def test_each_task_s_output_is_where_airflow_s_ui_looks_for_it(settings, tmp_path, monkeypatch):
    ingest = "i [DAG TEST] running task <TaskInstance: daily_refresh.ingest manual__1998 [scheduled]>"
    train = "i [DAG TEST] running task <TaskInstance: daily_refresh.train manual__1998 [scheduled]>"
    end = "i [DAG TEST] end task task_id="
    first, second = [ingest, "first", f"{end}ingest"], [ingest, "second", f"{end}ingest"]
    fake_airflow(tmp_path, monkeypatch, "before", *first, "between", train, f"{end}train", *second)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    run_dag(settings, "daily_refresh", {"day": "1998-03-01"}, tmp_path / "log")
    run = settings.home / "airflow" / "logs" / "dag_id=daily_refresh" / "run_id=manual__1998"
    assert (run / "task_id=ingest" / "attempt=1.log").read_text().splitlines() == first
    assert (run / "task_id=ingest" / "attempt=2.log").read_text().splitlines() == second
    assert (run / "task_id=train" / "attempt=1.log").read_text().splitlines() == [train, f"{end}train"]


def test_the_demo_shows_one_line_a_stage(settings, tmp_path, monkeypatch, capsys):
    fake_airflow(
        tmp_path,
        monkeypatch,
        "Collecting 12%|#####     | 3/25",
        "[grasp] ingest: 12 interactions from the beginning to 1998-03-01, 1 days changed",
        "[grasp] ingest: 4 items and 3 users known by the end of 1998-03-01",
        "[grasp] ingest 1998-03-01: done in 11 s",
        "[grasp] stage ingest 1998-03-01 took 12.5 s",
    )
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    run_all(Plan(settings, "1998-02-28", "1998-03-01"), "sasrec_grasp")
    shown = [line for line in capsys.readouterr().out.splitlines() if "---" not in line]
    assert len(shown) == 2 + 3, "where things are and what to expect, then a line a stage of three runs"
    assert shown[-1] == "[grasp] ingest                   12 s  4 items and 3 users known by the end of 1998-03-01"


def test_a_failed_run_ends_with_its_log(settings, tmp_path, monkeypatch):
    fake_airflow(tmp_path, monkeypatch, "expectation expect_x failed", "DagRun Finished: state=failed, run_type=manual")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(DagError, match=r"(?s)daily_refresh failed.*expectation expect_x failed"):
        run_dag(settings, "daily_refresh", {"day": "1998-03-01"}, tmp_path / "log")


def test_a_failure_that_a_task_explained_is_not_followed_by_the_log(settings, tmp_path, monkeypatch, capsys):
    said = "[grasp] ingest 1998-03-01: failed: no items"
    fake_airflow(tmp_path, monkeypatch, "noise", said, "DagRun Finished: state=failed, run_type=manual")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(DagError, match=r"daily_refresh failed; .*log has the details") as error:
        run_dag(settings, "daily_refresh", {"day": "1998-03-01"}, tmp_path / "log")
    assert "noise" not in str(error.value)
    assert said in capsys.readouterr().out


def test_a_command_that_dies_names_its_log(settings, tmp_path):
    command = [sys.executable, "-c", "import sys; print('last words'); sys.exit(3)"]
    with pytest.raises(DagError, match=r"(?s)ended with code 3.*last words"):
        list(output_of(command, settings, tmp_path / "log"))


def test_airflow_s_metadata_is_brought_up_to_date_once(settings, tmp_path, monkeypatch):
    database = settings.home / "airflow" / "airflow.db"
    fake_airflow(tmp_path, monkeypatch, "migrated")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    log = tmp_path / "log"

    def num_migrations() -> int:
        migrate(settings, log)
        return log.read_text().count("migrated")

    def set_revision(revision: str) -> None:
        with closing(sqlite3.connect(database)) as metadata, metadata:
            metadata.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num)")
            metadata.execute("DELETE FROM alembic_version")
            metadata.execute("INSERT INTO alembic_version VALUES (?)", [revision])

    assert [num_migrations(), num_migrations()] == [1, 2], "without the usual file every time: it may be anywhere"
    database.parent.mkdir()
    (database.parent / "airflow.cfg").write_text("[database]")
    set_revision("a")
    assert [num_migrations(), num_migrations()] == [3, 3]
    set_revision("b")
    assert [num_migrations(), num_migrations()] == [4, 4], "another file"
    (database.parent / "airflow.cfg").write_text("[database]\nsql_alchemy_conn = postgresql://")
    assert [num_migrations(), num_migrations()] == [5, 5], "another configuration"
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://")
    assert [num_migrations(), num_migrations()] == [6, 6], "another configuration"
    monkeypatch.setattr(dag_run, "version", lambda _: "4.0.0")
    assert [num_migrations(), num_migrations()] == [7, 7], "another Airflow"
    database.unlink()
    assert num_migrations() == 8


def test_the_history_is_shown_newest_first_like_the_description(capsys):
    titles = [f"film {number}" for number in range(12)]
    served = SimpleNamespace(
        items=SimpleNamespace(title=titles.__getitem__),
        rows_of=lambda ids: list(map(int, ids)),
        recommend=lambda *_: [],
    )
    user = SimpleNamespace(
        user_id="u",
        sequence=[str(number) for number in range(12)],
        num_interactions=12,
        source="facts",
        description="newest: film 11",
        neighbour_ids=[],
        neighbour_similarities=np.zeros(0, np.float32),
    )
    _show_user(served, user, {})
    newest = "; ".join(f"film {number}" for number in range(11, 3, -1))
    assert f"history: 12 items; the last 8, newest first: {newest}\n" in capsys.readouterr().out


def row(user_id, num_interactions, source="facts", is_tail=0):
    return {"user_id": user_id, "num_interactions": num_interactions, "source": source, "is_tail": is_tail}


def test_three_different_users_are_shown():
    rows = [row("a", 50, "llm"), row("b", 40), row("c", 30), row("d", 3, is_tail=1)]
    assert three_users(rows) == ["a", "d", "c"]


def test_fewer_users_are_shown_where_there_are_fewer():
    assert three_users([row("a", 5)]) == ["a"]


@pytest.fixture
def shop(tmp_path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    events = [f"u{user}\t{user + step}\t{888_710_400 + step * 86_400}" for step in range(8) for user in range(6)]
    (folder / "interactions.tsv").write_text("\n".join(["user_id\titem_id\ttimestamp", *events]))
    (folder / "items.tsv").write_text("\n".join(["item_id\ttitle", *(f"{item}\tItem {item}" for item in range(14))]))
    return folder


@pytest.mark.parametrize("name", ["shop", "x [1]", "{x}", "?*\\"])
def test_a_folder_is_sampled_into_a_home_of_its_own(settings, shop, name):
    plan = plan_folder(settings, shop.rename(shop.with_name(name)))

    assert Settings.load(plan.settings.variables()) == plan.settings, "no process refuses the home's name"
    assert plan.cutoff < plan.latest == "1998-03-08"
    assert plan.settings.home.parent == settings.home / "demos"
    assert plan.settings.source.is_relative_to(plan.settings.home)
    assert plan.settings.lake != settings.lake, "two data sets never meet in one lake"


def test_the_demo_s_clock_may_stand_at_the_end_of_the_latest_day_of_a_live_export(settings, shop, capfd):
    with (shop / "interactions.tsv").open("a") as file:
        file.writelines(f"\nu1\t{item}\t{seconds}" for item, seconds in ((1, int(time.time())), (2, 2_524_608_000)))
    plan = plan_folder(settings, shop)
    assert plan.latest == "1998-03-08"
    assert Settings.load({**plan.settings.variables(), "GRASP_NOW": last_second(plan.latest).isoformat()})
    assert "left out 2 interactions of today or later: those days are not over" in capfd.readouterr().out


def test_a_model_that_gets_no_item_of_a_shop_right_ends_no_demo_unless_asked_for(settings, settings_with, shop):
    assert plan_folder(settings, shop).settings.llm_max_failure_share == 1
    assert plan_folder(settings_with(llm_max_failure_share=0.3), shop).settings.llm_max_failure_share == 0.3


def test_commands_that_name_the_demo_s_home_find_the_java_that_was_fetched(settings, shop):
    (settings.home / "java").mkdir()
    plan = plan_folder(settings, shop)
    assert (plan.settings.home / "java").resolve() == settings.home / "java"
    assert plan_folder(settings, shop) == plan


def test_movielens_gets_some_damaged_rows_in_a_copy(settings, settings_with):
    source = settings.home / "source" / "movielens-100k"
    source.mkdir(parents=True)
    interactions = b"user_id\titem_id\ttimestamp\trow_number\n1\t2\t893286638\t1\n"
    (source / "interactions.tsv.gz").write_bytes(gzip.compress(interactions))
    (source / "items.jsonl.gz").write_bytes(b"items")

    copy = plan_movielens(settings).settings.source
    written = copy / "interactions.tsv.gz"
    assert gzip.decompress(written.read_bytes()).startswith(interactions)
    assert gzip.decompress(written.read_bytes()).decode().count("demo-damaged") == len(DAMAGED_ROWS)
    assert (copy / "items.jsonl.gz").read_bytes() == b"items"
    assert gzip.decompress((source / "interactions.tsv.gz").read_bytes()) == interactions

    before = written.stat().st_mtime_ns
    assert plan_movielens(settings).settings.source == copy
    assert written.stat().st_mtime_ns == before, "an unchanged file keeps its time, so nothing is ingested again"
    own = settings_with(source=str(source.parent))
    assert plan_movielens(own).settings.source == source.parent, "a configured source is taken as it is"


def test_a_folder_out_of_the_contract_is_an_error_that_names_it(settings, tmp_path, capfd):
    with pytest.raises(DemoError, match="could not be sampled"):
        plan_folder(settings, tmp_path)
    assert "interactions" in capfd.readouterr().err
