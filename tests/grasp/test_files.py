"""A file that is written is the old one or the new one, whoever reads it meanwhile."""

import json

import numpy as np
import pytest

from grasp.files import write_arrays, write_json


def test_arrays_come_back_from_a_folder_that_was_missing(tmp_path):
    write_arrays(tmp_path / "new" / "a.npz", near=np.arange(3), far=np.ones(2))

    with np.load(tmp_path / "new" / "a.npz") as found:
        assert found["near"].tolist() == [0, 1, 2]
        assert found["far"].tolist() == [1, 1]


class Unwritable:
    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("the disk is full")


def test_what_fails_on_the_way_leaves_the_old_file(tmp_path):
    write_arrays(tmp_path / "a.npz", near=np.arange(3))
    write_json(tmp_path / "a.json", {"old": 1})

    with pytest.raises(RuntimeError, match="full"):
        write_arrays(tmp_path / "a.npz", near=np.zeros(2), far=Unwritable())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})

    with np.load(tmp_path / "a.npz") as found:
        assert found["near"].tolist() == [0, 1, 2]
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
