"""The demo's last lines are right, hold no secret, and their commands work as they are printed."""

import json
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.summary import (
    MAKE_FILE,
    _figures,
    changed_variables,
    make_command,
    make_variables,
    model_line,
    summarise,
    texts_line,
)
from grasp import partitions, tables
from grasp.days import end_of
from grasp.manifest import CURRENT_FILE, Manifest, release_folder
from grasp.partitions import Content
from grasp.settings import ROOT, Settings


def test_what_is_said_at_the_end_gives_the_demo_s_settings_again(settings_with, tmp_path):
    settings = settings_with(source=str(tmp_path / "my data"), llm_budget=5, task_retries=0)
    said = dict(word.split("=", 1) for each in changed_variables(settings) for word in shlex.split(each))
    assert Settings.load(said) == settings.model_copy(update={"task_retries": 2})


def test_what_is_said_at_the_end_shows_no_secret(settings_with):
    settings = settings_with(milvus_token="hunter2", redis="redis://:hunter2@localhost", llm_budget=5)
    assert "hunter2" not in " ".join(changed_variables(settings))
    assert "hunter2" not in make_variables(settings)
    assert "GRASP_LLM_BUDGET=5" in changed_variables(settings)


def test_the_usual_home_need_not_be_said():
    assert changed_variables(Settings.load({})) == []


@pytest.fixture
def seen_by_make(tmp_path):
    """`seen_by_make("serve", variables)`: the `GRASP_*` variables that `grasp` gets from this target of make."""
    shown, installed = tmp_path / "grasp", tmp_path / "installed"
    shown.write_text("#!/bin/sh\nenv\n")
    shown.chmod(0o755)
    installed.touch()

    def run(target: str, variables: dict[str, str]) -> dict[str, str]:
        changed = [f"GRASP={shlex.quote(str(shown))}", f"INSTALLED={installed}", "RUN=:"]
        command = ["make", "-C", str(ROOT), *changed, target]
        environment = {"PATH": "/usr/bin:/bin", **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        lines = (line.partition("=") for line in done.stdout.splitlines() if line.startswith("GRASP_"))
        return {name: value for name, _, value in lines}

    return run


@pytest.mark.parametrize("target", ["serve", "sql"])
def test_make_finds_what_the_demo_left_in_a_home_of_its_own(tmp_path, seen_by_make, target):
    home = tmp_path / "a home of #1"
    home.mkdir()
    own = Settings.load({"GRASP_HOME": str(home / "demos" / "shop")})
    demo = own.model_copy(update={"source": home / "it's $5 data", "now": end_of("1998-03-01"), "task_retries": 0})
    (home / MAKE_FILE).write_text(make_variables(demo))

    seen = seen_by_make(target, {"GRASP_HOME": str(home)})
    assert Settings.load(seen) == demo.model_copy(update={"task_retries": 2})
    assert seen_by_make(target, {"GRASP_HOME": str(home), "GRASP_NOW": "2026-01-01T00:00:00Z"})["GRASP_NOW"] == (
        "2026-01-01T00:00:00Z"
    ), "what the user sets wins"
    assert "GRASP_NOW" not in seen_by_make(target, {"GRASP_HOME": str(tmp_path)}), "no demo, no clock"


def test_no_other_target_of_make_sees_the_demo_s_clock(settings, tmp_path, seen_by_make):
    (tmp_path / MAKE_FILE).write_text(make_variables(settings))
    assert "GRASP_NOW" not in seen_by_make("demo", {"GRASP_HOME": str(tmp_path)})


def test_make_is_named_as_it_is_typed_where_the_user_stands(tmp_path):
    usual = Settings.load({}).home
    assert make_command(usual, ROOT) == "make"
    assert make_command(usual, Path("/")) == f"make -C {ROOT}"
    assert make_command(tmp_path / "my home", ROOT) == f"GRASP_HOME='{tmp_path}/my home' make"


def interval(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


@pytest.fixture
def evaluation():
    found = {name: {"overall": {"ndcg@10": interval(mean)}} for name, mean in (("popularity", 0.05), ("m-1", 0.0712))}
    return {"candidate": "m-1", "num_events": 1234, "metrics": found}


def test_the_gate_s_line_has_the_figures_themselves(evaluation):
    figures = "NDCG@10 over 1,234 events: model 0.0712, popularity 0.0500"
    assert _figures(evaluation) == figures
    assert model_line({"promoted": True, "reason": "better"}, evaluation) == f"promoted: {figures}"
    assert model_line({"promoted": False, "reason": "too close"}, evaluation) == f"NOT promoted: too close; {figures}"
    assert model_line({"promoted": False, "reason": "no test events"}, None) == "NOT promoted: no test events"


def test_a_model_that_gets_hardly_any_text_right_is_warned_about(settings):
    assert texts_line(settings, 150, 92) == (
        "150 asked of tiny-llm, 92 accepted; all other descriptions are built from facts"
    )
    assert texts_line(settings, 74, 0).startswith("warning: 74 asked of tiny-llm, 0 accepted; facts stand in")
    assert not texts_line(settings, 0, 0).startswith("warning")


def test_the_summary_has_eleven_lines(settings, evaluation, capsys):
    def write(table, day, num_rows):
        folder = partitions.partition_path(settings.lake, table, None, day)
        folder.mkdir(parents=True)
        partitions.write_content(folder, Content(num_rows, "test"))
        return folder

    for table, num_rows in ((tables.USERS, 943), (tables.ITEMS, 1682), (tables.QUARANTINE, 5)):
        write(table, "1998-04-22", num_rows)
    for day in ("1998-04-21", "1998-04-22"):
        write(tables.INTERACTIONS, day, 600)
    answers = pa.table({"generation_key": ["a", "a", "b"], "description": [None, "A film.", None]})
    pq.write_table(answers, write(tables.ITEM_GENERATION, "1998-04-22", 3) / "part-0.parquet")
    manifest = Manifest("1998-04-22", "v1", "e1", {}, "service", "m-1")
    gains = {"none": interval(0.0), "takers": {"mean": 0.0123, "low": 0.01, "high": 0.02}}
    fresh = {"chosen": "takers", "gains": gains}
    for file, content in (
        (settings.releases / CURRENT_FILE, asdict(manifest)),
        (settings.home / "training" / "1998-04-22" / "decision.json", {"promoted": True, "reason": "better"}),
        (settings.home / "training" / "1998-04-22" / "evaluation.json", evaluation),
        (release_folder(settings.releases, manifest) / "model" / "config.json", {"metadata": {"fresh": fresh}}),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))

    summarise(settings, "1998-02-28", "1998-04-22", "user 93", settings.home)

    shown = dict(line.removeprefix("[grasp] ").split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert len(shown) == 11
    assert shown["fresh"] == "takers chosen; validation NDCG@10 takers +0.0123 (+0.0100 to +0.0200)"
    assert shown["data"] == "943 users, 1,682 items, 1,200 interactions up to 1998-04-22; 5 rows quarantined"
    assert shown["texts"].startswith("2 asked of tiny-llm, 1 accepted")
    assert shown["model"].startswith("trained up to 1998-02-28, promoted: NDCG@10 over 1,234 events: model 0.0712")
    assert shown["release"] == f"{manifest.release_id}, model m-1, in {settings.releases}"
    assert shown["Explorer"].endswith(" serve    then http://127.0.0.1:8100/explore#user=user%2093")
    assert "grasp dead-letters list" in shown["all"]
    assert (settings.home / MAKE_FILE).exists()
