"""A reader finds the old file or the new one, never half of either."""

import json

import numpy as np
import pytest

from grasp.files import replacing, write_json


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
