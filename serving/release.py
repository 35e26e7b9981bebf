"""Publish a release: tie one day's features, their versions and a model together, and put it in force last.

    python -m serving.release publish --day 1998-04-22 [--model FOLDER | --decision FILE]
    python -m serving.release rollback [--to RELEASE_ID]
    python -m serving.release restore-day 1998-04-21 [--release RELEASE_ID]
    python -m serving.release status | list | show RELEASE_ID | verify [RELEASE_ID | --all]

A release is built beside the others under a temporary name, loaded as serving would load it, written through to the
disk and renamed; only then does `current.json` name it. Whatever dies on the way leaves the old release in force.
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from grasp import partitions, tables
from grasp.days import age_hours, day_argument
from grasp.environment import process_environment
from grasp.files import write_json
from grasp.progress import say
from grasp.release import (
    CURRENT_FILE,
    MANIFEST_FILE,
    PUBLISHED_FILE,
    Manifest,
    NoReleaseError,
    current,
    folder,
    read_manifest,
)
from grasp.settings import ROOT, Settings, SettingsError
from grasp.versions import Versions, collection, feature_service, file_sha256
from serving.buckets import read_experiment
from serving.catalogue import load_catalogue
from serving.ranker import check_files, load_release
from training.artefact import OtherFormatError, load_ranker

NUM_KEPT = 10  # releases that a rollback can reach
STAGING_PREFIX = ".staging-"
Checkpoint = Callable[[str], None]
PutOnline = Callable[[Settings, str], None]  # puts a day's features online, whatever is there


class ReleaseError(ValueError):
    """A release cannot be published or put in force; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model a release carries (`source` is its folder; both None for `popular`) and why."""

    name: str | None
    source: Path | None
    reason: str


def _no_checkpoint(step: str) -> None:
    """Called after each step of a publication; tests pass one that fails."""


def publish(
    settings: Settings,
    day: str,
    choose: Callable[[Manifest | None], ModelChoice],
    checkpoint: Checkpoint = _no_checkpoint,
) -> Manifest:
    """Publish the features of `day` with the chosen model; returns the manifest in force afterwards.

    `choose` is asked with the manifest in force. The same content again changes nothing, and a day before the one
    in force is a back-fill that is not published. Raises `ReleaseError` or `MissingPartitionError`; then, and after
    a crash at any step, the old release stays in force.
    """
    with _lock(settings.releases):
        before = _current_or_none(settings.releases)
        if before and day < before.day:
            say(
                f"release: {day} is older than the release in force ({before.release_id}): back-filled, not published. "
                f"A model trained for it can still be served: "
                f"python -m serving.release publish --day {before.day} --model FOLDER"
            )
            return before
        choice = choose(before)
        say(f"release: model {choice.name or 'popular'}: {choice.reason}")
        staging = settings.releases / f"{STAGING_PREFIX}{os.getpid()}"
        try:
            manifest = _stage(settings, day, choice, staging, checkpoint)
            if before and before.release_id == manifest.release_id and _is_whole(settings.releases, manifest):
                say(f"release: {manifest.release_id} is in force already, nothing changed")
                return before
            _put_in_place(settings.releases, manifest, staging, checkpoint)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _put_in_force(settings.releases, manifest, checkpoint)
        _prune(settings.releases, manifest)
    say(f"release: {manifest.release_id} is in force: day {day}, model {manifest.model or 'popular'}")
    return manifest


def choose_model(
    settings: Settings, model: Path | None, decision: Path | None
) -> Callable[[Manifest | None], ModelChoice]:
    """The named model, the one a promotion decision names, or else the one in force as long as its features match."""

    def choose(before: Manifest | None) -> ModelChoice:
        if model:
            return _trained(model, "named by --model")
        if decision:
            verdict = _read_decision(decision)
            if verdict["promoted"]:
                return _trained(Path(str(verdict["model"])), f"promoted: {verdict['reason']}")
            say(f"release: the new model is not promoted: {verdict['reason']}")
        return _keep(settings, before)

    return choose


def _trained(source: Path, reason: str) -> ModelChoice:
    if not source.is_dir():
        raise ReleaseError(f"no model folder at {source}")
    return ModelChoice(load_ranker(source).metadata.name, source, reason)


def _keep(settings: Settings, before: Manifest | None) -> ModelChoice:
    version = Versions(settings).feature
    if before is None:
        return ModelChoice(None, None, "no release carries a model yet")
    if before.model is None:
        return ModelChoice(None, None, "the release in force carries no model")
    if before.feature_version != version:
        reason = f"{before.model} was trained with features {before.feature_version}, these are {version}: retrain"
        return ModelChoice(None, None, reason)
    source = folder(settings.releases, before) / "model"
    try:
        load_ranker(source)
    except OtherFormatError as error:
        return ModelChoice(None, None, f"{before.model} cannot be kept: {error}")
    return ModelChoice(before.model, source, "kept from the release in force")


def _read_decision(file: Path) -> dict[str, object]:
    """Raises `ReleaseError` unless the file is `{"model": folder or null, "promoted": bool, "reason": text}`."""
    try:
        verdict = json.loads(file.read_text())
        complete = isinstance(verdict["promoted"], bool) and isinstance(verdict["reason"], str)
        if not complete or (verdict["promoted"] and not isinstance(verdict["model"], str)):
            raise TypeError("`promoted` is true or false, `reason` a text, `model` a folder when promoted")
    except FileNotFoundError:
        raise ReleaseError(f"no promotion decision at {file}: run retrain first") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ReleaseError(f"{file} is no promotion decision: {error}") from error
    return verdict


def _stage(settings: Settings, day: str, choice: ModelChoice, staging: Path, checkpoint: Checkpoint) -> Manifest:
    """Build the whole release in a temporary folder and load it as serving will; returns its manifest."""
    versions = Versions(settings)
    partition = partitions.require_partition(settings.lake, tables.ITEM_FEATURES, versions.feature, day)
    partitions.require_partition(settings.lake, tables.USER_FEATURES, versions.feature, day)
    listed = partitions.require_partition(settings.lake, tables.ITEMS, None, day)
    for leftover in settings.releases.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(leftover)
    _link_files(sorted(partition.glob("*.parquet")), staging / "items")
    _link_files(sorted(listed.glob("*.parquet")), staging / "catalogue")
    checkpoint("items staged")
    if choice.source:
        _link_files(sorted(path for path in choice.source.iterdir() if path.is_file()), staging / "model")
    checkpoint("model staged")
    manifest = Manifest(
        day=day,
        feature_version=versions.feature,
        embedding_version=versions.embedding,
        collections={entity: collection(entity, versions.embedding) for entity in ("item", "user")},
        feature_service=feature_service(versions.feature),
        model=choice.name,
        checksums={
            str(path.relative_to(staging)): file_sha256(path) for path in sorted(staging.glob("*/*")) if path.is_file()
        },
        published_at=settings.clock().isoformat(),
    )
    items = load_release(staging, manifest).items
    load_catalogue(staging, items)
    num_items, content = len(items.row_of), partitions.read_content(listed)
    if content is None or num_items != content.num_rows:
        raise ReleaseError(
            f"item_features of {day} has {num_items} items, table items has {content.num_rows if content else 0}: "
            f"run daily_refresh for {day} again"
        )
    checkpoint("verified")
    (staging / MANIFEST_FILE).write_text(_as_json(manifest))
    checkpoint("manifest written")
    return manifest


def _link_files(files: list[Path], target: Path) -> None:
    """Hard links keep the release's own copy even when the lake replaces its day; a copy where links cannot reach."""
    target.mkdir(parents=True)
    for file in files:
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)


