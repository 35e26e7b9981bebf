"""Child processes get complete settings, and what production set already is left alone."""

import subprocess
import sys

from grasp.environment import process_environment
from grasp.settings import Settings


def test_children_see_the_same_settings(settings):
    assert Settings.load(process_environment(settings)) == settings


def test_what_is_set_already_wins(settings, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", "spark://cluster:7077")
    assert process_environment(settings)["AIRFLOW_CONN_SPARK_DEFAULT"] == "spark://cluster:7077"


def test_a_wrong_setting_ends_before_the_command_starts(settings, environment):
    environment["GRASP_PORT"] = "none"
    command = [sys.executable, "-m", "grasp.environment", "touch", str(settings.home / "started")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "GRASP_PORT" in result.stderr
    assert not (settings.home / "started").exists()
