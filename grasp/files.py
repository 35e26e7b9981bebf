"""Files below a folder; files that are replaced as a whole, never half-written; locks between processes."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from grasp.progress import say


def files_below(folder: Path, _above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file below a folder, through links too. A link to a folder above it leads to nothing new."""
    place = folder.resolve()
    for path in () if place in _above else folder.iterdir():
        if path.is_dir():
            yield from files_below(path, (*_above, place))
        else:
            yield path


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """Write a new version of a file; it replaces the old one at the end. Creates the folder if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(file)


def write_json(file: Path, value: object) -> None:
    """Replace a file by JSON, as a whole. Creates the folder if it is missing."""
    with replacing(file) as handle:
        handle.write(f"{json.dumps(value, indent=1, ensure_ascii=False)}\n".encode())


@contextmanager
def file_lock(file: Path, waiting: str) -> Iterator[None]:
    """Hold a lock file. Logs `waiting` while another process holds it; the lock of a killed process is released."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
