"""The same code works with Milvus-Lite and with a real Milvus server.

`benchmarks/serving/milvus_server.py` tells which server.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving.milvus_server import installed_python, milvus_server
from grasp.settings import ROOT
from spark_jobs.vectors.milvus import Text, open_vector_store
from spark_jobs.vectors.nearest_neighbours import ExactBackend, MilvusBackend, VectorSet

pytestmark = pytest.mark.integration


def missing(reason):
    if os.environ.get("GRASP_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and GRASP_REQUIRE_ALL=1")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def server_uri(tmp_path_factory):
    home = Path(os.environ.get("GRASP_HOME") or ROOT / ".grasp").resolve()
    try:
        installed_python(home)
    except ValueError as error:
        missing(str(error))
    with milvus_server(home, tmp_path_factory.mktemp("milvus")) as (uri, _):
        yield uri


def clustered(num, dimension):
    random = np.random.default_rng(7)
    centres = random.normal(size=(num // 50, dimension))
    vectors = centres[random.integers(len(centres), size=num)] + 0.4 * random.normal(size=(num, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_server_gives_the_same_results_as_milvus_lite(server_uri, settings_with):
    vectors = clustered(1_500, 384)
    vectors[100:120] = vectors[0]
    ids = [*(str(i) for i in range(1_497)), "字" * 170 + "ab", "it's", 'say "x"\\']
    texts = [Text(each, "h") for each in ids]
    with open_vector_store(settings_with(milvus_uri=server_uri)) as store:
        store.ensure_collection("c", 384)
        for _ in range(2):
            store.add("c", texts, vectors)
        store.require_equal("c", 1_500, {texts[row]: vectors[row] for row in (7, 1_497, 1_498, 1_499)})
        assert store.texts("c") == set(texts)
        store.add("c", [Text(each, "of another day") for each in ids[:200]], vectors[:200])
        assert store.count("c") == 1_700

        vector_set = VectorSet(ids, vectors)
        found = MilvusBackend(store, "c", vector_set, dict(texts)).search(ids[:300], vectors[:300], 10)
        assert found == ExactBackend(vector_set).search(ids[:300], vectors[:300], 10)

        store.delete("c", [texts[7], texts[1_498]])
        store.require_equal("c", 1_698, {texts[8]: vectors[8]})
