"""The releases on disk, and the one step that puts one of them in force: a rename of `current.json`.

<releases>/in_force.jsonl    ids of the releases that were put in force, in that order, one more before each rename
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from grasp.files import held
from grasp.manifest import CURRENT_FILE, MANIFEST_FILE, Manifest, NoReleaseError, current, read_manifest
from grasp.progress import say

HISTORY_FILE = "in_force.jsonl"

Checkpoint = Callable[[str], None]


class ReleaseError(ValueError):
    """A release cannot be published or put in force; the message says what is wrong and what to do."""


def no_checkpoint(step: str) -> None:
    """Called after each step of a publication; tests pass one that fails."""


def published(releases: Path) -> list[Manifest]:
    """All releases on disk in the order they were published (their manifest files' times: the clock may be set).

    One whose manifest is damaged is left out, and that is said: the others can still be put in force.
    """
    files = sorted(releases.glob(f"[!.]*/{MANIFEST_FILE}"), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    found = []
    for file in files:
        try:
            manifest = read_manifest(file)
            if manifest.release_id != file.parent.name:
                raise ValueError(f"{file} was changed: it describes {manifest.release_id}")
        except ValueError as error:
            say(f"release: left out: {error}")
        else:
            found.append(manifest)
    return found


def current_or_none(releases: Path) -> Manifest | None:
    """The manifest in force; None before the first publication, and for a damaged one, which is said."""
    try:
        return current(releases)
    except NoReleaseError:
        return None
    except ValueError as error:
        say(f"release: {error}")
        return None


def earlier(releases: Path, release_id: str | None) -> list[Manifest]:
    """The releases on disk to go back to from one, the nearest last; from the last one put in force for None.

    What a rollback went back from is not among them: it was left for a reason.
    """
    known = published(releases)
    way: list[str] = []
    for each in _history(releases, known):
        way = [*way[: way.index(each)], each] if each in way else [*way, each]
    if release_id in way:
        way = way[: way.index(release_id)]
    on_disk = {manifest.release_id: manifest for manifest in known}
    return [on_disk[each] for each in way if each in on_disk]


def _history(releases: Path, known: Sequence[Manifest]) -> list[str]:
    """What was put in force, in order; as published where no file tells. A line that a crash cut off does not count."""
    file = releases / HISTORY_FILE
    if not file.exists():
        return [manifest.release_id for manifest in known]
    found = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            found.append(str(json.loads(line)["release"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def named(manifests: list[Manifest], release_id: str) -> Manifest:
    for manifest in manifests:
        if manifest.release_id == release_id:
            return manifest
    raise ReleaseError(f"no release {release_id}; there are {', '.join(each.release_id for each in manifests)}")


def lock(releases: Path) -> AbstractContextManager[None]:
    """One publication at a time: the refresh and the retraining may finish together."""
    return held(releases / ".lock", "release: waiting for another publication or rollback to end")


def put_in_force(releases: Path, manifest: Manifest, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Let readers see it: one atomic rename of `current.json`."""
    _remember(releases, manifest.release_id)
    checkpoint("remembered")
    temporary = releases / f"{CURRENT_FILE}.new"
    temporary.write_text(as_json(manifest))
    sync(temporary)
    checkpoint("current written")
    temporary.replace(releases / CURRENT_FILE)
    sync(releases)
    checkpoint("in force")


def _remember(releases: Path, release_id: str) -> None:
    """Add an id to the history; a new file begins with the way to the release in force until now."""
    ids = [release_id]
    if not (releases / HISTORY_FILE).exists():
        before = current_or_none(releases)
        ids = [each.release_id for each in (*earlier(releases, before.release_id), before)] + ids if before else ids
    with (releases / HISTORY_FILE).open("a") as file:
        # Each line begins with its line break, so that one that a crash cut off spoils no other.
        file.writelines("\n" + json.dumps({"release": each}) for each in ids)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def as_json(manifest: Manifest) -> str:
    return json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n"
