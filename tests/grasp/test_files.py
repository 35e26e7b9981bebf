"""A reader finds the old file or the new one, never half of either; a folder's files are found through links."""

import json

import numpy as np
import pytest

from grasp.files import files_below, replacing, write_json


def test_a_missing_folder_is_created_and_the_file_reads_back(tmp_path):
    with replacing(tmp_path / "new" / "a.npz") as handle:
        np.savez(handle, near=np.arange(3))
    write_json(tmp_path / "newer" / "a.json", {"é": 1})

    with np.load(tmp_path / "new" / "a.npz") as found:
        assert found["near"].tolist() == [0, 1, 2]
    assert (tmp_path / "newer" / "a.json").read_text() == '{\n "é": 1\n}\n'


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})

    with pytest.raises(RuntimeError, match="full"), replacing(tmp_path / "a.json") as handle:
        handle.write(b"half of")
        raise RuntimeError("the disk is full")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})

    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_files_are_found_once_through_links_that_may_lead_back(tmp_path):
    for name in ("top/a", "top/inner/b", "other/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "top" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "top" / "inner" / "up").symlink_to(tmp_path / "top")
    (tmp_path / "other" / "up").symlink_to(tmp_path / "top")
    (tmp_path / "top" / "gone").symlink_to(tmp_path / "nowhere")
    found = [str(path.relative_to(tmp_path / "top")) for path in files_below(tmp_path / "top")]
    assert sorted(found) == ["a", "gone", "inner/b", "linked/c"]
