"""The demo: both DAGs through Airflow on real data, then recommendations a person can judge.

Refreshes two days, a cutoff day whose features the model trains with and the latest day, which is served; then
retrains. Everything runs through `airflow dags test` with the real tasks. A second run skips what did not change.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from cli.dag_run import DagError, StageTime, migrate, new_log, run_dag, show_times
from cli.retrain import DEFAULT_RECIPE
from grasp.days import clock_at_end_of, day_argument, parse_day
from grasp.environment import prepare
from grasp.preflight import require_feature_store, require_java, require_models, require_source
from grasp.progress import say
from grasp.settings import ROOT, Settings, SettingsError
from grasp.versions import digest

# MovieLens-100K ends on 1998-04-22. Of its 943 users, 119 have five interactions up to 1998-02-28 and any after it.
MOVIELENS_CUTOFF, MOVIELENS_LATEST = "1998-02-28", "1998-04-22"


class DemoError(RuntimeError):
    """A step of the demo failed; the message says which and where its log is."""


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
    command = [sys.executable, "-m", "spark_jobs.source.sample", str(folder.resolve()), str(source)]
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
    if settings.llm_max_failure_share == Settings.model_fields["llm_max_failure_share"].default:
        # The small model may get nothing right about a shop's items: facts stand in, and there is much else to see.
        changed["llm_max_failure_share"] = 1.0
    return Plan(settings.model_copy(update=changed), parse_day(days["cutoff"]), parse_day(days["latest"]))


def run_all(plan: Plan, recipe: str) -> list[StageTime]:
    """Both refreshes and the retraining. By the clock the cutoff day is a back-fill: offline only, not published."""
    settings = plan.settings
    log = new_log(settings, "demo")
    say(f"home {settings.home}, log {log}")
    migrate(settings, log)
    times = []
    for day in (plan.cutoff, plan.latest):
        times += run_dag(settings, "daily_refresh", {"day": day}, log)
    conf: dict[str, object] = {"day": plan.latest, "cutoff": plan.cutoff, "recipe": recipe, "force": True}
    return times + run_dag(settings, "retrain", conf, log)


def main() -> None:
    parser = argparse.ArgumentParser(prog="grasp demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder in the data contract (docs/data.md) to sample")
    parser.add_argument("--cutoff", type=day_argument, help="day the model trains up to")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="a name from training/fitting/recipes.py")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        settings = Settings.load().model_copy(update={"task_retries": 0})
        if not arguments.data:
            require_source(settings)
        plan = plan_folder(settings, arguments.data) if arguments.data else plan_movielens(settings)
        if arguments.cutoff:
            plan = dataclasses.replace(plan, cutoff=arguments.cutoff)
        if plan.cutoff >= plan.latest:
            raise DemoError(f"the cutoff {plan.cutoff} must lie before the latest day, {plan.latest}")
        # The clock stands at the end of the latest day, so that ages and freshness are real checks.
        now = clock_at_end_of(plan.latest)
        plan = dataclasses.replace(plan, settings=plan.settings.model_copy(update={"now": now}))
        times = run_all(plan, arguments.recipe)
        _show(plan)
    except (DemoError, DagError, SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    show_times(times, time.monotonic() - started)


def _show(plan: Plan) -> None:
    warnings.filterwarnings("ignore", category=UserWarning, module="feast")
    from cli.showcase import show  # torch and Feast, only once there is something to show

    show(plan.settings, plan.cutoff, plan.latest)


if __name__ == "__main__":
    prepare(require_models, require_feature_store, require_java)
    main()
