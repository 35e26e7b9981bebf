"""The releases on disk, and the one step that puts one of them in force: a rename of `current.json`."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from grasp.release import CURRENT_FILE, MANIFEST_FILE, Manifest, read_manifest

Checkpoint = Callable[[str], None]


class ReleaseError(ValueError):
    """A release cannot be published or put in force; the message says what is wrong and what to do."""


def no_checkpoint(step: str) -> None:
    """Called after each step of a publication; tests pass one that fails."""


def published(releases: Path) -> list[Manifest]:
    """All releases on disk in the order they were published (their manifest files' times: the clock may be set)."""
    files = sorted(releases.glob(f"[!.]*/{MANIFEST_FILE}"), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    return [read_manifest(file) for file in files]


def named(manifests: list[Manifest], release_id: str) -> Manifest:
    for manifest in manifests:
        if manifest.release_id == release_id:
            return manifest
    raise ReleaseError(f"no release {release_id}; there are {', '.join(each.release_id for each in manifests)}")


@contextmanager
def lock(releases: Path) -> Iterator[None]:
    """One publication at a time: the refresh and the retraining may finish together."""
    releases.mkdir(parents=True, exist_ok=True)
    with (releases / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def put_in_force(releases: Path, manifest: Manifest, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Let readers see it: one atomic rename of `current.json`."""
    temporary = releases / f"{CURRENT_FILE}.new"
    temporary.write_text(as_json(manifest))
    sync(temporary)
    checkpoint("current written")
    temporary.replace(releases / CURRENT_FILE)
    sync(releases)
    checkpoint("in force")


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def as_json(manifest: Manifest) -> str:
    return json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n"
