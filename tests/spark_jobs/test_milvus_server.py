"""The port that writes Milvus-Lite writes a real Milvus server in the same way.

The server is the PyPI package `milvus`, the binary without Docker, in a virtual environment of its own under
GRASP_HOME, made when first needed.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grasp.settings import ROOT
from spark_jobs.neighbours import Catalogue, ExactBackend, MilvusBackend
from spark_jobs.vectors import open_vectors

pytestmark = pytest.mark.integration

SERVER = """
import sys
from milvus import default_server
default_server.set_base_dir(sys.argv[1])
default_server.listen_port = int(sys.argv[2])
default_server.start()
print("ready", flush=True)
sys.stdin.read()
default_server.stop()
"""


def missing(reason):
    if os.environ.get("GRASP_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and GRASP_REQUIRE_ALL=1")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def server_python():
    """Python of the server's environment; the marker file says that its installation was finished."""
    home = Path(os.environ.get("GRASP_HOME") or ROOT / ".grasp").resolve()
    environment = home / "milvus-server-venv"
    python, finished = environment / "bin" / "python", environment / "installed"
    if not finished.exists():
        install = [python, "-m", "pip", "install", "--quiet", "milvus==2.3.5", "setuptools<81"]
        for command in ([sys.executable, "-m", "venv", "--clear", environment], install):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                missing(f"the Milvus server milvus==2.3.5 cannot be installed: {done.stderr.strip()[-300:]}")
        finished.touch()
    return python


@pytest.fixture(scope="module")
def server_uri(server_python, tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [server_python, "-c", SERVER, tmp_path_factory.mktemp("milvus"), str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n", "the Milvus server did not start"
        yield f"http://127.0.0.1:{port}"
        server.communicate(timeout=60)


def clustered(num, dimension):
    random = np.random.default_rng(7)
    centres = random.normal(size=(num // 50, dimension))
    vectors = centres[random.integers(len(centres), size=num)] + 0.4 * random.normal(size=(num, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_server_holds_what_lite_holds(server_uri, settings_with):
    vectors = clustered(1_500, 384)
    vectors[100:120] = vectors[0]
    ids = [*(str(i) for i in range(1_498)), "it's", 'say "x"\\']
    with open_vectors(settings_with(milvus_uri=server_uri)) as store:
        store.ensure_collection("c_new", 384)
        for _ in range(2):
            store.upsert("c_new", ids, vectors, ["h"] * 1_500)
        store.require_equal("c_new", 1_500, {each: vectors[ids.index(each)] for each in ("7", "it's", 'say "x"\\')})
        assert set(store.hashes("c_new")) == set(ids)

        store.ensure_collection("c_old", 384)
        assert [store.switch_alias("c", name) for name in ("c_old", "c_new", "c_new")] == [True, True, False]
        assert store.count("c") == 1_500

        catalogue = Catalogue(ids, vectors)
        found = MilvusBackend(store, "c", catalogue).search(ids[:300], vectors[:300], 10)
        assert found == ExactBackend(catalogue).search(ids[:300], vectors[:300], 10)

        store.delete("c_new", ["it's", "7"])
        store.require_equal("c_new", 1_498, {"8": vectors[8]})
