"""The two kinds of task in every DAG: a Spark job, and one of our modules in its own process.

Both log what they do, skip when their stage's inputs did not change, name their day, and end their process when they
are killed.
"""

import subprocess
import sys
import time
from collections import deque
from datetime import timedelta
from functools import partial
from typing import Any

from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import Asset, BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from grasp import stages
from grasp.environment import process_environment
from grasp.preflight import Check, of_stage, require
from grasp.processes import end_with_parent
from grasp.progress import say
from grasp.settings import ROOT, Settings, SettingsError

# What `daily_refresh` announces and `retrain` listens to.
RELEASE = Asset("grasp_release", uri="grasp://release", group="grasp")
NUM_TAIL_LINES = 15  # of a failed process, repeated in the task's error
SETTINGS = Settings.load()
# For every task. Those that start a process, and may take hours, have their own limit.
DEFAULTS = {
    "retries": SETTINGS.task_retries,
    "retry_delay": timedelta(minutes=5),
    "execution_timeout": timedelta(minutes=10),
}


def time_limit(stage: str | None) -> timedelta:
    """Longest run of a task that starts a process. Batch files are waited for, and that is no fault."""
    waits = SETTINGS.llm_batch_files and stage in ("describe_items", "describe_users")
    return timedelta(hours=SETTINGS.task_timeout_hours + (SETTINGS.llm_batch_patience_hours if waits else 0))


def skip_if_current(stage: str, day: str, force: str) -> None:
    """End the task as skipped if the stage already ran with the same inputs."""
    if force != "True" and stages.is_current(Settings.load(), stage, day):
        say(f"{stage} {day}: inputs unchanged, skipped")
        raise AirflowSkipException(f"{stage} {day}: inputs unchanged")


def require_ready(*checks: Check) -> None:
    """Fail at once, with one line and without further tries, where a setting or what it names is wrong."""
    try:
        require(Settings.load(), *checks)
    except SettingsError as error:
        say(f"failed: {error}")
        raise AirflowFailException(str(error)) from None


class SparkJob(SparkSubmitOperator):
    """spark-submit of `spark_jobs/<name>.py --day <day>` through the connection `spark_default`."""

    template_fields = (*SparkSubmitOperator.template_fields, "day", "force")

    def __init__(self, *, job: str, day: str, force: str, **kwargs: Any) -> None:
        super().__init__(
            task_id=job,
            name=f"grasp.{job}",
            application=str(ROOT / "spark_jobs" / f"{job}.py"),
            application_args=["--day", day],
            conn_id="spark_default",
            driver_memory=SETTINGS.spark_memory,
            env_vars={"PYTHONPATH": str(ROOT)},
            conf={"spark.speculation": "false"},  # a second copy of a task would pay for the same texts again
            execution_timeout=time_limit(job),
            trigger_rule="none_failed",  # a skipped stage counts like one that ran
            **kwargs,
        )
        self.job = job
        self.day = day
        self.force = force

    def execute(self, context: Any) -> None:
        require_ready(*of_stage(self.job))
        skip_if_current(self.job, self.day, self.force)
        # Without a connection the hook would silently use YARN. This lookup raises a clear error first.
        BaseHook.get_connection("spark_default")
        started = time.monotonic()
        super().execute(context)
        say(f"stage {self.job} {self.day} took {time.monotonic() - started:.1f} s")

    def _get_hook(self) -> SparkSubmitHook:
        """The hook, with spark-submit bound to this process: when a task is killed, its Spark job ends too."""
        hook = super()._get_hook()
        hook.submit = partial(hook.submit, preexec_fn=end_with_parent)
        return hook


class ModuleTask(BaseOperator):
    """`python -m <module> <arguments>` in its own process, with its output in the task's log.

    `stage` names the stage that may be skipped. A module without a stage decides for itself.
    """

    template_fields = ("arguments", "day", "force")

    def __init__(
        self,
        *,
        module: str,
        arguments: list[str],
        day: str,
        force: str = "False",
        stage: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(trigger_rule="none_failed", execution_timeout=time_limit(stage), **kwargs)
        self.module = module
        self.arguments = arguments
        self.day = day
        self.force = force
        self.stage = stage
        self.process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> None:
        if self.stage:
            require_ready(*of_stage(self.stage))
            skip_if_current(self.stage, self.day, self.force)
        started = time.monotonic()
        self.run_module()
        say(f"stage {self.task_id} {self.day} took {time.monotonic() - started:.1f} s")

    def run_module(self) -> None:
        """Run the module and show its output line by line; raises `AirflowException` with its last lines on failure."""
        tail: deque[str] = deque(maxlen=NUM_TAIL_LINES)
        with start_module(self.module, *self.arguments) as self.process:
            try:
                for line in self.process.stdout or ():
                    print(line, end="", flush=True)  # noqa: T201 - this is the task's log
                    tail.append(line)
            except BaseException:  # the task's time is over: leaving the block waits for the process
                self.process.terminate()
                raise
        if self.process.returncode:
            raise AirflowException(f"{self.module} failed with exit code {self.process.returncode}:\n{''.join(tail)}")

    def on_kill(self) -> None:
        if self.process:
            self.process.terminate()


def start_module(module: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=process_environment(Settings.load()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, no lock
    )
