"""Run a DAG once, here and now: `airflow dags test` with the real tasks, its progress lines shown."""

import json
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from grasp.environment import process_environment
from grasp.processes import end_with_parent
from grasp.progress import MARK, say
from grasp.settings import ROOT, Settings
from grasp.versions import digest

STAGE_TOOK = re.compile(r"stage (\S+) (\S+) took ([\d.]+) s")
STAGE_SKIPPED = re.compile(r"(\S+) (\S+): inputs unchanged, skipped")
AIRFLOW_SOURCE = re.compile(r"'?\s+\[(?:airflow|task)")  # what Airflow appends to a line: who logged it, and where
TASK_STARTS = re.compile(r"\[DAG TEST\] running task <TaskInstance: ([^.\s]+)\.(\S+) (\S+) \[")
TASK_ENDS = "[DAG TEST] end task"
NUM_TAIL_LINES = 40


class DagError(RuntimeError):
    """A run failed; the message says where its log is and how it ends."""


@dataclass(frozen=True)
class StageTime:
    run: str
    stage: str
    seconds: float | None  # None: skipped


class TaskLogs:
    """Gives each task's part of a run's output to the file where Airflow's UI looks for it: a test run writes none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: Path | None = None
        self.tries: Counter[str] = Counter()

    def write(self, line: str) -> None:
        if started := TASK_STARTS.search(line):
            dag, task, run = started.groups()
            self.tries[task] += 1
            self.file = self.folder / f"dag_id={dag}/run_id={run}/task_id={task}/attempt={self.tries[task]}.log"
            self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.file:
            with self.file.open("a") as file:
                file.write(line)
        if TASK_ENDS in line:
            self.file = None


def new_log(settings: Settings, name: str) -> Path:
    """A log file for one run of a command."""
    return settings.home / "logs" / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}.log"


def airflow_logs(settings: Settings) -> Path:
    """The folder of the tasks' logs that Airflow's UI reads."""
    environment = process_environment(settings)
    return Path(environment.get("AIRFLOW__LOGGING__BASE_LOG_FOLDER") or Path(environment["AIRFLOW_HOME"], "logs"))


def migrate(settings: Settings, log: Path) -> None:
    """Bring Airflow's metadata up to date; makes it on the first run. Takes seconds, so it is not done twice."""
    environment = process_environment(settings)
    done = Path(environment["AIRFLOW_HOME"], "migrated.txt")
    if done.exists() and done.read_text() == _metadata_state(environment):
        return
    for _ in output_of(["airflow", "db", "migrate"], settings, log):
        continue
    if state := _metadata_state(environment):
        done.write_text(state)


def _metadata_state(environment: dict[str, str]) -> str | None:
    """Changes with Airflow, its configuration and the tables of its SQLite file; None where there is no such file."""
    home = Path(environment["AIRFLOW_HOME"]).absolute()
    try:
        configuration = (home / "airflow.cfg").read_text()
        with closing(sqlite3.connect((home / "airflow.db").as_uri() + "?mode=ro", uri=True)) as metadata:
            revisions = metadata.execute("SELECT version_num FROM alembic_version").fetchall()
    except (OSError, sqlite3.Error):
        return None
    variables = sorted(each for each in environment.items() if each[0].startswith("AIRFLOW__DATABASE__"))
    return digest([version("apache-airflow"), configuration, variables, revisions])


def run_command(name: str, dag: str, conf: dict[str, object]) -> None:
    """Run a DAG by the settings of this process and show its stage times. Ends with one message when it fails."""
    started, settings = time.monotonic(), Settings.load()
    log = new_log(settings, name)
    try:
        migrate(settings, log)
        times = run_dag(settings, dag, conf, log)
    except DagError as error:
        sys.exit(f"error: {error}")
    show_times(times, time.monotonic() - started)


def show_line(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def run_dag(
    settings: Settings, dag: str, conf: dict[str, object], log: Path, show: Callable[[str], None] = show_line
) -> list[StageTime]:
    """One `airflow dags test`: `show` gets the progress lines, the log everything; returns the stage times."""
    conf = {name: value for name, value in conf.items() if value is not None}
    say(f"--- {dag} {' '.join(f'{key}={value}' for key, value in conf.items())}")
    command = ["airflow", "dags", "test", dag, "--conf", json.dumps(conf)]
    times, failed, is_explained = [], False, False
    task_logs = TaskLogs(airflow_logs(settings))
    for line in output_of(command, settings, log):
        task_logs.write(line)
        failed = failed or "state=failed" in line
        if MARK not in line:
            continue
        text = AIRFLOW_SOURCE.split(line[line.index(MARK) :])[0].rstrip()
        show(text)
        is_explained = is_explained or "failed: " in text
        if found := STAGE_TOOK.search(text):
            times.append(StageTime(f"{dag} {found[2]}", found[1], float(found[3])))
        elif found := STAGE_SKIPPED.search(text):
            times.append(StageTime(f"{dag} {found[2]}", found[1], None))
    if failed and is_explained:  # the reason was printed above; the log adds only Airflow's own lines
        raise DagError(f"{dag} failed; {log} has the details")
    if failed:
        raise DagError(f"{dag} failed; the end of {log}:\n{_tail(log)}")
    return times


def output_of(command: list[str], settings: Settings, log: Path) -> Iterator[str]:
    """Lines of a child process, each written to the log as it comes; raises `DagError` when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a") as file,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=process_environment(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, no lock
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            file.flush()
            yield line
    if process.returncode:
        raise DagError(f"{' '.join(command[:4])} ended with code {process.returncode}; {log}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-NUM_TAIL_LINES:])


def show_times(times: list[StageTime], total: float) -> None:
    say("--- stage times")
    for each in times:
        took = "skipped" if each.seconds is None else f"{each.seconds:6.1f} s"
        say(f"{each.run:<28} {each.stage:<22} {took:>9}")
    say(f"whole run {total / 60:.1f} minutes")
