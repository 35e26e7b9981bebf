"""Small files that are either the old one or the new one, never half of either; locks between processes."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from grasp.progress import say

if TYPE_CHECKING:
    import numpy as np


def write_json(file: Path, value: object) -> None:
    """Replace the file as a whole; its folder is made when it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w") as handle:
        json.dump(value, handle, indent=1, ensure_ascii=False)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(file)


def write_arrays(file: Path, **arrays: "np.ndarray") -> None:
    """Replace an `.npz` file as a whole; its folder is made when it is missing."""
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]  # the stub takes names for options
    temporary.replace(file)


@contextmanager
def held(file: Path, waiting: str) -> Iterator[None]:
    """Hold a lock file, said to be `waiting` for while another process has it. A killed holder lets go."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
