"""Follow the manifest and the experiment: when either changes, load the new release beside the old one and swap."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from grasp.manifest import CURRENT_FILE, MANIFEST_FILE, Manifest, NoReleaseError, manifest_in_force, read_manifest
from serving.lookup.online_store import UserStore
from serving.ranking.catalogue import Catalogue
from serving.ranking.items import ItemSide
from serving.ranking.release_ranker import ReleaseRanker
from serving.releases.buckets import EXPERIMENT_FILE, Bucket, Experiment, read_experiment
from serving.releases.in_force import current_or_none, rollback_targets

RETRY_SECONDS = 30.0  # a refused release is tried again, because its online store may have been down

log = logging.getLogger("grasp.serving")


@dataclass(frozen=True)
class LoadedRelease:
    """All that answers a request: a release's ranker and catalogue, and the user store of its feature version."""

    ranker: ReleaseRanker
    catalogue: Catalogue
    users: UserStore

    @property
    def manifest(self) -> Manifest:
        return self.ranker.manifest

    @property
    def items(self) -> ItemSide:
        return self.ranker.items

    @property
    def release_id(self) -> str:
        return self.manifest.release_id

    @property
    def feature_version(self) -> str:
        return self.manifest.feature_version


@dataclass(frozen=True)
class LoadedReleases:
    """All releases that are loaded at one moment. A request keeps one of these objects until it is answered."""

    in_force: LoadedRelease
    challenger: LoadedRelease | None = None  # the release that the experiment shows
    experiment: Experiment | None = None  # set if and only if there is a challenger

    def __iter__(self) -> Iterator[LoadedRelease]:
        yield self.in_force
        if self.challenger:
            yield self.challenger

    def named(self, release_id: str) -> LoadedRelease | None:
        return next((release for release in self if release.release_id == release_id), None)

    def for_user(self, user_id: str) -> tuple[LoadedRelease, Bucket | None]:
        """The release that answers a user, and the user's bucket in the running experiment."""
        if self.experiment is None or self.challenger is None:
            return self.in_force, None
        bucket = self.experiment.bucket(user_id)
        return (self.challenger if bucket == "candidate" else self.in_force), bucket


class ReleaseFollower:
    """Keeps `loaded` in step with `current.json` and `experiment.json`.

    * A release that cannot be loaded is refused, and the old one stays.
    * A process without a loaded release takes the nearest earlier one that can be loaded.
    * A challenger that cannot be loaded ends the experiment in this process, so that answers carry no bucket.
    """

    def __init__(
        self,
        releases: Path,
        load: Callable[[Manifest], LoadedRelease],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loaded: LoadedReleases | None = None
        self.problem: str | None = "no release loaded yet"
        self.experiment_problem: str | None = None
        self._releases = releases
        self._load = load
        self._monotonic = monotonic
        self._seen: tuple[object, object] | None = None
        self._retry_at = 0.0

    def check(self) -> None:
        """Load and swap if one of the two files has changed. Cheap if neither has."""
        stamps = (_stamp(self._releases / CURRENT_FILE), _stamp(self._releases / EXPERIMENT_FILE))
        has_problem = self.problem is not None or self.experiment_problem is not None
        if stamps == self._seen and (not has_problem or self._monotonic() < self._retry_at):
            return
        self._seen, self._retry_at = stamps, self._monotonic() + RETRY_SECONDS
        in_force = self._release_in_force()
        if in_force is None:
            return
        experiment, challenger = self._running_experiment(in_force)
        # One assignment, so that a request sees either the old pair or the new one.
        self.loaded = LoadedReleases(in_force, challenger, experiment)

    def _release_in_force(self) -> LoadedRelease | None:
        """The release in force, else the one that is loaded, else an earlier one."""
        try:
            release = self._reuse_or_load(manifest_in_force(self._releases))
            self.problem = None
        except NoReleaseError as error:
            if self.problem != str(error):
                log.warning("%s", error)
            self.problem = str(error)
        except Exception as error:
            self.problem = f"the release in force was refused: {error}"
            log.exception("%s", self.problem)
            return self.loaded.in_force if self.loaded else self._earlier_release()
        else:
            return release
        return self.loaded.in_force if self.loaded else None

    def _earlier_release(self) -> LoadedRelease | None:
        before = current_or_none(self._releases)
        for manifest in reversed(rollback_targets(self._releases, before.release_id if before else None)):
            try:
                return self._reuse_or_load(manifest)
            except Exception as error:
                log.exception("the earlier release %s cannot be loaded either: %s", manifest.release_id, error)
        return None

    def _running_experiment(self, in_force: LoadedRelease) -> tuple[Experiment | None, LoadedRelease | None]:
        self.experiment_problem = None
        try:
            experiment = read_experiment(self._releases)
            if experiment is None:
                return None, None
            if experiment.release_id == in_force.release_id:
                raise ValueError(f"its challenger {experiment.release_id} is the release in force; stop it")
            manifest = read_manifest(self._releases / experiment.release_id / MANIFEST_FILE)
            return experiment, self._reuse_or_load(manifest)
        except Exception as error:
            self.experiment_problem = f"the experiment does not run: {error}"
            log.exception("%s", self.experiment_problem)
        return None, None

    def _reuse_or_load(self, manifest: Manifest) -> LoadedRelease:
        reused = self.loaded.named(manifest.release_id) if self.loaded else None
        if reused:
            return reused
        release = self._load(manifest)
        log.info("release %s is loaded, model %s", manifest.release_id, manifest.model or "popular")
        return release


def _stamp(file: Path) -> tuple[int, int] | None:
    """Changes whenever the file is replaced. None without the file."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
