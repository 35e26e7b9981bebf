"""List the releases on disk, and put one of them in force by renaming `current.json`.

<releases>/in_force.jsonl    ids of the releases in the order they were put in force; a line is added before each rename
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from grasp.files import file_lock
from grasp.manifest import CURRENT_FILE, MANIFEST_FILE, Manifest, NoReleaseError, manifest_in_force, read_manifest
from grasp.progress import say

HISTORY_FILE = "in_force.jsonl"

Checkpoint = Callable[[str], None]


class ReleaseError(ValueError):
    """A release cannot be published or put in force; the message says what is wrong and what to do."""


def no_checkpoint(step: str) -> None:
    """Called after each step of a publication. Tests pass a function that fails."""


def releases_on_disk(releases: Path) -> list[Manifest]:
    """All releases on disk, oldest publication first.

    The order follows the manifest files' times, because GRASP_NOW may set the clock. A release with a damaged manifest
    is left out with a message, so that the others can still be put in force.
    """
    files = sorted(releases.glob(f"[!.]*/{MANIFEST_FILE}"), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    found = []
    for file in files:
        try:
            manifest = read_manifest(file)
            if manifest.release_id != file.parent.name:
                raise ValueError(f"{file} was changed: its content is that of {manifest.release_id}")
        except ValueError as error:
            say(f"release: left out: {error}")
        else:
            found.append(manifest)
    return found


def current_or_none(releases: Path) -> Manifest | None:
    """The manifest in force. None before the first publication, and for a damaged one, with a message."""
    try:
        return manifest_in_force(releases)
    except NoReleaseError:
        return None
    except ValueError as error:
        say(f"release: {error}")
        return None


def rollback_targets(releases: Path, release_id: str | None) -> list[Manifest]:
    """The releases on disk that a rollback from `release_id` can reach, the next one to try last.

    None means the release that was put in force last. Releases that were left for an earlier one are left out: a
    rollback never goes to a later day.
    """
    manifests = releases_on_disk(releases)
    path: list[str] = []
    for each in _history(releases, manifests):
        if each in path:
            del path[path.index(each) :]
        while path and _day(path[-1]) > _day(each):
            path.pop()
        path.append(each)
    if release_id in path:
        path = path[: path.index(release_id)]
    on_disk = {manifest.release_id: manifest for manifest in manifests}
    return [on_disk[each] for each in path if each in on_disk]


def _day(release_id: str) -> str:
    """A release's id begins with its day."""
    return release_id[: len("YYYY-MM-DD")]


def last_in_force(releases: Path) -> Manifest | None:
    """With a damaged current.json, the release that was in force last says which model to keep."""
    return next(reversed(rollback_targets(releases, None)), None)


def _history(releases: Path, manifests: Sequence[Manifest]) -> list[str]:
    """The ids of the releases in the order they were put in force; without a history file, as they were published."""
    file = releases / HISTORY_FILE
    if not file.exists():
        return [manifest.release_id for manifest in manifests]
    ids = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            ids.append(str(json.loads(line)["release"]))
        except (ValueError, KeyError, TypeError):
            continue  # a crash cut this line off
    return ids


def find_release(manifests: list[Manifest], release_id: str) -> Manifest:
    for manifest in manifests:
        if manifest.release_id == release_id:
            return manifest
    known = ", ".join(each.release_id for each in manifests)
    raise ReleaseError(f"no release {release_id}; there {f'are {known}' if known else 'is none'}")


def read_release(releases: Path, release_id: str) -> Manifest:
    """The manifest of a release on disk. Raises `ReleaseError` for an unknown id, `ValueError` for a damaged one."""
    try:
        return read_manifest(releases / release_id / MANIFEST_FILE)
    except NoReleaseError:
        return find_release(releases_on_disk(releases), release_id)


def publication_lock(releases: Path) -> AbstractContextManager[None]:
    """Allow one publication at a time: the refresh and the retraining may finish together."""
    return file_lock(releases / ".lock", "release: waiting for another publication or rollback to end")


def put_in_force(releases: Path, manifest: Manifest, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Make the release visible to readers by one atomic rename of `current.json`."""
    _remember(releases, manifest.release_id)
    checkpoint("remembered")
    temporary = releases / f"{CURRENT_FILE}.new"
    temporary.write_text(as_json(manifest))
    flush_to_disk(temporary)
    checkpoint("current written")
    temporary.replace(releases / CURRENT_FILE)
    flush_to_disk(releases)
    checkpoint("in force")


def _remember(releases: Path, release_id: str) -> None:
    """Add an id to the history. A new history file starts with the releases up to the one in force until now."""
    ids = [release_id]
    if not (releases / HISTORY_FILE).exists():
        before = current_or_none(releases)
        if before:
            ids = [each.release_id for each in (*rollback_targets(releases, before.release_id), before)] + ids
    with (releases / HISTORY_FILE).open("a") as file:
        # The line break comes first, so that a line cut off by a crash does not damage the next one.
        file.writelines("\n" + json.dumps({"release": each}) for each in ids)
        file.flush()
        os.fsync(file.fileno())


def flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def as_json(manifest: Manifest) -> str:
    return json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n"
