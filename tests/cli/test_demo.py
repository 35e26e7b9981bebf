"""The demo shows progress lines only, counts skipped stages, and ends with the log when a run fails."""

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cli.dag_run import DagError, output_of, run_dag
from cli.demo import DemoError, plan_folder
from cli.showcase import _figures, _show_user, _sources, changed_variables, three_users
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


def test_what_is_said_at_the_end_gives_the_demo_s_settings_again(settings_with, tmp_path):
    settings = settings_with(source=str(tmp_path / "my data"), llm_budget=5, task_retries=0)
    said = dict(word.split("=", 1) for each in changed_variables(settings) for word in shlex.split(each))
    assert Settings.load(said) == settings.model_copy(update={"task_retries": 2})


def test_what_is_said_at_the_end_shows_no_secret(settings_with):
    settings = settings_with(milvus_token="hunter2", redis="redis://:hunter2@localhost", llm_budget=5)
    assert "hunter2" not in " ".join(changed_variables(settings))
    assert "GRASP_LLM_BUDGET=5" in changed_variables(settings)


def test_the_usual_home_need_not_be_said():
    assert changed_variables(Settings.load({})) == []


def interval(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def test_the_gate_s_last_line_has_the_figures_themselves():
    found = {name: {"overall": {"ndcg@10": interval(mean)}} for name, mean in (("popularity", 0.05), ("m-1", 0.0712))}
    evaluation = {"candidate": "m-1", "num_events": 1234, "metrics": found}
    assert _figures(evaluation) == "NDCG@10 over 1,234 events: model 0.0712, popularity 0.0500"


def test_texts_of_this_day_and_of_all_days_are_told_apart():
    said = _sources("users", ["llm", "facts", "facts"], [True, True, False])
    assert said.startswith("users: 3 described, 1 by the language model from the facts of this day; over all days 3 ")
    assert "2 passed validation" in said


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


def test_a_folder_is_sampled_into_a_home_of_its_own(settings, shop):
    plan = plan_folder(settings, shop)

    assert plan.cutoff < plan.latest == "1998-03-08"
    assert plan.settings.home.parent == settings.home / "demos"
    assert plan.settings.source.is_relative_to(plan.settings.home)
    assert plan.settings.lake != settings.lake, "two data sets never meet in one lake"


def test_a_model_that_gets_no_item_of_a_shop_right_ends_no_demo_unless_asked_for(settings, settings_with, shop):
    assert plan_folder(settings, shop).settings.llm_max_failure_share == 1
    assert plan_folder(settings_with(llm_max_failure_share=0.3), shop).settings.llm_max_failure_share == 0.3


def test_a_folder_out_of_the_contract_is_an_error_that_names_it(settings, tmp_path, capfd):
    with pytest.raises(DemoError, match="could not be sampled"):
        plan_folder(settings, tmp_path)
    assert "interactions" in capfd.readouterr().err
