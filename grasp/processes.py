"""Child processes that end with the process that started them (Linux)."""

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2); the first holds through exec
_libc = ctypes.CDLL(None, use_errno=True)  # loaded at import: between fork and exec, loading is not safe
PATIENCE_SECONDS = 20.0  # a program's time to end by itself


def end_with_parent() -> None:
    """Ask the kernel to send this process SIGTERM when its parent dies, however it dies.

    Pass it to `Popen` as `preexec_fn`. Raises `OSError` if the kernel refuses.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run_to_the_end(command: list[str], environment: dict[str, str], patience_seconds: float = PATIENCE_SECONDS) -> int:
    """Run a program until it ends, or until SIGTERM or SIGINT. Then nothing that it started is left.

    The program gets SIGINT, as from a terminal's Ctrl-C; whatever of it still runs after `patience_seconds` is killed.
    Returns its exit code, 0 after a signal. Call it in the main thread of a process without other children.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # a process whose parent ends becomes a child of this one
    for each in (signal.SIGTERM, signal.SIGINT):  # a program started by a script's `&` inherits that SIGINT is ignored
        signal.signal(each, signal.default_int_handler)
    try:
        # Its own session: a Ctrl-C in the terminal reaches this process alone.
        return subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, no lock
        ).wait()
    except KeyboardInterrupt:
        for pid in _children():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGINT)
        return 0
    finally:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        _end_children(patience_seconds)


def _end_children(patience_seconds: float) -> None:
    """Wait for all children, and for those that they leave behind; kill what is left at the end."""
    deadline = time.monotonic() + patience_seconds
    while children := _children():
        if time.monotonic() > deadline:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
        while _reap():
            continue
        time.sleep(0.05)


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def _reap() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
