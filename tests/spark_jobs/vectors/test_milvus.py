"""Milvus-Lite: written vectors are checked and verified, and one process at a time opens the folder."""

import subprocess
import sys

import numpy as np
import pytest

from spark_jobs.vectors.milvus import open_vector_store

HOLD_THE_LOCK = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)
HOSTILE = ["it's", 'say "x"', "back\\slash", "'] or id != '", "ü", "{a}"]


def unit(*rows):
    matrix = np.array(rows, dtype=np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_an_upsert_overwrites_and_can_be_repeated(settings):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        for _ in range(2):
            store.upsert("c", ["1", "2"], unit([1, 0], [0, 1]), ["old", "same"])
        store.upsert("c", ["1"], unit([1, 1]), ["new"])
        assert store.hashes("c") == {"1": "new", "2": "same"}
        store.require_equal("c", 2, {"1": unit([1, 1])[0]})


def test_rows_survive_reopening_the_folder(settings):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        store.upsert("c", ["1"], unit([3, 4]), ["h"])
    with open_vector_store(settings) as store:
        assert store.hashes("c") == {"1": "h"}
        assert store.search("c", unit([3, 4]), 5) == [[("1", pytest.approx(1.0))]]


@pytest.mark.parametrize("wrong", [[np.nan, 1.0], [np.inf, 0.0], [0.0, 0.0]])
def test_a_vector_not_of_unit_length_is_refused_before_anything_is_written(settings, wrong):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        with pytest.raises(ValueError, match=r"not: bad"):
            store.upsert("c", ["good", "bad"], np.array([[1, 0], wrong], dtype=np.float32), ["h", "h"])
        assert store.count("c") == 0


def test_ids_cannot_inject_filters(settings):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        store.upsert("c", HOSTILE, unit(*([1, i] for i in range(len(HOSTILE)))), ["h"] * len(HOSTILE))
        assert set(store.read("c", HOSTILE)) == set(HOSTILE)
        store.delete("c", HOSTILE[:4])
        assert set(store.hashes("c")) == set(HOSTILE[4:])


def test_a_scan_of_many_pages_finds_every_row_once(settings, monkeypatch):
    monkeypatch.setattr("spark_jobs.vectors.milvus.MAX_ROWS", 16)
    monkeypatch.setattr("spark_jobs.vectors.milvus.PAGE_ROWS", 5)
    ids = [str(i) for i in range(40)]
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        store.upsert("c", ids, unit(*([1, i] for i in range(40))), ids)
        assert store.hashes("c") == dict(zip(ids, ids, strict=True))


def test_a_wrong_count_or_vector_is_detected(settings):
    with open_vector_store(settings) as store:
        store.ensure_collection("c", 2)
        store.upsert("c", ["1"], unit([1, 0]), ["h"])
        with pytest.raises(ValueError, match="collection c has 1 rows instead of 2"):
            store.require_equal("c", 2, {})
        with pytest.raises(ValueError, match="does not return the vector that was written for 1"):
            store.require_equal("c", 1, {"1": unit([0, 1])[0]})


def test_the_alias_moves_in_one_step_and_only_when_it_must(settings):
    with open_vector_store(settings) as store:
        for name, vector in (("old", [1, 0]), ("new", [0, 1])):
            store.ensure_collection(name, 2)
            store.upsert(name, [name], unit(vector), ["h"])
        assert [store.switch_alias("current", name) for name in ("old", "old", "new")] == [True, False, True]
        assert store.hashes("current") == {"new": "h"}
        assert store.hashes("old") == {"old": "h"}


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
        store.upsert("c", ids, matrix, ["h"] * 20)
        store.require_equal("c", 20, dict(zip(ids, matrix, strict=True)))
        assert [hits[0][0] for hits in store.search("c", matrix, 3)] == ids


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