def _put_in_place(releases: Path, manifest: Manifest, staging: Path, checkpoint: Checkpoint) -> None:
    """Write everything through to the disk, then rename. A whole folder of the same id stays as it is."""
    place = folder(releases, manifest)
    if _is_whole(releases, manifest):
        return
    if place.exists():
        say(f"release: {place.name} was damaged and is replaced")
        shutil.rmtree(place)
    for path in [*staging.rglob("*"), staging]:
        _sync(path)
    checkpoint("synced")
    staging.rename(place)
    _sync(releases)
    checkpoint("in place")


def _put_in_force(releases: Path, manifest: Manifest, checkpoint: Checkpoint = _no_checkpoint) -> None:
    """Let readers see it: one atomic rename of `current.json`."""
    temporary = releases / f"{CURRENT_FILE}.new"
    temporary.write_text(_as_json(manifest))
    _sync(temporary)
    checkpoint("current written")
    temporary.replace(releases / CURRENT_FILE)
    _sync(releases)
    checkpoint("in force")


def rollback(settings: Settings, release_id: str | None = None) -> Manifest:
    """Put an earlier release in force again: the named one, or the one published before the one in force."""
    with _lock(settings.releases):
        before = current(settings.releases)
        known = published(settings.releases)
        if release_id is None:
            ids = [manifest.release_id for manifest in known]
            earlier = ids[: ids.index(before.release_id)] if before.release_id in ids else ids
            if not earlier:
                raise ReleaseError(f"no release was published before {before.release_id}")
            release_id = earlier[-1]
        manifest = _named(known, release_id)
        check_files(folder(settings.releases, manifest), manifest)
        _put_in_force(settings.releases, manifest)
    say(f"release: {manifest.release_id} is in force again (was {before.release_id})")
    say(
        f"release: user features stay as they are; to take them back to {manifest.day} as well: "
        f"python -m serving.release restore-day {manifest.day} --release {manifest.release_id}"
    )
    return manifest


