"""`grasp COMMAND ...`: check the settings, then become the module that does the work, in its environment.

A new command is a line in `COMMANDS`. Arguments after its name belong to the module, `--help` included.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import typer

from grasp.environment import process_environment
from grasp.feature_store import FEAST_FILE_VARIABLE, write_release_store
from grasp.preflight import REFRESH, Check, require, require_airflow_port, require_feature_store
from grasp.processes import run_to_the_end
from grasp.progress import say
from grasp.settings import ROOT, Settings, SettingsError

TRY, DAILY, RELEASES, SET_UP = "See what there is", "Every day", "Releases", "Set up and manage"


@dataclass(frozen=True)
class Command:
    """A command, and the module that it starts."""

    name: str
    module: str
    group: str
    help: str


COMMANDS = (
    Command("demo", "cli.demo", TRY, "Both DAGs on MovieLens-100K or your folder, then recommendations."),
    Command("serve", "serving.http.app", TRY, "HTTP server and Explorer for the release in force."),
    Command("sql", "feature_repo.sql", TRY, "DuckDB on every table and feature view."),
    Command("refresh", "cli.refresh", DAILY, "Run the DAG daily_refresh for a day."),
    Command("retrain", "cli.retrain", DAILY, "Run the DAG retrain for a day."),
    Command("forecast", "spark_jobs.commands.forecast", DAILY, "What a day will cost, before it costs it."),
    Command("dead-letters", "spark_jobs.commands.dead_letters", DAILY, "List refused texts, or replay them."),
    Command("quality", "feature_repo.quality", DAILY, "Check a day's features against their expectations."),
    Command("materialise", "feature_repo.materialise", DAILY, "Put a day's features online."),
    Command("release", "serving.releases.manage", RELEASES, "Publish, list, verify and roll back releases."),
    Command("experiment", "serving.rollout.experiment", RELEASES, "Show another release to a share of the users."),
    Command("consistency", "serving.checks.consistency", RELEASES, "Compare served answers with offline features."),
    Command("fetch", "spark_jobs.commands.fetch", SET_UP, "Fetch the default models and the demo's data."),
    Command("sample", "spark_jobs.source.sample", SET_UP, "Cut a small source folder out of a large one."),
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A feature store that carries a language model's knowledge into recommendations. "
    "Settings are GRASP_* variables (.env.example); `grasp COMMAND --help` explains a command.",
)
PASS_ARGUMENTS_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


def checked_environment(*checks: Check) -> dict[str, str]:
    """The variables for a program. Ends with one line when a setting is wrong or a check fails."""
    try:
        settings = Settings.load()
        require(settings, *checks)
    except SettingsError as error:
        sys.exit(f"error: {error}")
    return process_environment(settings)


def become(program: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Replace this process by `program`."""
    os.execvpe(program, [program, *arguments], environment)  # noqa: S606 - one of ours


def starter(command: Command) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        # -P: a folder `serving` where the user stands must not hide ours.
        become(sys.executable, ["-P", "-m", command.module, *context.args], checked_environment())

    return run


for each in COMMANDS:
    register = app.command(
        each.name,
        help=each.help,
        rich_help_panel=each.group,
        context_settings=PASS_ARGUMENTS_ON,
        add_help_option=False,
    )
    register(starter(each))


@app.command(rich_help_panel=SET_UP, context_settings=PASS_ARGUMENTS_ON, add_help_option=False)
def airflow(context: typer.Context) -> None:
    """Airflow with its UI and both DAGs; with arguments, Airflow's own command."""
    if context.args:
        become("airflow", context.args, checked_environment())
    environment = checked_environment(*REFRESH, require_airflow_port)
    address = f"{environment['AIRFLOW__API__HOST']}:{environment['AIRFLOW__API__PORT']}"
    say(f"Airflow UI: http://{address}, no login needed; Ctrl-C ends it")
    sys.exit(run_to_the_end(["airflow", "standalone"], environment))


@app.command(rich_help_panel=SET_UP, context_settings=PASS_ARGUMENTS_ON, add_help_option=False)
def feast(context: typer.Context) -> None:
    """Feast's own command on the release in force, for example `feature-views list`."""
    environment = checked_environment(require_feature_store)
    try:
        file = write_release_store(Settings.load())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    environment[FEAST_FILE_VARIABLE] = str(file)
    become("feast", ["-c", str(ROOT / "feature_repo"), *context.args], environment)


def main() -> None:
    app(prog_name="grasp")


if __name__ == "__main__":
    main()
