"""A remembered hash is never that of an earlier content."""

import os

import pytest

from grasp import file_hashes
from grasp.file_hashes import remembered_hashes
from grasp.versions import file_sha256

OLD = 1_000_000_000


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of which nobody may say when its inode changed: times of a test are always fresh."""
    monkeypatch.setattr(file_hashes, "SETTLED_SECONDS", 0.0)
    file = tmp_path / "weights"
    file.write_bytes(b"0" * 5_000_000)
    return file


class Reader:
    """Hashes files and notes which."""

    def __init__(self):
        self.read = []

    def __call__(self, path):
        self.read.append(path.name)
        return file_sha256(path)


def test_an_unchanged_file_is_read_once(file, tmp_path):
    reader = Reader()
    first = remembered_hashes(reader, [file], tmp_path / "memory.json")
    assert remembered_hashes(reader, [file], tmp_path / "memory.json") == first == [file_sha256(file)]
    assert reader.read == ["weights"]


def test_a_change_of_equal_size_and_time_is_seen(file, tmp_path):
    os.utime(file, (OLD, OLD))
    [before] = remembered_hashes(file_sha256, [file], tmp_path / "memory.json")
    with file.open("r+b") as opened:  # in place: the same inode
        opened.seek(2_500_000)
        opened.write(b"1")
    os.utime(file, (OLD, OLD))
    assert remembered_hashes(file_sha256, [file], tmp_path / "memory.json") == [file_sha256(file)] != [before]


def test_a_replaced_file_of_equal_size_and_time_is_seen(file, tmp_path):
    os.utime(file, (OLD, OLD))
    [before] = remembered_hashes(file_sha256, [file], tmp_path / "memory.json")
    other = tmp_path / "other"
    other.write_bytes(b"1" * 5_000_000)
    os.utime(other, (OLD, OLD))
    other.replace(file)
    assert remembered_hashes(file_sha256, [file], tmp_path / "memory.json") == [file_sha256(file)] != [before]


def test_a_file_that_changed_just_now_is_not_remembered(file, tmp_path, monkeypatch):
    monkeypatch.setattr(file_hashes, "SETTLED_SECONDS", 10.0)
    reader = Reader()
    for _ in range(2):
        remembered_hashes(reader, [file], tmp_path / "memory.json")
    assert reader.read == ["weights", "weights"]
    assert not (tmp_path / "memory.json").exists()


def test_a_memory_that_cannot_be_written_is_said_and_costs_time_only(file, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file, not a folder")
    assert remembered_hashes(file_sha256, [file], tmp_path / "taken" / "memory.json") == [file_sha256(file)]
    assert "cannot be written (" in capsys.readouterr().out


def test_a_file_that_cannot_be_hashed_does_not_blame_the_memory(file, tmp_path):
    def refuse(path):
        raise ValueError(f"{path.name} is not what it should be")

    with pytest.raises(ValueError, match=r"^weights is not what it should be$"):
        remembered_hashes(refuse, [file], tmp_path / "memory.json")


@pytest.mark.parametrize("damage", ["{", "[]", '{"weights": 1}'])
def test_a_damaged_memory_is_named(file, tmp_path, damage):
    memory = tmp_path / "memory.json"
    memory.write_text(damage.replace("weights", str(file)))
    with pytest.raises(ValueError, match=r"memory\.json is damaged .*: remove it"):
        remembered_hashes(file_sha256, [file], memory)
