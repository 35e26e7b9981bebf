"""Hashes of large files, remembered while the files do not change.

A file is the same if its size, inode and times are. The time of the last change of the inode (ctime) is among them:
unlike the others, no program can set it back. A file that changed just now is not remembered, because another change
could carry the same time.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from grasp.files import write_json
from grasp.progress import say

SETTLED_SECONDS = 10.0  # more than the resolution of the times of any file system
Entry = tuple[list[int], str]  # state and hash of a file


def remembered_hashes(hash_file: Callable[[Path], str], files: Sequence[Path], memory: Path) -> list[str]:
    """The hash of each file; `memory` is the JSON file with those of earlier calls.

    A `memory` that cannot be written costs time only. Raises `ValueError` if it is damaged.
    """
    known = _read(memory)
    found = {str(file): _known_or_new(hash_file, file, known.get(str(file))) for file in files}
    new = {name: each for name, each in found.items() if _is_settled(each[0])}
    if any(known.get(name) != entry for name, entry in new.items()):
        try:
            write_json(memory, known | new)
        except OSError as error:
            say(f"{memory} cannot be written ({error.strerror}): files are hashed again each time")
    return [content for _, content in found.values()]


def _read(memory: Path) -> dict[str, Entry]:
    try:
        entries = json.loads(memory.read_text()) if memory.exists() else {}
        return {name: (state, str(content)) for name, (state, content) in entries.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{memory} is damaged ({error}): remove it") from None


def _known_or_new(hash_file: Callable[[Path], str], file: Path, known: Entry | None) -> Entry:
    """State and hash of a file, which is read only if its state is not the known one."""
    state = _state(file)
    if known and known[0] == state:
        return known
    while True:
        content = hash_file(file)
        if (after := _state(file)) == state:
            return state, content
        state = after  # it changed meanwhile


def _state(file: Path) -> list[int]:
    found: os.stat_result = file.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _is_settled(state: list[int]) -> bool:
    return max(state[2:]) < 1e9 * (time.time() - SETTLED_SECONDS)
