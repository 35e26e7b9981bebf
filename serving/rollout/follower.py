"""Follow the manifest and the experiment: whenever either changes, load what is new beside the old and swap."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from grasp.manifest import CURRENT_FILE, MANIFEST_FILE, Manifest, NoReleaseError, current, read_manifest
from serving.lookup.online_store import UserFeatures
from serving.ranking.catalogue import Catalogue
from serving.ranking.loaded_release import Release
from serving.releases.buckets import EXPERIMENT_FILE, Bucket, Experiment, read_experiment
from serving.releases.in_force import current_or_none, earlier

RETRY_SECONDS = 30.0  # a refused release is tried again: its store may have been down

log = logging.getLogger("grasp.serving")


@dataclass(frozen=True)
class Served:
    """What answers a request: a release, its catalogue and the user features of its version."""

    release: Release
    catalogue: Catalogue
    users: UserFeatures

    @property
    def release_id(self) -> str:
        return self.release.manifest.release_id

    @property
    def feature_version(self) -> str:
        return self.release.manifest.feature_version


@dataclass(frozen=True)
class Loaded:
    """Everything that is loaded at a time. A request holds on to one of these and is answered by one release of it."""

    in_force: Served
    candidate: Served | None = None
    experiment: Experiment | None = None  # set if and only if there is a candidate

    def __iter__(self) -> Iterator[Served]:
        yield self.in_force
        if self.candidate:
            yield self.candidate

    def named(self, release_id: str) -> Served | None:
        return next((served for served in self if served.release_id == release_id), None)

    def of_user(self, user_id: str) -> tuple[Served, Bucket | None]:
        """The release that answers a user, and the user's side of the running experiment."""
        if self.experiment is None or self.candidate is None:
            return self.in_force, None
        bucket = self.experiment.bucket(user_id)
        return (self.candidate if bucket == "candidate" else self.in_force), bucket


class ReleaseFollower:
    """Keeps `loaded` in step with `current.json` and `experiment.json`.

    A release that cannot be loaded is refused and the old one stays; a process that holds none yet takes the nearest
    earlier one that can be loaded. A candidate that cannot be loaded ends the
    experiment in this process: nobody is counted as having seen what was not there.
    """

    def __init__(
        self,
        releases: Path,
        load: Callable[[Manifest], Served],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loaded: Loaded | None = None
        self.problem: str | None = "no release loaded yet"
        self.experiment_problem: str | None = None
        self._releases = releases
        self._load = load
        self._monotonic = monotonic
        self._seen: tuple[object, object] | None = None
        self._retry_at = 0.0

    def check(self) -> None:
        """Load and swap when one of the two files is another than before; cheap when both are the same."""
        stamps = (_stamp(self._releases / CURRENT_FILE), _stamp(self._releases / EXPERIMENT_FILE))
        is_well = self.problem is None and self.experiment_problem is None
        if stamps == self._seen and (is_well or self._monotonic() < self._retry_at):
            return
        self._seen, self._retry_at = stamps, self._monotonic() + RETRY_SECONDS
        in_force = self._in_force()
        if in_force is None:
            return
        experiment, candidate = self._candidate(in_force)
        # One assignment: a request sees either the old pair or the new one.
        self.loaded = Loaded(in_force, candidate, experiment)

    def _in_force(self) -> Served | None:
        """The release in force, else the one served so far, else an earlier one."""
        try:
            served = self._held_or_loaded(current(self._releases))
            self.problem = None
        except NoReleaseError as error:
            self.problem = str(error)
        except Exception as error:
            self.problem = f"the release in force was refused: {error}"
            log.exception("%s", self.problem)
            return self.loaded.in_force if self.loaded else self._earlier()
        else:
            return served
        return self.loaded.in_force if self.loaded else None

    def _earlier(self) -> Served | None:
        before = current_or_none(self._releases)
        for manifest in reversed(earlier(self._releases, before.release_id if before else None)):
            try:
                return self._held_or_loaded(manifest)
            except Exception as error:
                log.exception("the earlier release %s cannot stand in: %s", manifest.release_id, error)
        return None

    def _candidate(self, in_force: Served) -> tuple[Experiment | None, Served | None]:
        self.experiment_problem = None
        try:
            experiment = read_experiment(self._releases)
            if experiment is None:
                return None, None
            if experiment.release_id == in_force.release_id:
                raise ValueError(f"its candidate {experiment.release_id} is the release in force; stop it")
            manifest = read_manifest(self._releases / experiment.release_id / MANIFEST_FILE)
            return experiment, self._held_or_loaded(manifest)
        except Exception as error:
            self.experiment_problem = f"the experiment does not run: {error}"
            log.exception("%s", self.experiment_problem)
        return None, None

    def _held_or_loaded(self, manifest: Manifest) -> Served:
        held = self.loaded.named(manifest.release_id) if self.loaded else None
        if held:
            return held
        served = self._load(manifest)
        log.info("release %s is loaded, model %s", manifest.release_id, manifest.model or "popular")
        return served


def _stamp(file: Path) -> tuple[int, int] | None:
    """Tells two versions of a file apart without reading them: each is a new file."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