def restore_day(
    settings: Settings, day: str, release_id: str | None = None, put_online: PutOnline | None = None
) -> Manifest:
    """Go back to a day as a whole: its features online, and its last release (or the named one) in force.

    The release is checked first, so that nothing moves towards one that cannot be served. Then the features, which may
    fail half-way, and the manifest last: until then the release in force goes on with rows of one feature version, each
    with its day. Raises `ReleaseError` or `ValueError`; then the release in force is the one before, and the same
    command may be run again.
    """
    with _lock(settings.releases):
        before = current(settings.releases)
        of_day = [each for each in published(settings.releases) if each.day == day]
        if not of_day:
            raise ReleaseError(f"no release of {day}; `python -m serving.release list` shows those there are")
        manifest = _named(of_day, release_id) if release_id else of_day[-1]
        version = Versions(settings).feature
        if manifest.feature_version != version:
            raise ReleaseError(
                f"{manifest.release_id} has features {manifest.feature_version}, the settings make {version}: set them "
                f"as they were, or put the release alone in force: rollback --to {manifest.release_id}"
            )
        load_release(folder(settings.releases, manifest), manifest)
        (put_online or _materialise)(settings, day)
        _put_in_force(settings.releases, manifest)
    say(f"release: {manifest.release_id} and the user features of {day} are in force again (was {before.release_id})")
    hours = age_hours(day, settings.clock())
    if hours > settings.max_feature_age_hours:
        say(
            f"release: these features are {hours:.0f} h old, more than GRASP_MAX_FEATURE_AGE_HOURS="
            f"{settings.max_feature_age_hours:g}: everyone gets popular items as long as they count as stale"
        )
    return manifest


def _materialise(settings: Settings, day: str) -> None:
    """In a process of its own: materialisation belongs to the feature repository, which serving does not import."""
    command = [sys.executable, "-m", "feature_repo.materialise", "--day", day, "--rollback"]
    result = subprocess.run(command, cwd=ROOT, env=process_environment(settings), check=False)
    if result.returncode:
        raise ReleaseError(f"the features of {day} are not online whole: the release in force stays; run this again")


def _named(manifests: list[Manifest], release_id: str) -> Manifest:
    for manifest in manifests:
        if manifest.release_id == release_id:
            return manifest
    raise ReleaseError(f"no release {release_id}; there are {', '.join(each.release_id for each in manifests)}")


def published(releases: Path) -> list[Manifest]:
    """All releases on disk in the order they were published (their manifest files' times: the clock may be set)."""
    files = sorted(releases.glob(f"[!.]*/{MANIFEST_FILE}"), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    return [read_manifest(file) for file in files]


def verify(settings: Settings, release_id: str | None = None) -> Manifest:
    """Load a release as serving would, checksums first: the named one, or the one in force.

    Raises `ValueError` naming what is damaged, and `NoReleaseError` when there is no such release.
    """
    manifest = read_manifest(settings.releases / release_id / MANIFEST_FILE) if release_id else None
    if manifest is None:
        manifest = current(settings.releases)
    elif manifest.release_id != release_id:
        raise ValueError(f"the manifest in {settings.releases / str(release_id)} was changed: publish its day again")
    load_release(folder(settings.releases, manifest), manifest)
    return manifest


def verify_all(settings: Settings) -> dict[str, str | None]:
    """What is wrong with each release on disk, None for a whole one, and with the one in force (`current.json`)."""
    places = [file.parent.name for file in sorted(settings.releases.glob(f"[!.]*/{MANIFEST_FILE}"))]
    return {CURRENT_FILE: _problem(settings, None)} | {name: _problem(settings, name) for name in places}


def _problem(settings: Settings, release_id: str | None) -> str | None:
    try:
        verify(settings, release_id)
    except (ValueError, NoReleaseError) as error:
        return str(error)
    return None


def _prune(releases: Path, manifest: Manifest) -> None:
    """Keep the last `NUM_KEPT` releases, and always the one in force and the candidate of an experiment."""
    kept = {manifest.release_id, _candidate(releases)}
    for old in published(releases)[:-NUM_KEPT]:
        if old.release_id not in kept:
            shutil.rmtree(folder(releases, old))
            say(f"release: {old.release_id} removed, {NUM_KEPT} are kept")


def _candidate(releases: Path) -> str | None:
    try:
        experiment = read_experiment(releases)
    except ValueError as error:
        say(f"release: {error}; no release is kept for it")
        return None
    return experiment.release_id if experiment else None


def _is_whole(releases: Path, manifest: Manifest) -> bool:
    try:
        check_files(folder(releases, manifest), manifest)
    except ValueError:
        return False
    return True


def _current_or_none(releases: Path) -> Manifest | None:
    try:
        return current(releases)
    except NoReleaseError:
        return None


@contextmanager
def _lock(releases: Path) -> Iterator[None]:
    """One publication at a time: the refresh and the retraining may finish together."""
    releases.mkdir(parents=True, exist_ok=True)
    with (releases / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_json(manifest: Manifest) -> str:
    return json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n"


def _describe(settings: Settings, manifest: Manifest) -> str:
    hours = age_hours(manifest.day, settings.clock())
    return (
        f"{manifest.release_id}: day {manifest.day} ({hours:.1f} h old), features {manifest.feature_version}, "
        f"model {manifest.model or 'popular'}, published {manifest.published_at}"
    )


def _show(settings: Settings, release_id: str) -> None:
    """The manifest, and what of it lies on the disk."""
    manifest = read_manifest(settings.releases / release_id / MANIFEST_FILE)
    place = folder(settings.releases, manifest)
    say(f"release: {_describe(settings, manifest)}")
    say(f"release: in force: {'yes' if current(settings.releases).release_id == release_id else 'no'}")
    for name in ("feature_service", "embedding_version"):
        say(f"release: {name} {getattr(manifest, name)}")
    for entity, name in sorted(manifest.collections.items()):
        say(f"release: Milvus collection of {entity}s {name}")
    for name, checksum in sorted(manifest.checksums.items()):
        file = place / name
        size = f"{file.stat().st_size:,} bytes" if file.is_file() else "missing"
        say(f"release: {name} {size}, sha256 {checksum}")
    if manifest.model:
        metadata = load_ranker(place / "model").metadata
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metadata.metrics.items()))
        say(f"release: model by recipe {metadata.recipe}, cutoff {metadata.cutoff}, seed {metadata.seed}; {metrics}")


