"""A temporary Milvus server, filled with the items of a release.

The server is the PyPI package `milvus`, a binary without Docker. Its virtual environment below GRASP_HOME (81 MB) is
made when it is first needed.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.core.redis_server import free_port
from benchmarks.serving.release import ReleaseContent
from benchmarks.serving.running_service import STOP_SECONDS, stop
from grasp.processes import end_with_parent
from grasp.progress import say
from grasp.settings import Settings
from grasp.versions import Versions, collection, description_hash
from spark_jobs.vectors.milvus import Text, open_vector_store

PACKAGES = ("milvus==2.3.5", "setuptools<81")
ENVIRONMENT, FINISHED = "milvus-server-venv", "installed"
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


@contextmanager
def milvus_server(
    home: Path, folder: Path, stop_seconds: float = STOP_SECONDS
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The server's address, and a function that stops it before the block ends. A server that hangs is killed.

    Raises `ValueError` when it cannot be installed or does not start.
    """
    port = free_port()
    command = [str(installed_python(home)), "-c", SERVER, str(folder), str(port)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, no lock
    ) as server:

        def end() -> None:
            if server.stdin and not server.stdin.closed:
                stop(server, stop_seconds, ask=server.stdin.close)

        try:
            if not server.stdout or server.stdout.readline() != "ready\n":
                raise ValueError("the Milvus server did not start")
            yield f"http://127.0.0.1:{port}", end
        finally:
            end()


def fill(settings: Settings, content: ReleaseContent) -> None:
    """Write the items' vectors to the collection that a release with these settings names."""
    data = content.data.training_set
    name = collection("item", Versions(settings).embedding)
    texts = list(map(Text, data.item_ids, map(description_hash, content.item_texts)))
    with open_vector_store(settings) as store:
        store.ensure_collection(name, data.item_semantic.shape[1])
        store.add(name, texts, data.item_semantic)


def installed_python(home: Path) -> Path:
    """Python of the server's environment, which is made if it is missing. A marker file says that it is complete.

    Raises `ValueError` with what pip said when it cannot be installed.
    """
    environment = home / ENVIRONMENT
    python = environment / "bin" / "python"
    if not (environment / FINISHED).exists():
        say(f"installing {PACKAGES[0]} into {environment}")
        install = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES]
        for command in ([sys.executable, "-m", "venv", "--clear", str(environment)], install):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ValueError(f"{PACKAGES[0]} cannot be installed: {done.stderr.strip()[-300:]}")
        (environment / FINISHED).touch()
    return python
