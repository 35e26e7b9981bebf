"""A wrong setting stops the run at its start and is named; every setting has a default."""

import re
import subprocess
from pathlib import Path

import pytest

from grasp.settings import DEFAULT_PARAMETERS, ROOT, Settings, SettingsError


def test_nothing_has_to_be_set_and_everything_lies_under_the_home(tmp_path):
    assert Settings.load({}).home == ROOT / ".grasp"
    settings = Settings.load({"GRASP_HOME": str(tmp_path)})
    for place in ("source", "lake", "releases", "data_docs", "llm", "encoder"):
        assert getattr(settings, place).is_relative_to(tmp_path)
    assert settings.milvus_uri == f"{tmp_path}/milvus.db"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"GRASP_LLM_BUDGET": "many"}, "GRASP_LLM_BUDGET: .*integer.*'many'"),
        ({"GRASP_LLM_BUGDET": "5"}, "GRASP_LLM_BUGDET is not a setting; did you mean GRASP_LLM_BUDGET"),
        ({"GRASP_NOW": "1998-04-22T23:59:59"}, "GRASP_NOW: .*timezone"),
        ({"GRASP_NOW": "1998-04-22"}, "GRASP_NOW: a time with its timezone .*T23:59:59Z"),
        ({"GRASP_NOW": "yesterday"}, "GRASP_NOW: a time with its timezone .*T23:59:59Z"),
        ({"GRASP_PORT": "99999"}, "GRASP_PORT"),
        ({"GRASP_SEARCH": "maybe"}, "GRASP_SEARCH: .*boolean"),
        ({"GRASP_LLM_URL": "http://:99999/v1"}, "^GRASP_LLM_URL: .*https://models.example.com/v1"),
        ({"GRASP_NEIGHBOUR_BACKEND": "magic"}, "GRASP_NEIGHBOUR_BACKEND.*'exact' or 'milvus'"),
        ({"GRASP_LLM_URL": "models.example.com"}, "^GRASP_LLM_URL: .*https://models.example.com/v1"),
        ({"GRASP_LLM_URL": "http://localhost:8000/v1"}, "^GRASP_LLM_MODEL: .*GRASP_LLM_URL names a server"),
        ({"GRASP_LLM_BATCH_FILES": "true"}, "^GRASP_LLM_BATCH_FILES: .*GRASP_LLM_URL"),
        ({"GRASP_LLM_MAX_ATTEMPTS": "0"}, "GRASP_LLM_MAX_ATTEMPTS"),
        ({"GRASP_LLM_PARAMETERS": "temperature=0"}, "GRASP_LLM_PARAMETERS: not JSON"),
        ({"GRASP_LLM_PARAMETERS": "[0]"}, "GRASP_LLM_PARAMETERS: a JSON object is needed"),
        ({"GRASP_LLM_PARAMETERS": '{"max_tokens": 9}'}, "GRASP_LLM_PARAMETERS: max_tokens: set by other settings"),
        ({"GRASP_LLM_MAX_COST": "9"}, "^GRASP_LLM_MAX_COST: .*GRASP_LLM_OUTPUT_PRICE"),
        ({"GRASP_HOME": "/data/shop [1]"}, r"^GRASP_HOME: .* for a pattern: .*\(got '/data/shop \[1\]'\)$"),
        ({"GRASP_LAKE": "/data/{lake}"}, "^GRASP_LAKE: .* for a pattern"),
    ],
)
def test_a_wrong_setting_is_named(environ, message, tmp_path):
    with pytest.raises(SettingsError, match=message):
        Settings.load({"GRASP_HOME": str(tmp_path)} | environ)


def test_the_service_variables_of_kubernetes_pass_over(tmp_path):
    services = {
        "GRASP_SERVICE_HOST": "10.0.0.7",
        "GRASP_SERVICE_PORT": "80",
        "GRASP_SERVICE_PORT_HTTP": "80",
        "GRASP_PORT": "tcp://10.0.0.7:80",
        "GRASP_PORT_80_TCP": "tcp://10.0.0.7:80",
        "GRASP_PORT_80_TCP_PROTO": "tcp",
        "GRASP_PORT_80_TCP_ADDR": "10.0.0.7",
        "GRASP_AIRFLOW_PORT": "tcp://10.0.0.8:80",
        "GRASP_SERVING_SERVICE_HOST": "10.0.0.9",
        "GRASP_SERVING_PORT_8100_TCP_PORT": "8100",
    }
    home = {"GRASP_HOME": str(tmp_path)}
    assert Settings.load(home | services) == Settings.load(home)


def test_settings_made_in_code_ignore_the_process_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GRASP_NUM_NEIGHBOURS", "3")
    assert Settings(home=tmp_path).num_neighbours == 10
    assert Settings.load().num_neighbours == 3


