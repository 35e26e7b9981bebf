"""Small JSON files that are either the old one or the new one, never half of either."""

import json
import os
from pathlib import Path


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
