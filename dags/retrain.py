"""Train a ranker on published features, judge it, and release it if it is better beyond noise.

Starts when `daily_refresh` announces a release, and takes the day from that event. Skips unless the last retraining is
`GRASP_RETRAIN_EVERY_DAYS` old.

* `day`: last day of the interactions that the model is judged on. Its features are served.
* `cutoff`: the day whose features the model trains with (default: `GRASP_EVALUATION_DAYS` before `day`).
* `recipe`: a name from `training/fitting/recipes.py`.
* `force`: train although the last retraining is recent.

A model that does not beat popularity and the current model is not published. The run still succeeds.
"""

from typing import Any

import pendulum
from airflow.sdk import Param, chain, dag, task
from airflow.sdk.exceptions import AirflowFailException

from dags.alerts import run_failed
from dags.runs import day_of_run
from dags.tasks import DEFAULTS, RELEASE, ModuleTask
from grasp import partitions, tables
from grasp.days import parse_day, plus_days
from grasp.manifest import PUBLISHED_FILE
from grasp.progress import say
from grasp.settings import Settings
from grasp.versions import Versions

SETTINGS = Settings.load()


def choose_day(dag_run: Any) -> str:
    """The day to judge on. Without one, trying again is of no use: the task fails at once, with one line."""
    try:
        return day_of_run(dag_run)
    except ValueError as error:
        say(f"retrain: failed: {error}")
        raise AirflowFailException(str(error)) from None


def last_retraining(settings: Settings, until: str) -> str | None:
    """The latest day, up to `until`, whose retraining ended: the model was published or refused."""
    finished = (path.parent.name for path in (settings.home / "training").glob(f"*/{PUBLISHED_FILE}"))
    return max((day for day in finished if day <= until), default=None)


def is_due(settings: Settings, day: str) -> bool:
    last = last_retraining(settings, until=day)
    return last is None or plus_days(last, settings.retrain_every_days) <= day


def choose_cutoff(settings: Settings, cutoff: str | None, day: str) -> str | None:
    """The parameter, else the day `evaluation_days` before `day`; None while that day has no features."""
    if cutoff:
        return parse_day(cutoff)
    usual = plus_days(day, -settings.evaluation_days)
    known = partitions.days(settings.lake, tables.USER_FEATURES, Versions(settings).feature)
    return usual if usual in known else None


@dag(
    schedule=[RELEASE],
    start_date=pendulum.datetime(1998, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    on_failure_callback=run_failed,
    params={
        "day": Param(None, type=["null", "string"], format="date", description="UTC day, YYYY-MM-DD"),
        "cutoff": Param(None, type=["null", "string"], format="date", description="training cutoff, YYYY-MM-DD"),
        "recipe": Param(
            "sasrec_grasp", type="string", pattern="^[a-z0-9_]+$", description="training/fitting/recipes.py"
        ),
        "force": Param(False, type="boolean", description="Train although a retraining is recent"),
    },
    doc_md=__doc__,
    tags=["grasp"],
)
def retrain() -> None:
    @task.short_circuit(ignore_downstream_trigger_rules=True)
    def plan(**context: Any) -> dict[str, str] | None:
        params = context["params"]
        day = choose_day(context["dag_run"])
        if not params["force"] and not is_due(SETTINGS, day):
            say(f"retrain {day}: skipped, the last retraining of {last_retraining(SETTINGS, day)} is recent")
            return None
        cutoff = choose_cutoff(SETTINGS, params["cutoff"], day)
        if cutoff is None:
            say(f"retrain {day}: skipped, no features for the day {SETTINGS.evaluation_days} days before")
            return None
        return {"day": day, "cutoff": cutoff}

    day = "{{ ti.xcom_pull(task_ids='plan')['day'] }}"
    dates = ["--day", day, "--cutoff", "{{ ti.xcom_pull(task_ids='plan')['cutoff'] }}"]
    decision = f"{SETTINGS.home}/training/{day}/decision.json"

    def module(name: str, task_id: str, arguments: list[str]) -> ModuleTask:
        return ModuleTask(module=name, task_id=task_id, arguments=arguments, day=day)

    chain(
        plan(),
        module("training.build_training_set", "build_training_set", dates),
        module("feature_repo.quality", "check_training_set", ["--day", day, "--suite", "training"]),
        module("training.train", "train", [*dates, "--recipe", "{{ params.recipe }}"]),
        module("training.promote", "promote", dates),
        module("serving.releases.manage", "publish", ["publish", "--day", day, "--decision", decision]),
    )


retrain()
