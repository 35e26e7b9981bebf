"""Child processes that end with the process that started them (Linux)."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # prctl(2); holds through exec
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec little is safe


def end_with_parent() -> None:
    """Have the kernel end this process by SIGTERM when its parent dies, however that happens.

    Made to be `preexec_fn` of a `Popen`. Raises `OSError` where the kernel refuses.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