def test_settings_pass_unchanged_through_a_child_process(tmp_path):
    given = {"GRASP_HOME": str(tmp_path), "GRASP_NOW": "1998-04-22T23:59:59Z", "GRASP_HIDDEN_ATTRIBUTES": "asin,ean"}
    settings = Settings.load(given)
    assert Settings.load(settings.variables()) == settings


def test_the_clock_is_the_wall_clock_unless_it_is_set(tmp_path):
    told = Settings.load({"GRASP_HOME": str(tmp_path), "GRASP_NOW": "1998-04-22T23:59:59+01:00"})
    assert told.clock().isoformat() == "1998-04-22T22:59:59+00:00"
    assert Settings.load({"GRASP_HOME": str(tmp_path)}).clock().year >= 2026


def test_a_clock_of_the_future_takes_a_switch(tmp_path):
    given = {"GRASP_HOME": str(tmp_path), "GRASP_NOW": "2998-12-31T00:00:00Z"}
    with pytest.raises(SettingsError, match=r"^GRASP_NOW: later than the wall clock.*GRASP_FUTURE_DAYS=true"):
        Settings.load(given)
    settings = Settings.load({**given, "GRASP_FUTURE_DAYS": "true"})
    assert Settings.load(settings.variables()).clock().year == 2998


def test_secrets_do_not_show(tmp_path):
    secrets = {
        "GRASP_MILVUS_TOKEN": "hunter2",
        "GRASP_MLFLOW_URI": "mysql://me:hunter2@db/mlflow",
        "GRASP_REDIS": "redis:6379,password=hunter2",
    }
    settings = Settings.load({"GRASP_HOME": str(tmp_path), **secrets})
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert settings.variables()["GRASP_MILVUS_TOKEN"] == "hunter2"


def test_a_wrong_secret_is_named_but_not_shown(tmp_path):
    with pytest.raises(SettingsError) as error:
        Settings.load({"GRASP_HOME": str(tmp_path), "GRASP_PORT": "x", "GRASP_REDIS": "hunter2"})
    assert "GRASP_PORT" in str(error.value)
    assert "GRASP_REDIS" in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("setting", ["GRASP_LLM_URL", "GRASP_ENCODER_URL"])
@pytest.mark.parametrize("url", ["http://me:hunter2@host/v1", "http://host/v1?key=hunter2", "http://host/v1#hunter2"])
def test_a_key_in_the_address_of_a_server_is_refused_and_not_shown(tmp_path, setting, url):
    with pytest.raises(SettingsError, match=rf"{setting}: .*GRASP_LLM_API_KEY") as error:
        Settings.load({"GRASP_HOME": str(tmp_path), setting: url})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("place", ["me:hunter2@milvus:19530", "milvus:19530,token=hunter2"])
def test_a_secret_in_the_place_of_milvus_becomes_no_path_and_is_not_shown(tmp_path, place):
    with pytest.raises(SettingsError, match=r"^GRASP_MILVUS_URI: .*ends in \.db") as error:
        Settings.load({"GRASP_HOME": str(tmp_path), "GRASP_MILVUS_URI": place})
    assert "hunter2" not in str(error.value)


def test_the_key_of_the_server_is_in_no_list_of_settings(tmp_path):
    settings = Settings.load({"GRASP_HOME": str(tmp_path), "GRASP_LLM_API_KEY": "hunter2"})
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.variables())


def test_the_example_file_names_and_describes_every_setting_and_no_other():
    lines = (Path(ROOT) / ".env.example").read_text().splitlines()
    described: dict[str, str | None] = {}
    first = ""
    for line in lines:
        if re.match(r"(# )?GRASP_\w+=", line):
            described[line.removeprefix("# ").partition("=")[0]] = first
        first = (first or line.removeprefix("# ")) if line else ""
    assert described == {f"GRASP_{name.upper()}": field.description for name, field in Settings.model_fields.items()}


def test_the_shell_reads_every_line_of_the_example_file(tmp_path):
    lines = (Path(ROOT) / ".env.example").read_text().splitlines()
    settings = [line.removeprefix("# ") for line in lines if re.match(r"(# )?GRASP_\w+=.", line)]
    (tmp_path / ".env").write_text("\n".join(settings))
    read = ["bash", "-ec", f"set -a; . {tmp_path}/.env; env -0"]
    found = subprocess.run(read, env={}, capture_output=True, text=True, check=True).stdout
    assert {f"GRASP_LLM_PARAMETERS={DEFAULT_PARAMETERS}"} <= set(found.split("\0"))
    assert found.count("GRASP_") >= len(settings)
