"""Run a command with the settings handed to the tools that read variables of their own.

    python -m grasp.environment airflow standalone
    python -m grasp.environment feast -c feature_repo feature-views list

Settings are validated first; a wrong one ends here, by name, before anything starts.
"""

import json
import os
import sys
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


def process_environment(settings: Settings) -> dict[str, str]:
    """Variables for child processes: all settings, and what Spark, Airflow and the numeric libraries want to know.

    A variable that is set already wins, so that production keeps its own Airflow, Java and Spark connection.
    """
    python_folder = Path(sys.executable).parent
    airflow_url = f"http://127.0.0.1:{settings.airflow_port}"
    spark_connection = {
        "conn_type": "spark",
        "host": settings.spark_master,
        "extra": {"spark-binary": "spark-submit", "deploy-mode": "client"},
    }
    defaults = {
        **OFFLINE,
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_CONF_DIR": str(ROOT / "spark_jobs" / "conf"),
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": "1",
        "AIRFLOW_HOME": str(settings.home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{airflow_url}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(settings.airflow_port),
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps(spark_connection),
    }
    if settings.spark_master.startswith("local"):  # a cluster's executors must reach the driver
        defaults["SPARK_LOCAL_IP"] = "127.0.0.1"
    present = {name: value for name, value in os.environ.items() if value and name in defaults}
    java_home = settings.home / "java"
    if "JAVA_HOME" not in os.environ and java_home.exists():
        defaults["JAVA_HOME"] = str(java_home)
    ours_first = {
        "PATH": os.pathsep.join([str(python_folder), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return {**os.environ, **defaults, **present, **settings.variables(), **ours_first}


def main() -> None:
    try:
        environment = process_environment(Settings.load())
    except SettingsError as error:
        sys.exit(f"error: {error}")
    if len(sys.argv) < 2:
        sys.exit("usage: python -m grasp.environment COMMAND [ARGUMENT ...]")
    os.execvpe(sys.argv[1], sys.argv[1:], environment)  # noqa: S606 - the command is the user's own


if __name__ == "__main__":
    main()
