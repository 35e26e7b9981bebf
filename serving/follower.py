"""Follow the manifest: whenever another release is in force, load it beside the old one and swap."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grasp.release import CURRENT_FILE, Manifest, NoReleaseError, current
from serving.features import UserFeatures
from serving.ranker import Release

RETRY_SECONDS = 30.0  # a refused release is tried again: its store may have been down

log = logging.getLogger("grasp.serving")


@dataclass(frozen=True)
class Served:
    """What answers requests: a release and the user features of its version. Requests hold on to one pair."""

    release: Release
    users: UserFeatures


class ReleaseFollower:
    """Keeps `served` in step with `current.json`. A release that cannot be loaded is refused, and the old one stays."""

    def __init__(
        self,
        releases: Path,
        load: Callable[[Manifest], Served],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.served: Served | None = None
        self.problem: str | None = "no release loaded yet"
        self._releases = releases
        self._load = load
        self._monotonic = monotonic
        self._seen: tuple[int, int] | None = None
        self._retry_at = 0.0

    def check(self) -> None:
        """Load and swap when `current.json` is another file than before; cheap when it is the same."""
        stamp = _stamp(self._releases / CURRENT_FILE)
        if stamp == self._seen and (self.problem is None or self._monotonic() < self._retry_at):
            return
        self._seen, self._retry_at = stamp, self._monotonic() + RETRY_SECONDS
        try:
            manifest = current(self._releases)
            if self.served is None or self.served.release.manifest.release_id != manifest.release_id:
                self.served = self._load(manifest)
                log.info("release %s is served, model %s", manifest.release_id, manifest.model or "popular")
            self.problem = None
        except NoReleaseError as error:
            self.problem = f"no release: {error}"
        except Exception as error:
            self.problem = f"the release in force was refused: {error}"
            log.exception("%s", self.problem)

    def run(self, stop: threading.Event, poll_seconds: float) -> None:
        while not stop.wait(poll_seconds):
            self.check()


def _stamp(file: Path) -> tuple[int, int] | None:
    """Tells two `current.json` apart without reading them: each is a new file."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
