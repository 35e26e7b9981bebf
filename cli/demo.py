"""The demo: both DAGs through Airflow on real data, then recommendations a person can judge.

Refreshes two days, a cutoff day whose features the model trains with and the latest day, which is served; then
retrains. Everything runs through `airflow dags test` with the real tasks. Then visitors of the demo's own ask the
service (`cli/visitors.py`), so that the tables of requests and outcomes hold something. A second run skips what did not
change.
"""

import argparse
import dataclasses
import gzip
import json
import re
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from cli.dag_run import DagError, migrate, new_log, run_dag
from cli.retrain import DEFAULT_RECIPE
from cli.stage_lines import StageLines
from grasp.days import day_argument, last_second, parse_day, start_of
from grasp.environment import prepare
from grasp.preflight import require_feature_store, require_java, require_models, require_source
from grasp.progress import say
from grasp.settings import ROOT, Settings, SettingsError
from grasp.versions import digest

# MovieLens-100K ends on 1998-04-22. Of its 943 users, 119 have five interactions up to 1998-02-28 and any after it.
MOVIELENS_CUTOFF, MOVIELENS_LATEST = "1998-02-28", "1998-04-22"
# MovieLens has no damaged rows. These are added, one for each of the usual reasons, so that the quarantine shows some.
DAMAGED_USER = "demo-damaged"
_NOON = int(start_of(MOVIELENS_LATEST).timestamp()) + 12 * 3600
DAMAGED_ROWS = (
    f"{DAMAGED_USER}\tno such item\t{_NOON}\t900001",
    f"{DAMAGED_USER}\t\t{_NOON}\t900002",
    f"{DAMAGED_USER}\t1\tyesterday\t900003",
    f"{DAMAGED_USER}\t1\t{_NOON + 10**9}\t900004",
    f"{DAMAGED_USER} and half a row",
)


class DemoError(RuntimeError):
    """A step of the demo failed; the message says which and where its log is."""


@dataclass(frozen=True)
class Plan:
    """What the demo works on."""

    settings: Settings
    cutoff: str
    latest: str


def plan_movielens(settings: Settings) -> Plan:
    """MovieLens-100K and a few damaged rows. A source that was configured is taken as it is."""
    if settings.source == Settings.load({"GRASP_HOME": str(settings.home)}).source:
        copy = settings.home / "demos" / settings.source.name
        add_damaged_rows(settings.source, copy)
        settings = settings.model_copy(update={"source": copy})
    return Plan(settings, MOVIELENS_CUTOFF, MOVIELENS_LATEST)


def add_damaged_rows(source: Path, copy: Path) -> None:
    """Copy a source folder, with `DAMAGED_ROWS` at the end of its interactions. An equal file is left alone."""
    copy.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        content, target = file.read_bytes(), copy / file.name
        if file.name == "interactions.tsv.gz":
            rows = "".join(f"{row}\n" for row in DAMAGED_ROWS)
            content = gzip.compress(gzip.decompress(content) + rows.encode(), mtime=0)
        if not target.exists() or target.read_bytes() != content:
            target.write_bytes(content)


def plan_folder(settings: Settings, folder: Path) -> Plan:
    """Sample the folder into a home of its own, so that two data sets never meet in one lake."""
    name = re.sub(r"[^\w.-]+", "_", folder.resolve().name)  # Spark takes brackets and stars in a path for a pattern
    home = settings.home / "demos" / f"{name}-{digest(str(folder.resolve()))[:6]}"
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
    fetched_java, java = settings.home / "java", home / "java"
    if fetched_java.exists() and not java.exists():  # commands that name this home look for Java in it
        java.symlink_to(fetched_java)
    return Plan(settings.model_copy(update=changed), parse_day(days["cutoff"]), parse_day(days["latest"]))


def run_all(plan: Plan, recipe: str) -> None:
    """Both refreshes and the retraining. By the clock the cutoff day is a back-fill: offline only, not published."""
    settings = plan.settings
    log = new_log(settings, "demo")
    say(f"home {settings.home}, log {log}")
    say("a line for each stage when it is done; describing, embedding and training take a minute or more each")
    migrate(settings, log)
    for day in (plan.cutoff, plan.latest):
        run_dag(settings, "daily_refresh", {"day": day}, log, StageLines("daily_refresh"))
    conf: dict[str, object] = {"day": plan.latest, "cutoff": plan.cutoff, "recipe": recipe, "force": True}
    run_dag(settings, "retrain", conf, log, StageLines("retrain"))


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
        now = last_second(plan.latest)
        plan = dataclasses.replace(plan, settings=plan.settings.model_copy(update={"now": now}))
        run_all(plan, arguments.recipe)
        _show(plan, settings.home)
    except (DemoError, DagError, SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    say(f"the demo took {(time.monotonic() - started) / 60:.1f} minutes")


def _show(plan: Plan, home: Path) -> None:
    """Let visitors ask, and show what there is now; `home` is where `make` looks for the demo's settings."""
    warnings.filterwarnings("ignore", category=UserWarning, module="feast")
    from cli.showcase import show  # torch and Feast, only once there is something to show
    from cli.summary import summarise
    from cli.visitors import visit

    say("--- visitors of the demo's own ask the service")
    visit(plan.settings, plan.latest)
    user_id = show(plan.settings, plan.latest)
    summarise(plan.settings, plan.cutoff, plan.latest, user_id, home)


if __name__ == "__main__":
    prepare(require_models, require_feature_store, require_java)
    main()
