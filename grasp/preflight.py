"""Quick checks before Spark, Airflow or a release is loaded. Each failure is one line that names the setting."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from grasp.environment import process_environment
from grasp.feature_store import configuration
from grasp.settings import Settings, SettingsError
from grasp.stages import STAGES

NUM_WAITING_CONNECTIONS = 2048  # not accepted yet, for example while a release is loaded
Check = Callable[[Settings], None]  # raises `SettingsError` with one line that says what to do


def require_source(settings: Settings) -> None:
    """The source folder holds interactions and items, in any format."""
    folder = settings.source
    if not folder.is_dir():
        raise SettingsError(f"GRASP_SOURCE: {folder} is not a folder; `grasp fetch` fetches the demo's (docs/data.md)")
    for table in ("interactions", "items"):
        if not any(folder.glob(f"{table}.*")):
            there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise SettingsError(f"GRASP_SOURCE: {folder} holds no {table}.*; it holds {there} (docs/data.md)")


def require_models(settings: Settings) -> None:
    """The folders of language model and encoder hold models. A model on a server needs no folder.

    Both name the versions of embeddings and features, so nearly every command needs both.
    """
    if not settings.llm_url:
        _require_model("GRASP_LLM", settings.llm, "config.json", "*.gguf")
    if not settings.encoder_url:
        _require_model("GRASP_ENCODER", settings.encoder, "modules.json", "config.json")


def _require_model(setting: str, folder: Path, *patterns: str) -> None:
    if folder.is_file():
        raise SettingsError(f"{setting}: {folder} is a file; name the folder that holds it")
    if not any(any(folder.glob(pattern)) for pattern in patterns):
        needed = " or ".join(patterns)
        raise SettingsError(f"{setting}: {folder} holds no model ({needed}); `grasp fetch` fetches the default ones")


def require_feature_store(settings: Settings) -> None:
    """Feast's configuration exists, and every variable it uses is set."""
    try:
        configuration(settings)
    except (FileNotFoundError, ValueError) as error:
        raise SettingsError(str(error)) from None


def require_java(settings: Settings) -> None:
    environment = process_environment(settings)
    home = environment.get("JAVA_HOME")
    java = Path(home, "bin", "java") if home else shutil.which("java", path=environment["PATH"])
    if not java or not os.access(java, os.X_OK):
        where = f"JAVA_HOME: {home} holds no bin/java" if home else "no java on the PATH and JAVA_HOME is not set"
        raise SettingsError(f"{where}; Spark needs Java 17 or 21: `make setup` fetches one")


def require_port(settings: Settings) -> None:
    """The port of the HTTP server is free."""
    _require_free("GRASP_PORT", settings.host, settings.port)


def require_airflow_port(settings: Settings) -> None:
    """The port of the Airflow UI is free."""
    environment = process_environment(settings)
    _require_free("GRASP_AIRFLOW_PORT", environment["AIRFLOW__API__HOST"], environment["AIRFLOW__API__PORT"])


def _require_free(setting: str, host: str, port: int | str) -> None:
    listen(setting, host, port).close()


def listen(setting: str, host: str, port: int | str) -> socket.socket:
    """A socket that listens at the address, so that no other process can. Raises `SettingsError` if one does."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was used a moment ago is free
            listening.bind(address)
            listening.listen(NUM_WAITING_CONNECTIONS)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise SettingsError(f"{setting}: {host}:{port} cannot be used: {error.strerror or error}") from None
    return listening


REFRESH: tuple[Check, ...] = (require_source, require_models, require_feature_store, require_java)


def of_stage(name: str) -> tuple[Check, ...]:
    """The checks of one job of the daily refresh."""
    stage = STAGES[name]
    source = (require_source,) if stage.reads_source else ()
    models = (require_models,) if stage.uses else ()
    return (*source, *models)


def require(settings: Settings, *checks: Check) -> None:
    """Raises `SettingsError` of the first check that fails."""
    for check in checks:
        check(settings)
