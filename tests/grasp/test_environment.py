"""Child processes get complete settings; variables that production has set are kept."""

import os
import subprocess
import sys

import pytest

from grasp.environment import process_environment
from grasp.settings import ROOT, Settings


def test_children_see_the_same_settings(settings):
    assert Settings.load(process_environment(settings)) == settings


def test_a_variable_that_is_already_set_wins(settings, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", "spark://cluster:7077")
    assert process_environment(settings)["AIRFLOW_CONN_SPARK_DEFAULT"] == "spark://cluster:7077"


@pytest.mark.parametrize(("num_cores", "num_processes"), [(1, "2"), (2, "2"), (8, "8"), (96, "32")])
def test_airflow_s_processes_follow_the_cores(settings, monkeypatch, num_cores, num_processes):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)))
    assert process_environment(settings)["AIRFLOW__CORE__PARALLELISM"] == num_processes


def test_our_code_comes_first_on_the_path(settings, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/opt/others")
    assert process_environment(settings)["PYTHONPATH"] == f"{ROOT}:/opt/others"


def test_only_a_local_spark_is_bound_to_the_loopback_interface(settings, settings_with, monkeypatch):
    monkeypatch.delenv("SPARK_LOCAL_IP", raising=False)
    assert process_environment(settings)["SPARK_LOCAL_IP"] == "127.0.0.1"
    assert "SPARK_LOCAL_IP" not in process_environment(settings_with(spark_master="spark://cluster:7077"))


def test_a_wrong_setting_ends_before_the_command_starts(settings, environment):
    environment["GRASP_PORT"] = "none"
    command = [sys.executable, "-m", "grasp.environment", "touch", str(settings.home / "started")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "GRASP_PORT" in result.stderr
    assert not (settings.home / "started").exists()


def test_a_command_that_does_not_exist_is_one_line(environment):
    command = [sys.executable, "-m", "grasp.environment", "no-such-command"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "error: no command no-such-command\n")


def test_spark_gets_our_options_before_the_users_own_and_only_once(settings, monkeypatch):
    monkeypatch.delenv("SPARK_CONF_DIR", raising=False)
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-Xss4m")
    options = process_environment(settings)["SPARK_SUBMIT_OPTS"]
    assert options.startswith(f'"@{ROOT}/spark_jobs/conf/driver.options"')
    assert options.endswith(" -Xss4m")
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", options)
    assert process_environment(settings)["SPARK_SUBMIT_OPTS"] == options


def test_a_configuration_of_spark_of_the_users_own_is_left_alone(settings, monkeypatch):
    monkeypatch.setenv("SPARK_CONF_DIR", "/etc/spark")
    monkeypatch.delenv("SPARK_SUBMIT_OPTS", raising=False)
    assert "SPARK_SUBMIT_OPTS" not in process_environment(settings)