def _verify(settings: Settings, release_id: str | None, every: bool) -> None:
    """Raises `ReleaseError` after all were looked at."""
    if not every:
        say(f"release: {verify(settings, release_id).release_id} is whole")
        return
    problems = verify_all(settings)
    for name, problem in problems.items():
        say(f"release: {name} {f'is NOT whole: {problem}' if problem else 'is whole'}")
    num_damaged = sum(problem is not None for problem in problems.values())
    if num_damaged:
        raise ReleaseError(f"{num_damaged} of {len(problems)} are not whole")


def _run(settings: Settings, arguments: argparse.Namespace) -> None:
    if arguments.command == "publish":
        manifest = publish(settings, arguments.day, choose_model(settings, arguments.model, arguments.decision))
        if arguments.decision:
            # Until this is there the retraining counts as unfinished and is due again.
            write_json(arguments.decision.with_name(PUBLISHED_FILE), {"release": manifest.release_id})
    elif arguments.command == "rollback":
        rollback(settings, arguments.to)
    elif arguments.command == "restore-day":
        restore_day(settings, arguments.day, arguments.release)
    elif arguments.command == "verify":
        _verify(settings, arguments.release, arguments.all)
    elif arguments.command == "show":
        _show(settings, arguments.release)
    elif arguments.command == "status":
        say(f"release: {_describe(settings, current(settings.releases))}")
    else:
        in_force = current(settings.releases).release_id
        for manifest in published(settings.releases):
            mark = "*" if manifest.release_id == in_force else " "
            say(f"release: {mark} {_describe(settings, manifest)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serving.release", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    publication = commands.add_parser("publish", help="put the features of a day in force")
    publication.add_argument("--day", type=day_argument, required=True, help="UTC day, YYYY-MM-DD")
    model = publication.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, help="folder of a trained model")
    model.add_argument("--decision", type=Path, help="decision.json of a training run")
    back = commands.add_parser("rollback", help="put an earlier release in force again")
    back.add_argument("--to", help="release id; the one published before by default")
    restore = commands.add_parser("restore-day", help="put a day's release in force and its user features online")
    restore.add_argument("day", type=day_argument, help="UTC day, YYYY-MM-DD")
    restore.add_argument("--release", help="release id; the last one published of the day by default")
    commands.add_parser("status", help="the release in force")
    commands.add_parser("list", help="all releases, oldest first, * in force")
    shown = commands.add_parser("show", help="what a release consists of")
    shown.add_argument("release", help="release id")
    checked = commands.add_parser("verify", help="load a release as serving would, checksums first")
    which = checked.add_mutually_exclusive_group()
    which.add_argument("release", nargs="?", help="release id; the one in force by default")
    which.add_argument("--all", action="store_true", help="every release on disk")
    arguments = parser.parse_args()
    try:
        _run(Settings.load(), arguments)
    except (SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
