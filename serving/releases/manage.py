"""Publish, roll back, list and verify releases.

    grasp release publish --day 1998-04-22 [--model FOLDER | --decision FILE]
    grasp release rollback [--to RELEASE_ID]
    grasp release restore-day 1998-04-21 [--release RELEASE_ID]
    grasp release status | list | show RELEASE_ID | verify [RELEASE_ID | --all]

A release is one day's features, their versions and a model. `publication.py` builds it.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from grasp.days import age_hours, day_argument
from grasp.environment import prepare, process_environment
from grasp.feature_store import write_release_store
from grasp.files import write_json
from grasp.manifest import (
    CURRENT_FILE,
    MANIFEST_FILE,
    PUBLISHED_FILE,
    Manifest,
    NoReleaseError,
    manifest_in_force,
    release_folder,
)
from grasp.progress import say
from grasp.settings import ROOT, Settings, SettingsError
from grasp.versions import Versions
from serving.ranking.release_ranker import check_files, load_release_ranker
from serving.releases.in_force import (
    ReleaseError,
    current_or_none,
    find_release,
    last_in_force,
    publication_lock,
    put_in_force,
    read_release,
    releases_on_disk,
    rollback_targets,
)
from serving.releases.publication import add_release, choose_model, publish
from training.model.artefact import load_ranker

PutOnline = Callable[[Settings, str], None]  # puts a day's features online, also over newer ones


def rollback(settings: Settings, release_id: str | None = None) -> Manifest:
    """Put an earlier release in force again: `release_id`, or by default the one that was in force before.

    With `release_id` a damaged `current.json` is replaced too.
    """
    with publication_lock(settings.releases):
        before = _name_of(current_or_none(settings.releases) if release_id else manifest_in_force(settings.releases))
        if release_id:
            manifest = find_release(releases_on_disk(settings.releases), release_id)
        elif targets := rollback_targets(settings.releases, before):
            manifest = targets[-1]
        else:
            raise ReleaseError(
                f"{before} has no release to roll back to; to publish an earlier day: grasp release restore-day DAY"
            )
        check_files(release_folder(settings.releases, manifest), manifest)
        put_in_force(settings.releases, manifest)
    say(f"release: {manifest.release_id} is in force again (was {before})")
    say(
        f"release: the online user features did not change; to take them back to {manifest.day} as well: "
        f"grasp release restore-day {manifest.day} --release {manifest.release_id}"
    )
    return manifest


def restore_day(
    settings: Settings, day: str, release_id: str | None = None, put_online: PutOnline | None = None
) -> Manifest:
    """Go back to a day: put its features online, and its last release (or `release_id`) in force.

    The steps are in this order:
    1. Load the release, so that nothing changes when it cannot be served. A day that has no release gets one, from
       the lake's features and with the model in force.
    2. Put the features online. If that fails half-way, the release in force still works: all rows have one feature
       version, and each row names its day.
    3. Put the release in force.

    Raises `ReleaseError`, `MissingPartitionError` or `ValueError`. Then the release in force is the one before; run the
    same command again.
    """
    with publication_lock(settings.releases):
        in_force = current_or_none(settings.releases)
        before = _name_of(in_force)
        of_day = [each for each in releases_on_disk(settings.releases) if each.day == day]
        if release_id:
            manifest = find_release(of_day, release_id)
        elif of_day:
            manifest = of_day[-1]
        else:
            say(f"release: no release of {day} is on disk: it is built from the lake")
            choice = choose_model(settings, None, None)(in_force or last_in_force(settings.releases))
            manifest, _ = add_release(settings, day, choice)
        version = Versions(settings).feature
        if manifest.feature_version != version:
            raise ReleaseError(
                f"{manifest.release_id} has features {manifest.feature_version}, the settings make {version}: restore "
                f"the settings, or roll back the release alone: grasp release rollback --to {manifest.release_id}"
            )
        load_release_ranker(release_folder(settings.releases, manifest), manifest)
        (put_online or _materialise)(settings, day)
        put_in_force(settings.releases, manifest)
    say(f"release: {manifest.release_id} and the user features of {day} are in force again (was {before})")
    _say_if_stale(settings, day)
    return manifest


def _say_if_stale(settings: Settings, day: str) -> None:
    hours = age_hours(day, settings.clock())
    if hours > settings.stale_after_hours:
        say(f"release: {settings.stale_message(day, hours)}; answers are marked stale_features")


def _name_of(manifest: Manifest | None) -> str:
    return manifest.release_id if manifest else "one that cannot be read"


def _materialise(settings: Settings, day: str) -> None:
    """Run materialisation as a process: it belongs to `feature_repo`, which serving must not import."""
    command = [sys.executable, "-m", "feature_repo.materialise", "--day", day, "--rollback"]
    result = subprocess.run(command, cwd=ROOT, env=process_environment(settings), check=False)
    if result.returncode:
        raise ReleaseError(f"not all features of {day} are online: the release in force stays; run this again")


def verify(settings: Settings, release_id: str | None = None) -> Manifest:
    """Load a release as serving would, checksums first: `release_id`, or by default the one in force.

    Raises `ValueError` naming what is damaged or unknown, and `NoReleaseError` before the first release.
    """
    manifest = read_release(settings.releases, release_id) if release_id else None
    if manifest is None:
        manifest = manifest_in_force(settings.releases)
    elif manifest.release_id != release_id:
        raise ValueError(f"the manifest in {settings.releases / str(release_id)} was changed: publish its day again")
    load_release_ranker(release_folder(settings.releases, manifest), manifest)
    return manifest


def verify_all(settings: Settings) -> dict[str, str | None]:
    """The problem of each release on disk and of the one in force (`current.json`); None for an intact one.

    Raises `NoReleaseError` before the first release.
    """
    places = [file.parent.name for file in sorted(settings.releases.glob(f"[!.]*/{MANIFEST_FILE}"))]
    if not places:
        manifest_in_force(settings.releases)
    return {CURRENT_FILE: _problem(settings, None)} | {name: _problem(settings, name) for name in places}


def _problem(settings: Settings, release_id: str | None) -> str | None:
    try:
        verify(settings, release_id)
    except (ValueError, NoReleaseError) as error:
        return str(error)
    return None


def _describe(settings: Settings, manifest: Manifest) -> str:
    hours = round(age_hours(manifest.day, settings.clock()), 1) + 0.0  # never -0.0
    return (
        f"{manifest.release_id}: day {manifest.day} ({hours:.1f} h old), features {manifest.feature_version}, "
        f"model {manifest.model or 'popular'}, published {manifest.published_at}"
    )


def _show(settings: Settings, release_id: str) -> None:
    """Print a manifest and the files that belong to it."""
    manifest = read_release(settings.releases, release_id)
    place = release_folder(settings.releases, manifest)
    say(f"release: {_describe(settings, manifest)}")
    say(f"release: in force: {'yes' if _name_of(current_or_none(settings.releases)) == release_id else 'no'}")
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
    """Print whether releases are intact. Raises `ReleaseError` if any is not."""
    if not every:
        say(f"release: {verify(settings, release_id).release_id} is intact")
        return
    problems = verify_all(settings)
    for name, problem in problems.items():
        say(f"release: {name} {f'is DAMAGED: {problem}' if problem else 'is intact'}")
    num_damaged = sum(problem is not None for problem in problems.values())
    if num_damaged:
        raise ReleaseError(f"{num_damaged} of {len(problems)} are damaged")


def _run(settings: Settings, arguments: argparse.Namespace) -> None:
    if arguments.command == "publish":
        manifest = publish(settings, arguments.day, choose_model(settings, arguments.model, arguments.decision))
        if arguments.decision:
            # Without this file the retraining counts as unfinished and runs again.
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
        manifest = manifest_in_force(settings.releases)
        say(f"release: {_describe(settings, manifest)}")
        _say_if_stale(settings, manifest.day)
    else:
        in_force = _name_of(current_or_none(settings.releases))
        manifests = releases_on_disk(settings.releases)
        if not manifests:
            say("release: none yet")
        for manifest in manifests:
            mark = "*" if manifest.release_id == in_force else " "
            say(f"release: {mark} {_describe(settings, manifest)}")
    if arguments.command in ("publish", "rollback", "restore-day"):
        write_release_store(settings)  # plain Feast follows the release in force


def main() -> None:
    parser = argparse.ArgumentParser(prog="grasp release", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    publication = commands.add_parser("publish", help="put the features of a day in force")
    publication.add_argument("--day", type=day_argument, required=True, help="UTC day, YYYY-MM-DD")
    model = publication.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, help="folder of a trained model")
    model.add_argument("--decision", type=Path, help="decision.json of a training run")
    back = commands.add_parser("rollback", help="put an earlier release in force again")
    back.add_argument("--to", help="release id; the one in force before by default")
    restore = commands.add_parser(
        "restore-day", help="put a day's release in force, or one built from the lake, and its user features online"
    )
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
    prepare()
    main()
