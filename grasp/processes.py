"""Child processes that end with the process that started them (Linux)."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # prctl(2); holds through exec
_libc = ctypes.CDLL(None, use_errno=True)  # loaded at import: between fork and exec, loading is not safe


def end_with_parent() -> None:
    """Ask the kernel to send this process SIGTERM when its parent dies, however it dies.

    Pass it to `Popen` as `preexec_fn`. Raises `OSError` if the kernel refuses.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
