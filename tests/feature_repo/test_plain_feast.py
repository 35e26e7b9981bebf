"""Plain Feast opens the release in force as Feast's own pages teach, without variables and without model weights."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pydantic import SecretStr

from feature_repo.materialise import materialise
from grasp.feature_store import FEAST_FILE_VARIABLE, release_store_file, write_release_store
from grasp.manifest import NoReleaseError
from grasp.settings import ROOT, Settings
from grasp.versions import Versions, feast_project, feature_service

DAY, NEXT = "1998-03-01", "1998-03-02"
REPO = ROOT / "feature_repo"


@pytest.fixture
def released(two_days):
    """The second day is online and released; the model folders are gone."""
    version = Versions(two_days.settings).feature
    materialise(two_days.settings, version, NEXT)
    two_days.publish(NEXT)
    write_release_store(two_days.settings)
    shutil.rmtree(two_days.settings.home / "models")
    return two_days.settings, version


@pytest.fixture
def store(released, monkeypatch):
    """As in a notebook: no variable of ours. The tests' home takes the place of the working copy's."""
    from feast import FeatureStore

    for name in [name for name in os.environ if name.startswith("GRASP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(FEAST_FILE_VARIABLE, str(release_store_file(released[0])))
    return FeatureStore(repo_path=str(REPO))


def test_the_repository_leads_to_the_release_of_the_usual_home():
    link = REPO / "feature_store.yaml"
    assert link.is_symlink()
    assert Path(os.path.normpath(REPO / link.readlink())) == release_store_file(Settings.load({}))


def test_the_file_names_the_releases_project_and_whole_paths(released):
    settings, version = released
    config = yaml.safe_load(release_store_file(settings).read_text())
    assert config["project"] == feast_project(version)
    assert config["registry"]["path"] == f"{settings.home}/feast/registry.db"
    assert "$" not in release_store_file(settings).read_text()


def test_a_secret_stays_a_variable(two_days):
    two_days.publish(DAY)
    production = REPO / "feature_store.production.yaml"
    changed = {"feature_store_yaml": production, "redis": SecretStr("redis://:s3cret@cache:6379/0")}
    text = write_release_store(two_days.settings.model_copy(update=changed)).read_text()
    assert "s3cret" not in text
    assert yaml.safe_load(text)["online_store"]["connection_string"] == "${GRASP_REDIS}"


def test_before_the_first_release_it_says_so(two_days):
    with pytest.raises(NoReleaseError, match="no release at"):
        write_release_store(two_days.settings)


def test_its_views_services_and_values_are_those_of_the_release(store, released):
    _, version = released
    assert {view.name for view in store.list_feature_views()} == {"user_features", "item_features"}
    (service,) = store.list_feature_services()
    assert service.name == feature_service(version)
    answer = store.get_online_features(["user_features:description"], [{"user_id": "u1"}]).to_dict()
    assert answer["description"] == [f"u1 on {NEXT}"]


@pytest.mark.parametrize(
    ("moment", "day"),
    [(f"{DAY} 23:59:58", None), (f"{DAY} 23:59:59", DAY), (f"{NEXT} 12:00:00", DAY), (f"{NEXT} 23:59:59", NEXT)],
)
def test_a_past_moment_has_the_last_whole_day(store, moment, day):
    """A day is known in its last second, which is how people write the end of a day."""
    asked = pd.DataFrame({"item_id": ["i1", "i2"], "event_timestamp": pd.to_datetime([moment] * 2, utc=True)})
    known = store.get_historical_features(asked, ["item_features:description"]).to_df()
    texts = dict(zip(known["item_id"], known["description"], strict=True))
    assert {key: text for key, text in texts.items() if isinstance(text, str)} == (
        {item: f"{item} on {day}" for item in ("i1", "i2")} if day else {}
    )


def run_grasp(environment, *arguments):
    command = [sys.executable, "-m", "cli.main", "feast", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=ROOT)


def test_the_command_says_when_there_is_no_release(two_days, environment):
    ended = run_grasp(environment, "feature-views", "list")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: no release at")
    assert ended.stderr.count("\n") == 1


@pytest.mark.integration
def test_feast_apply_changes_no_value_and_the_command_lists_the_features(released, store, environment):
    """Plain `feast` lists them, without a variable of ours."""
    settings, version = released
    applied = run_grasp(environment, "apply")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    answer = store.get_online_features(["user_features:description"], [{"user_id": "u1"}]).to_dict()
    assert answer["description"] == [f"u1 on {NEXT}"]
    assert {project.name for project in store.list_projects()} == {feast_project(version)}
    plain = {name: value for name, value in environment.items() if not name.startswith("GRASP_")}
    variables = plain | {FEAST_FILE_VARIABLE: str(release_store_file(settings))}
    command = ["feast", "-c", "feature_repo", "feature-views", "list"]
    listed = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert "user_features" in listed.stdout
    assert "item_features" in listed.stdout


@pytest.mark.integration
def test_a_store_of_another_home_is_not_applied(released, environment, tmp_path):
    other = tmp_path / "other.yaml"
    shutil.copy(release_store_file(released[0]), other)
    command = ["feast", "-c", str(REPO), "apply"]
    variables = environment | {FEAST_FILE_VARIABLE: str(other)}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert ended.returncode != 0
    assert "use `grasp feast`" in ended.stderr


@pytest.mark.integration
def test_feasts_own_page_starts(released, environment):
    pytest.importorskip("grpc_health", reason="feast[grpcio] is missing: run `make setup`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cli.main", "feast", "ui", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        shown = read_page(f"http://127.0.0.1:{port}/projects-list.json", process)
    finally:
        process.terminate()
        process.wait(timeout=60)
    assert feast_project(released[1]) in shown


def read_page(address, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 - this machine's own page
                return answer.read().decode()
        except OSError:
            time.sleep(1)
    raise AssertionError("the page did not start")
