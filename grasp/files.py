"""Small files that are either the old one or the new one, never half of either; locks between processes."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from grasp.progress import say


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """Something to write to that replaces the file as a whole at the end; its folder is made when it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(file)


def write_json(file: Path, value: object) -> None:
    """Replace the file as a whole; its folder is made when it is missing."""
    with replacing(file) as handle:
        handle.write(f"{json.dumps(value, indent=1, ensure_ascii=False)}\n".encode())


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
