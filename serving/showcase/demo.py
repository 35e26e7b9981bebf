"""`make demo`: both DAGs through Airflow on real data, then recommendations a person can judge.

Refreshes two days, a cutoff day whose features the model trains with and the latest day, which is served; then
retrains. Everything runs through `airflow dags test` with the real tasks. A second run skips what did not change.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grasp.days import day_argument, end_of, parse_day
from grasp.environment import process_environment
from grasp.progress import MARK, say
from grasp.settings import ROOT, Settings, SettingsError
from grasp.versions import digest

# MovieLens-100K ends on 1998-04-22. Of its 943 users, 119 have five interactions up to 1998-02-28 and any after it.
MOVIELENS_CUTOFF, MOVIELENS_LATEST = "1998-02-28", "1998-04-22"
STAGE_TOOK = re.compile(r"stage (\S+) (\S+) took ([\d.]+) s")
STAGE_SKIPPED = re.compile(r"(\S+) (\S+): inputs unchanged, skipped")
AIRFLOW_SOURCE = re.compile(r"'?\s+\[(?:airflow|task)")  # what Airflow appends to a line: who logged it, and where
NUM_TAIL_LINES = 40


class DemoError(RuntimeError):
    """A step of the demo failed; the message says which and where its log is."""


@dataclass(frozen=True)
class StageTime:
    run: str
    stage: str
    seconds: float | None  # None: skipped


@dataclass(frozen=True)
class Plan:
    """What the demo works on."""

    settings: Settings
    cutoff: str
    latest: str


def plan_movielens(settings: Settings) -> Plan:
    return Plan(settings, MOVIELENS_CUTOFF, MOVIELENS_LATEST)


def plan_folder(settings: Settings, folder: Path) -> Plan:
    """Sample the folder into a home of its own, so that two data sets never meet in one lake."""
    home = settings.home / "demos" / f"{folder.resolve().name}-{digest(str(folder.resolve()))[:6]}"
    source = home / "source"
    command = [sys.executable, "-m", "spark_jobs.source.sample", str(folder), str(source)]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise DemoError(f"{folder} could not be sampled; docs/data.md says what such a folder holds")
    *said, last = result.stdout.strip().splitlines()
    print("\n".join(said))  # noqa: T201
    days = json.loads(last)
    own = Settings.load({"GRASP_HOME": str(home)})
    places = {
        name: getattr(own, name) for name in ("home", "lake", "releases", "data_docs", "mlflow_uri", "milvus_uri")
    }
    changed = {**places, "source": source}
    if "llm_max_failure_share" not in settings.model_fields_set:
        # The small model may get nothing right about a shop's items: facts stand in, and there is much else to see.
        changed["llm_max_failure_share"] = 1.0
    return Plan(settings.model_copy(update=changed), parse_day(days["cutoff"]), parse_day(days["latest"]))


def run_dag(settings: Settings, dag: str, conf: dict[str, object], log: Path) -> list[StageTime]:
    """One `airflow dags test`: progress lines are shown, everything goes to the log; returns the stage times."""
    say(f"--- {dag} {' '.join(f'{key}={value}' for key, value in conf.items())}")
    command = ["airflow", "dags", "test", dag, "--conf", json.dumps(conf)]
    times, failed = [], False
    for line in _output(command, settings, log):
        failed = failed or "state=failed" in line
        if MARK not in line:
            continue
        text = AIRFLOW_SOURCE.split(line[line.index(MARK) :])[0].rstrip()
        print(text, flush=True)  # noqa: T201
        if found := STAGE_TOOK.search(text):
            times.append(StageTime(f"{dag} {found[2]}", found[1], float(found[3])))
        elif found := STAGE_SKIPPED.search(text):
            times.append(StageTime(f"{dag} {found[2]}", found[1], None))
    if failed:
        raise DemoError(f"{dag} failed; the end of {log}:\n{_tail(log)}")
    return times


def _output(command: list[str], settings: Settings, log: Path) -> Iterator[str]:
    """Lines of a child process, each written to the log as it comes; raises `DemoError` when it fails."""
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
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            file.flush()
            yield line
    if process.returncode:
        raise DemoError(f"{' '.join(command[:4])} ended with code {process.returncode}; {log}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-NUM_TAIL_LINES:])


def run_all(plan: Plan, recipe: str) -> list[StageTime]:
    """Both refreshes and the retraining. By the clock the cutoff day is a back-fill: offline only, not published."""
    settings = plan.settings
    log = settings.home / "logs" / f"demo-{time.strftime('%Y%m%dT%H%M%S')}.log"
    say(f"home {settings.home}, log {log}")
    for _ in _output(["airflow", "db", "migrate"], settings, log):
        continue
    times = []
    for day in (plan.cutoff, plan.latest):
        times += run_dag(settings, "daily_refresh", {"day": day}, log)
    conf: dict[str, object] = {"day": plan.latest, "cutoff": plan.cutoff, "recipe": recipe, "force": True}
    return times + run_dag(settings, "retrain", conf, log)


def show_times(times: list[StageTime], total: float) -> None:
    say("--- stage times")
    for each in times:
        took = "skipped" if each.seconds is None else f"{each.seconds:6.1f} s"
        say(f"{each.run:<28} {each.stage:<22} {took:>9}")
    say(f"whole run {total / 60:.1f} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder in the data contract (docs/data.md) to sample")
    parser.add_argument("--cutoff", type=day_argument, help="day the model trains up to")
    parser.add_argument("--recipe", default="sasrec_grasp", help="a name from training/fitting/recipes.py")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        settings = Settings.load().model_copy(update={"task_retries": 0})
        plan = plan_folder(settings, arguments.data) if arguments.data else plan_movielens(settings)
        if arguments.cutoff:
            plan = dataclasses.replace(plan, cutoff=arguments.cutoff)
        if plan.cutoff >= plan.latest:
            raise DemoError(f"the cutoff {plan.cutoff} must lie before the latest day, {plan.latest}")
        # The clock stands at the end of the latest day, so that ages and freshness are real checks.
        plan = dataclasses.replace(plan, settings=plan.settings.model_copy(update={"now": end_of(plan.latest)}))
        times = run_all(plan, arguments.recipe)
        _show(plan)
    except (DemoError, SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    show_times(times, time.monotonic() - started)


def _show(plan: Plan) -> None:
    warnings.filterwarnings("ignore", category=UserWarning, module="feast")
    from serving.showcase.show import show  # torch and Feast, only once there is something to show

    show(plan.settings, plan.cutoff, plan.latest)


if __name__ == "__main__":
    main()
