"""What must be there before anything slow starts is named by its setting."""

import pytest

from grasp import preflight
from grasp.settings import SettingsError
from grasp.stages import STAGES


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "interactions.tsv.gz").touch()
    (folder / "items.parquet").mkdir()
    return folder


def test_a_source_in_any_format_will_do(settings_with, source):
    preflight.require_source(settings_with(source=source))


def test_a_source_without_items_says_what_it_holds(settings_with, source):
    (source / "items.parquet").rmdir()
    with pytest.raises(SettingsError, match=r"GRASP_SOURCE: .*no items\.\*; it holds interactions\.tsv\.gz"):
        preflight.require_source(settings_with(source=source))


def test_a_folder_without_a_model_is_named_unless_a_server_stands_in(settings_with, tmp_path):
    with pytest.raises(SettingsError, match=f"GRASP_ENCODER: {tmp_path} holds no model"):
        preflight.require_models(settings_with(encoder=tmp_path))
    preflight.require_models(settings_with(encoder=tmp_path, encoder_url="http://localhost/v1", encoder_model="e"))


def test_a_model_file_is_refused_in_favour_of_its_folder(settings_with, tmp_path):
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(SettingsError, match=r"GRASP_LLM: .*model\.gguf is a file; name the folder"):
        preflight.require_models(settings_with(llm=file))


def test_a_variable_that_the_feature_store_file_wants_is_named(settings_with, tmp_path):
    file = tmp_path / "store.yaml"
    file.write_text("project: ${NOT_SET_ANYWHERE}")
    with pytest.raises(SettingsError, match=r"store\.yaml uses the variable 'NOT_SET_ANYWHERE'"):
        preflight.require_feature_store(settings_with(feature_store_yaml=file))


def test_a_java_home_without_java_is_named(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match=f"JAVA_HOME: {tmp_path} holds no bin/java"):
        preflight.require_java(settings)


def test_no_java_at_all_is_said(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(preflight.shutil, "which", lambda *_, **__: None)
    with pytest.raises(SettingsError, match="no java on the PATH"):
        preflight.require_java(settings)


def test_a_port_is_free_until_somebody_listens(settings_with):
    with preflight.listen("GRASP_PORT", "127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        taken = settings_with(port=port)
        with pytest.raises(SettingsError, match=f"GRASP_PORT: 127.0.0.1:{port} cannot be used: Address already in use"):
            preflight.require_port(taken)

    preflight.require_port(taken)
    preflight.require_port(taken)  # the check itself leaves it free


def test_stages_ask_for_what_they_use():
    asked = {name: {check.__name__ for check in preflight.of_stage(name)} for name in STAGES}
    assert asked["ingest"] == {"require_source"}
    assert asked["describe_items"] == asked["embed_descriptions"] == {"require_models"}
    assert asked["find_neighbours"] == asked["find_moments"] == asked["check_quality"] == {"require_models"}
