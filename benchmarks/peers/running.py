"""Make a peer's virtual environment, and run its script while judging what it exports.

Nothing of a peer is installed into the project's own environment.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from benchmarks.peers.protocol import GO_ON, Message, Request, parse
from grasp.progress import say
from grasp.versions import digest

FOLDER = Path(__file__).parent
INSTALLED = ".installed"
TORCH = "torch==2.13.0"  # the project's own version
NUM_LOG_LINES = 15  # quoted of a peer that failed
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

Judge = Callable[[Message], None]  # gets each message while the training stands still


class PeerError(ValueError):
    """A peer could not be installed, or failed. The message quotes its last lines."""


@dataclass(frozen=True)
class Peer:
    """A library with a SASRec of its own: a pinned distribution and, in a file, its requirements."""

    name: str
    distribution: str
    can_sample: bool  # negatives; otherwise all items are negatives

    @property
    def requirements(self) -> Path:
        return FOLDER / f"{self.name}.txt"

    @property
    def script(self) -> Path:
        return FOLDER / f"{self.name}_sasrec.py"


RECBOLE = Peer("recbole", "recbole==1.2.1", can_sample=False)
RECTOOLS = Peer("rectools", "rectools==0.19.0", can_sample=True)
PEERS = (RECTOOLS, RECBOLE)


def make_environment(peer: Peer, home: Path) -> Path:
    """The Python of the peer's environment below `home`, which is made once for its exact pins.

    torch comes from `GRASP_TORCH_INDEX`, as for the project. Raises `PeerError` when pip fails.
    """
    folder, fingerprint = home / peer.name, digest([peer.distribution, peer.requirements.read_text()])
    python, marker = folder / "bin" / "python", folder / INSTALLED
    if marker.is_file() and marker.read_text() == fingerprint:
        return python
    say(f"{peer.distribution}: making {folder}: some minutes")
    _checked([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    say(
        "about 350 MB to download, 1.3 GB on disk. Plain PyPI on Linux serves the CUDA build of torch, several GB more:"
    )
    say("GRASP_TORCH_INDEX names another index")
    if index := os.environ.get("GRASP_TORCH_INDEX"):
        _checked([*pip, TORCH, "--index-url", index])
    _checked([*pip, "-r", str(peer.requirements)])
    _checked([*pip, "--no-deps", peer.distribution])
    marker.write_text(fingerprint)
    return python


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{' '.join(command)} failed:\n{_end_of(done.stderr)}")


def run(command: list[str], request: Request, folder: Path, judge: Judge) -> Message:
    """Run a peer's script on a request and judge each of its messages; returns the last one.

    The script works in `folder`, which also gets the request and the library's output (`talk.log`). Raises `PeerError`
    when the script fails or sends no message.
    """
    file, log = folder / "request.json", folder / "talk.log"
    file.write_text(json.dumps(asdict(request)))
    environment = thread_environment(os.environ, request.num_threads)
    environment.pop("PYTHONPATH", None)
    with log.open("w") as talk:
        process = subprocess.Popen(
            [*command, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=talk,
            text=True,
            cwd=folder,
            env=environment,
        )
        try:
            last = _converse(process, judge, talk)
        finally:
            process.kill()  # it has ended, or an error of ours ends it
            process.wait()
    if process.returncode or last is None:
        raise PeerError(f"{' '.join(command)} ended with {process.returncode}:\n{_end_of(log.read_text())}")
    return last


def _converse(process: "subprocess.Popen[str]", judge: Judge, talk: IO[str]) -> Message | None:
    """Judge messages until the script ends, which closes its standard output."""
    assert process.stdin is not None
    assert process.stdout is not None
    last = None
    for line in process.stdout:
        message = parse(line)
        if message is None:
            talk.write(line)
            talk.flush()
            continue
        last = message
        judge(message)
        try:
            process.stdin.write(f"{GO_ON}\n")
            process.stdin.flush()
        except BrokenPipeError:
            continue  # a script that only measures speed does not wait for the answer
    process.wait()
    return last


def thread_environment(present: Mapping[str, str], num_threads: int) -> dict[str, str]:
    """The same for every side: equal numbers of threads, none of which spins while it waits."""
    counts = dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    return {**present, **counts, "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}


def _end_of(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-NUM_LOG_LINES:])
