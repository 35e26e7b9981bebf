"""Make a peer's virtual environment, and run its script while judging what it exports.

Nothing of a peer is ever installed into the project's own environment.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.peers.protocol import GO_ON, Message, Request, parse
from grasp.progress import say
from grasp.versions import digest

FOLDER = Path(__file__).parent
INSTALLED = ".installed"
TORCH = "torch==2.13.0"  # the project's own, for all
NUM_LOG_LINES = 15  # of a peer that failed
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

Judge = Callable[[Message], None]  # is told where the training is, while it stands still


class PeerError(RuntimeError):
    """A peer could not be installed or failed; the message has its last words."""


@dataclass(frozen=True)
class Library:
    """What an environment is made for: a pinned distribution and, in a file, what it requires."""

    name: str
    distribution: str
    needs_torch: bool = True

    @property
    def requirements(self) -> Path:
        return FOLDER / f"{self.name}.txt"


@dataclass(frozen=True)
class Peer(Library):
    """A library with a SASRec of its own."""

    can_sample: bool = field(kw_only=True)  # negatives; otherwise all items are

    @property
    def script(self) -> Path:
        return FOLDER / f"{self.name}_sasrec.py"


RECBOLE = Peer("recbole", "recbole==1.2.1", can_sample=False)
RECTOOLS = Peer("rectools", "rectools==0.19.0", can_sample=True)
PEERS = (RECTOOLS, RECBOLE)


def make_environment(peer: Library, home: Path) -> Path:
    """The Python of the library's environment below `home`, made once for its exact pins.

    `GRASP_TORCH_INDEX` is where torch comes from, as for the project itself. Raises `PeerError` when pip fails.
    """
    folder, fingerprint = home / peer.name, digest([peer.distribution, peer.requirements.read_text()])
    python, marker = folder / "bin" / "python", folder / INSTALLED
    if marker.is_file() and marker.read_text() == fingerprint:
        return python
    say(f"{peer.distribution}: making {folder}: some minutes")
    _checked([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if peer.needs_torch:
        say("about 350 MB to download, 1.3 GB on disk; plain PyPI on Linux serves the CUDA build of torch, several GB")
        say("more: GRASP_TORCH_INDEX names another index")
    if peer.needs_torch and (index := os.environ.get("GRASP_TORCH_INDEX")):
        _checked([*pip, TORCH, "--index-url", index])
    _checked([*pip, "-r", str(peer.requirements)])
    _checked([*pip, "--no-deps", peer.distribution])
    marker.write_text(fingerprint)
    return python


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{' '.join(command)} failed:\n{_end_of(done.stderr)}")


def last_words(command: list[str], folder: Path) -> dict[str, Any]:
    """The JSON object that a command of one thread prints last. Raises `PeerError` when it fails."""
    environment = thread_environment(os.environ, 1)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    if done.returncode:
        raise PeerError(f"{' '.join(command)} failed:\n{_end_of(done.stderr)}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(command: list[str], request: Request, folder: Path, judge: Judge) -> Message:
    """Run a peer's script on a request and judge each of its messages; returns the last one.

    The request and the library's own talk (`talk.log`) are written to `folder`, where the script also works. Raises
    `PeerError` when the script fails or says nothing.
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
            process.kill()  # it is over, or an error of ours ends it
            process.wait()
    if process.returncode or last is None:
        raise PeerError(f"{' '.join(command)} ended with {process.returncode}:\n{_end_of(log.read_text())}")
    return last


def _converse(process: "subprocess.Popen[str]", judge: Judge, talk: IO[str]) -> Message | None:
    """Until the script is over, which ends its standard output."""
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
            continue  # a script that measures speed alone has not waited for the answer
    process.wait()
    return last


def thread_environment(present: Mapping[str, str], num_threads: int) -> dict[str, str]:
    """The same for every side: as many threads, and none that spins while it waits."""
    counts = dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    return {**present, **counts, "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}


def _end_of(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-NUM_LOG_LINES:])
