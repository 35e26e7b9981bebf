"""Milvus-Lite: written vectors are checked and verified, and one process at a time opens the folder."""

import subprocess
import sys

import numpy as np
import pytest

from spark_jobs.vectors.milvus import Text, open_vector_store

HOLD_THE_LOCK = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)
LONGEST = "字" * 170 + "ab"  # 512 bytes
HOSTILE = ["it's", 'say "x"', "back\\slash", "'] or id != '", "ü", "{a}", LONGEST]


def unit(*rows):
    matrix = np.array(rows, dtype=np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def texts(ids, description_hash="h"):
    return [Text(each, description_hash) for each in ids]


def test_a_changed_text_is_a_row_beside_the_old_one_and_adding_can_be_repeated(settings):
    old, same, new = Text("1", "old"), Text("2", "same"), Text("1", "new")
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        for _ in range(2):
            store.add("c", [old, same], unit([1, 0], [0, 1]))
        store.add("c", [new], unit([1, 1]))
        assert store.texts("c") == {old, same, new}
        store.require_equal("c", 3, {new: unit([1, 1])[0], old: unit([1, 0])[0]})
        store.delete("c", [old])
        assert store.texts("c") == {same, new}


def test_rows_survive_reopening_the_folder(settings):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        store.add("c", texts("1"), unit([3, 4]))
    with open_vector_store(settings) as store:
        assert store.texts("c") == {Text("1", "h")}
        assert store.search("c", unit([3, 4]), 5) == [[(Text("1", "h"), pytest.approx(1.0))]]


@pytest.mark.parametrize("wrong", [[np.nan, 1.0], [np.inf, 0.0], [0.0, 0.0]])
def test_a_vector_not_of_unit_length_is_refused_before_anything_is_written(settings, wrong):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        with pytest.raises(ValueError, match=r"not: bad"):
            store.add("c", texts(["good", "bad"]), np.array([[1, 0], wrong], dtype=np.float32))
        assert store.count("c") == 0


def test_ids_cannot_inject_filters(settings):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        store.add("c", texts(HOSTILE), unit(*([1, i] for i in range(len(HOSTILE)))))
        assert set(store.read("c", texts(HOSTILE))) == set(texts(HOSTILE))
        store.delete("c", texts(HOSTILE[:4]))
        assert store.texts("c") == set(texts(HOSTILE[4:]))


def test_a_scan_of_many_pages_finds_every_row_once(settings, monkeypatch):
    monkeypatch.setattr("spark_jobs.vectors.milvus.MAX_ROWS", 16)
    monkeypatch.setattr("spark_jobs.vectors.milvus.PAGE_ROWS", 5)
    ids = [str(i) for i in range(40)]
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        store.add("c", texts(ids), unit(*([1, i] for i in range(40))))
        assert store.texts("c") == set(texts(ids))


def test_a_wrong_count_or_vector_is_detected(settings):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        store.add("c", texts("1"), unit([1, 0]))
        with pytest.raises(ValueError, match="collection c has 1 rows instead of 2"):
            store.require_equal("c", 2, {})
        with pytest.raises(ValueError, match="does not return the vector that was written for 1"):
            store.require_equal("c", 1, {Text("1", "h"): unit([0, 1])[0]})


def test_a_collection_of_another_dimension_is_refused(settings):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        with pytest.raises(ValueError, match="c holds vectors of 2 numbers, not 3"):
            store.ensure_collection("c", 3)


def test_vectors_of_1536_dimensions_are_read_back_unchanged(settings):
    matrix = unit(*np.random.default_rng(0).normal(size=(20, 1536)))
    ids = [str(i) for i in range(20)]
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 1536)
        store.add("c", texts(ids), matrix)
        store.require_equal("c", 20, dict(zip(texts(ids), matrix, strict=True)))
        assert [hits[0][0].id for hits in store.search("c", matrix, 3)] == ids


def test_a_folder_that_another_process_has_open_is_named(settings):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
    lock = f"{settings.milvus_uri}/LOCK"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        message = f"{settings.milvus_uri} is open in another process.*embed_descriptions"
        with pytest.raises(ValueError, match=message), open_vector_store(settings):
            pass
        holder.communicate("done\n")
    with open_vector_store(settings) as store:
        assert store.has_collection("c")


def test_the_lock_is_released_also_after_an_error(settings):
    with pytest.raises(ZeroDivisionError), open_vector_store(settings):
        raise ZeroDivisionError
    with open_vector_store(settings) as store:
        assert not store.has_collection("c")


def test_an_error_of_milvus_names_the_setting(settings):
    with (
        pytest.raises(ValueError, match=f"Milvus at {settings.milvus_uri} failed"),
        open_vector_store(settings) as store,
    ):
        store.count("never made")


def test_a_server_that_does_not_answer_is_named(settings_with):
    nobody = settings_with(milvus_uri="http://127.0.0.1:9")
    with pytest.raises(ValueError, match=f"GRASP_MILVUS_URI={nobody.milvus_uri}"), open_vector_store(nobody):
        pass
