"""Start and stop an experiment, which shows another release to a share of the users.

    grasp experiment start --name new-model --release 1998-04-22-0a1b2c3d4e --share 0.1
    grasp experiment stop
    grasp experiment status

Running servers follow within a second. With a share of 0 requests can name the release, but it is shown to nobody.
Question 9 of `docs/analysts.md` shows the results.
"""

import argparse
import re
import sys
from dataclasses import asdict

from grasp.environment import prepare
from grasp.files import write_json
from grasp.manifest import manifest_in_force, release_folder
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from serving.ranking.release_ranker import check_files
from serving.releases.buckets import EXPERIMENT_FILE, Experiment, read_experiment
from serving.releases.in_force import read_release

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class ExperimentError(ValueError):
    """An experiment cannot start; the message says why and what to do."""


def start(settings: Settings, name: str, release_id: str, share: float) -> Experiment:
    """Start an experiment, or change the share of the running one with the same name and release.

    Raises `ExperimentError`, or `ValueError` for a damaged release.
    """
    if not NAME.fullmatch(name):
        raise ExperimentError(
            f"{name!r} is not a name: use up to 64 lower-case letters, digits, dots, dashes, underscores"
        )
    experiment = Experiment(name, release_id, share)
    running = read_experiment(settings.releases)
    if running and (running.name, running.release_id) != (name, release_id):
        raise ExperimentError(f"{running.name} runs with release {running.release_id}: stop it first")
    if release_id == manifest_in_force(settings.releases).release_id:
        raise ExperimentError(f"{release_id} is the release in force: all users get it already")
    manifest = read_release(settings.releases, release_id)
    check_files(release_folder(settings.releases, manifest), manifest)
    write_json(settings.releases / EXPERIMENT_FILE, asdict(experiment))
    say(f"experiment: {describe(experiment)}")
    return experiment


def stop(settings: Settings) -> None:
    """End the experiment, if one runs: all users get the release in force again."""
    (settings.releases / EXPERIMENT_FILE).unlink(missing_ok=True)
    say(f"experiment: {describe(None)}")


def describe(experiment: Experiment | None) -> str:
    if experiment is None:
        return "none, all users get the release in force"
    return f"{experiment.name}: release {experiment.release_id} for {experiment.share:.1%} of the users"


def main() -> None:
    parser = argparse.ArgumentParser(prog="grasp experiment", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    begin = commands.add_parser("start", help="begin, or change the share of the running one")
    begin.add_argument("--name", required=True, help="part of how users are divided: a new name divides anew")
    begin.add_argument("--release", required=True, help="the candidate, one of `grasp release list`")
    begin.add_argument("--share", type=float, required=True, help="of the users, from 0 to 1")
    commands.add_parser("stop", help="everybody gets the release in force")
    commands.add_parser("status", help="what runs")
    arguments = parser.parse_args()
    try:
        settings = Settings.load()
        if arguments.command == "start":
            start(settings, arguments.name, arguments.release, arguments.share)
        elif arguments.command == "stop":
            stop(settings)
        else:
            say(f"experiment: {describe(read_experiment(settings.releases))}")
    except (SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    prepare()
    main()
