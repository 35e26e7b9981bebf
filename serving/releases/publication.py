"""Publish a release: build it next to the others, check it, move it into place, put it in force.

The release is built in a temporary folder, loaded as serving would load it, flushed to disk and renamed. Only then does
`current.json` name it, so a crash at any step leaves the old release in force.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from grasp import partitions, tables
from grasp.days import has_ended
from grasp.manifest import MANIFEST_FILE, Manifest, release_folder
from grasp.moments import VoteRule
from grasp.progress import say
from grasp.settings import Settings
from grasp.versions import Versions, collection, feature_service, file_sha256
from serving.ranking.catalogue import load_catalogue
from serving.ranking.release_ranker import check_files, load_release_ranker
from serving.releases.buckets import read_experiment
from serving.releases.carried_moments import carry_moments
from serving.releases.in_force import (
    Checkpoint,
    ReleaseError,
    as_json,
    current_or_none,
    flush_to_disk,
    last_in_force,
    no_checkpoint,
    publication_lock,
    put_in_force,
    releases_on_disk,
    rollback_targets,
)
from training.model.artefact import ArtefactFormatError, load_ranker

NUM_KEPT = 10  # releases that a rollback can reach
STAGING_PREFIX = ".staging-"


@dataclass(frozen=True)
class ModelChoice:
    """The model of a release and why it was chosen. `source` is its folder; both are None for `popular`."""

    name: str | None
    source: Path | None
    reason: str


def publish(
    settings: Settings,
    day: str,
    choose: Callable[[Manifest | None], ModelChoice],
    checkpoint: Checkpoint = no_checkpoint,
) -> Manifest:
    """Publish the features of `day` with the chosen model; returns the manifest in force afterwards.

    `choose` receives the manifest in force. Publishing the same content again changes nothing. A day before the one in
    force is a back-fill and is not published. Raises `ReleaseError` or `MissingPartitionError`; then, and after a crash
    at any step, the old release stays in force.
    """
    with publication_lock(settings.releases):
        before = current_or_none(settings.releases)
        if before and day < before.day:
            say(
                f"release: {day} is older than the release in force ({before.release_id}): back-filled, not published. "
                f"A model trained for it can still be served: "
                f"grasp release publish --day {before.day} --model FOLDER. "
                f"To go back to it: grasp release restore-day {day}"
            )
            return before
        choice = choose(before or last_in_force(settings.releases))
        manifest, was_there = add_release(settings, day, choice, checkpoint)
        if before and before.release_id == manifest.release_id and was_there:
            say(f"release: {manifest.release_id} is in force already, nothing changed")
            return before
        put_in_force(settings.releases, manifest, checkpoint)
        _prune(settings.releases, manifest)
    say(f"release: {manifest.release_id} is in force: day {day}, model {manifest.model or 'popular'}")
    return manifest


def add_release(
    settings: Settings, day: str, choice: ModelChoice, checkpoint: Checkpoint = no_checkpoint
) -> tuple[Manifest, bool]:
    """Build a release of `day` beside the others; returns its manifest and whether it was there, intact.

    The caller holds the publication lock. Raises like `publish`.
    """
    if not (settings.future_days or has_ended(day, datetime.now(UTC))):
        raise ReleaseError(
            f"{day} is not over by the wall clock, and once published it blocks every day before it: "
            "only GRASP_FUTURE_DAYS=true publishes it"
        )
    say(f"release: model {choice.name or 'popular'}: {choice.reason}")
    staging = settings.releases / f"{STAGING_PREFIX}{os.getpid()}"
    try:
        manifest = _build(settings, day, choice, staging, checkpoint)
        was_there = _is_intact(settings.releases, manifest)
        if not was_there:
            _move_into_place(settings.releases, manifest, staging, checkpoint)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest, was_there


def choose_model(
    settings: Settings, model: Path | None, decision: Path | None
) -> Callable[[Manifest | None], ModelChoice]:
    """Choose `model` if given, else the model that `decision` promotes, else the one in force if its features match."""

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
        trained_with = f"{before.model} was trained with features {before.feature_version}"
        return ModelChoice(None, None, f"{trained_with}, these are {version}: run `grasp retrain`")
    source = release_folder(settings.releases, before) / "model"
    try:
        load_ranker(source)
    except ArtefactFormatError as error:
        return ModelChoice(None, None, f"{before.model} cannot be kept: {error}")
    return ModelChoice(before.model, source, "kept from the release in force")


def _read_decision(file: Path) -> dict[str, object]:
    """Raises `ReleaseError` unless the file is `{"model": folder or null, "promoted": bool, "reason": text}`."""
    try:
        verdict = json.loads(file.read_text())
        complete = isinstance(verdict["promoted"], bool) and isinstance(verdict["reason"], str)
        if not complete or (verdict["promoted"] and not isinstance(verdict["model"], str)):
            raise TypeError("`promoted` must be true or false, `reason` a text, `model` a folder when promoted")
    except FileNotFoundError:
        raise ReleaseError(f"no promotion decision at {file}: run `grasp retrain` first") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ReleaseError(f"{file} is not a promotion decision: {error}") from error
    return verdict


def _build(settings: Settings, day: str, choice: ModelChoice, staging: Path, checkpoint: Checkpoint) -> Manifest:
    """Build the release in a temporary folder and load it as serving will; returns its manifest."""
    versions = Versions(settings)
    partition = partitions.require_partition(settings.lake, tables.ITEM_FEATURES, versions.feature, day)
    partitions.require_partition(settings.lake, tables.USER_FEATURES, versions.feature, day)
    listed = partitions.require_partition(settings.lake, tables.ITEMS, None, day)
    for leftover in settings.releases.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(leftover)
    _link_files(sorted(partition.glob("*.parquet")), staging / "items")
    _link_files(sorted(listed.glob("*.parquet")), staging / "catalogue")
    withdrawn = partitions.partition_path(settings.lake, tables.WITHDRAWN_ITEMS, None, day)
    if partitions.read_content(withdrawn):  # a day of before this table has none
        _link_files(sorted(withdrawn.glob("*.parquet")), staging / "withdrawn")
    checkpoint("items staged")
    if choice.source:
        _link_files(sorted(path for path in choice.source.iterdir() if path.is_file()), staging / "model")
    fresh = load_ranker(staging / "model").ranker.fresh if choice.source and settings.moments else None
    has_votes = fresh is not None and (fresh.reads_votes or fresh.reads_state_votes)
    if fresh is not None and fresh.reads_state_votes:
        carry_moments(settings, day, versions.feature, staging)
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
        vote_rule=asdict(VoteRule.of(settings)) if has_votes else None,
    )
    _require_unchanged(settings.releases, manifest, staging)
    items = load_release_ranker(staging, manifest).items
    load_catalogue(staging, items)
    num_items, content = len(items.row_of), partitions.read_content(listed)
    if content is None or num_items != content.num_rows:
        raise ReleaseError(
            f"item_features of {day} has {num_items} items, table items has {content.num_rows if content else 0}: "
            f"run `grasp refresh --day {day}` again"
        )
    checkpoint("verified")
    (staging / MANIFEST_FILE).write_text(as_json(manifest))
    checkpoint("manifest written")
    return manifest


def _link_files(files: list[Path], target: Path) -> None:
    """Hard-link files, so that the release keeps them when the lake replaces its day. Copy where links do not work."""
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)


def _require_unchanged(releases: Path, manifest: Manifest, staging: Path) -> None:
    """Raises `ReleaseError` for a damaged file: one that an earlier release shares, with another checksum."""
    for before in releases_on_disk(releases):
        for name in sorted(before.checksums.keys() & manifest.checksums.keys()):
            shared = release_folder(releases, before) / name
            is_same_file = shared.is_file() and shared.samefile(staging / name)
            if is_same_file and before.checksums[name] != manifest.checksums[name]:
                raise ReleaseError(
                    f"{shared} was changed after {before.release_id} was published, and so was the lake's file, "
                    f"which is the same one: run `grasp refresh --day {manifest.day} --force`"
                )


def _move_into_place(releases: Path, manifest: Manifest, staging: Path, checkpoint: Checkpoint) -> None:
    """Flush everything to disk, then rename."""
    place = release_folder(releases, manifest)
    if place.exists():
        say(f"release: {place.name} was damaged and is replaced")
        shutil.rmtree(place)
    for path in [*staging.rglob("*"), staging]:
        flush_to_disk(path)
    checkpoint("synced")
    staging.rename(place)
    flush_to_disk(releases)
    checkpoint("in place")


def _prune(releases: Path, manifest: Manifest) -> None:
    """Keep the last `NUM_KEPT` releases, the one in force, the one before it and the experiment's challenger."""
    before = rollback_targets(releases, manifest.release_id)[-1:]
    kept = {manifest.release_id, _challenger(releases), *(each.release_id for each in before)}
    for old in releases_on_disk(releases)[:-NUM_KEPT]:
        if old.release_id not in kept:
            shutil.rmtree(release_folder(releases, old))
            say(f"release: {old.release_id} removed, {NUM_KEPT} are kept")


def _challenger(releases: Path) -> str | None:
    try:
        experiment = read_experiment(releases)
    except ValueError as error:
        say(f"release: {error}; its release may be removed")
        return None
    return experiment.release_id if experiment else None


def _is_intact(releases: Path, manifest: Manifest) -> bool:
    try:
        check_files(release_folder(releases, manifest), manifest)
    except ValueError:
        return False
    return True
