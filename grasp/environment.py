"""The environment variables of every process: all settings, and what Spark, Airflow and numeric libraries read.

    python -m grasp.environment pytest

runs a command with them. A wrong setting ends it before the command starts.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from grasp.settings import ROOT, Settings, SettingsError

OFFLINE = {
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "FEAST_USAGE": "False",
}
# `make setup` records here the classes that Spark loads (`requirements/spark_classes.py`).
SPARK_CLASSES = Path(sys.prefix) / "spark-classes.jsa"
IS_SUBMITTED = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit started this driver
_PREPARED = "_PREPARED_PROCESS"  # id of the process that restarted itself; a child has another id


def process_environment(settings: Settings) -> dict[str, str]:
    """Variables for a child process: all settings, and what Spark, Airflow and the numeric libraries read.

    A variable that is already set wins: production keeps its own Airflow, Java and Spark connection. Inside such an
    environment the result is the environment itself.
    """
    airflow_url = f"http://127.0.0.1:{settings.airflow_port}"
    num_cores = len(os.sched_getaffinity(0))
    spark_connection = {
        "conn_type": "spark",
        "host": settings.spark_master,
        "extra": {"spark-binary": "spark-submit", "deploy-mode": "client"},
    }
    defaults = {
        **OFFLINE,
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": "1",
        "AIRFLOW_HOME": str(settings.home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "dags" / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # Each is a process from the start, by default 32. Two are enough for both DAGs, back-fills included.
        "AIRFLOW__CORE__PARALLELISM": str(max(2, min(num_cores, 32))),
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{airflow_url}/execution/",
        "AIRFLOW__API__BASE_URL": airflow_url,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(settings.airflow_port),
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps(spark_connection),
    }
    if settings.spark_master.startswith("local"):  # on a cluster, executors must reach the driver
        defaults["SPARK_LOCAL_IP"] = "127.0.0.1"
    java_home = settings.home / "java"
    if java_home.exists():
        defaults["JAVA_HOME"] = str(java_home)
    present = {name: value for name, value in os.environ.items() if value and name in defaults}
    ours_first = {
        "PATH": _first(str(Path(sys.executable).parent), os.environ.get("PATH", "")),
        "PYTHONPATH": _first(str(ROOT), os.environ.get("PYTHONPATH", "")),
    }
    if not os.environ.get("SPARK_CONF_DIR"):
        ours_first["SPARK_SUBMIT_OPTS"] = _driver_options(os.environ.get("SPARK_SUBMIT_OPTS", ""))
    return {**os.environ, **defaults, **present, **settings.variables(), **ours_first}


def _driver_options(others: str) -> str:
    """Options of Spark's Java machine, the user's `others` last.

    They are not in SPARK_CONF_DIR: Java maps recorded classes only while no folder with files is on its class path.
    """
    conf = ROOT / "spark_jobs" / "conf"
    ours = f'"@{conf}/driver.options" "-Dlog4j2.configurationFile=file:{conf}/log4j2.properties"'
    if SPARK_CLASSES.exists():
        ours += f' "-XX:SharedArchiveFile={SPARK_CLASSES}"'
    return others if ours in others else f"{ours} {others}".strip()


def _first(folder: str, path: str) -> str:
    others = [each for each in path.split(os.pathsep) if each not in ("", folder)]
    return os.pathsep.join([folder, *others])


def prepare(*checks: Callable[[Settings], None]) -> None:
    """Make sure that this process has its environment and what else it needs; the first line of every program.

    Libraries read variables when they are imported. So a program that lacks one restarts itself with all of them, in
    the same process. A driver started by spark-submit keeps its environment. `checks` are those of `grasp.preflight`;
    `--help` skips them. A wrong setting or a failed check ends the program with one line.
    """
    try:
        settings = Settings.load()
        if not {"-h", "--help"}.intersection(sys.argv):
            for check in checks:
                check(settings)
    except SettingsError as error:
        sys.exit(f"error: {error}")
    environment, this_process = process_environment(settings), str(os.getpid())
    is_prepared = os.environ.get(_PREPARED) == this_process or environment == dict(os.environ)
    if not is_prepared and not IS_SUBMITTED:
        environment[_PREPARED] = this_process
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - this very program


def main() -> None:
    try:
        environment = process_environment(Settings.load())
    except SettingsError as error:
        sys.exit(f"error: {error}")
    if len(sys.argv) < 2:
        sys.exit("usage: python -m grasp.environment COMMAND [ARGUMENT ...]")
    try:
        os.execvpe(sys.argv[1], sys.argv[1:], environment)  # noqa: S606 - the command is the user's own
    except FileNotFoundError:
        sys.exit(f"error: no command {sys.argv[1]}")


if __name__ == "__main__":
    main()
