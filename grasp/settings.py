"""Where things are and how much is allowed: one frozen object, read from `GRASP_*` variables.

`Settings.load()` is called once at the start of every command. A wrong or misspelt variable raises `SettingsError` with
the variable's name before any work is done. What a training run *is* lives in `training/fitting/recipes.py`, what a
feature *means* in `grasp/tables.py` and `feature_repo/features.py`.
"""

import difflib
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from grasp.addresses import milvus_address, redis_address, server_url, tracking_store, webhook_address
from grasp.days import HOURS_TO_NEXT_REFRESH

PREFIX = "GRASP_"
ROOT = Path(__file__).resolve().parents[1]

# Variables that are no settings. Make, tests and benchmarks read the first ones. Keys and tokens are read only by the
# process that uses them, so no list of settings can show them.
OUTSIDE_SETTINGS = {
    "GRASP_DATA",
    "GRASP_REQUIRE_ALL",
    "GRASP_PYTHON",
    "GRASP_TORCH_INDEX",
    "GRASP_LLM_API_KEY",
    "GRASP_ENCODER_API_KEY",
    "GRASP_TOKENS_SERVE",
    "GRASP_TOKENS_READ",
    "GRASP_TOKENS_OPERATE",
}

DEFAULT_PARAMETERS = '{"seed": 0, "temperature": 0}'  # greedy, and seeded for servers that break ties at random
_FIXED_PARAMETERS = {"model", "messages", "max_tokens", "max_completion_tokens", "response_format", "stream", "n"}

# Kubernetes sets these in every container when a Service's name begins with `grasp`.
_KUBERNETES_NAME = re.compile(r"GRASP_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_KUBERNETES_PORT = re.compile(r"(tcp|udp|sctp)://")

_PATTERN_CHARACTER = re.compile(r"[*?\[\]{}\\]")


class SettingsError(ValueError):
    """A `GRASP_*` variable is wrong or unknown; the message names it."""


def _complaint(error: Any) -> str:
    """What is wrong with one variable. Shows the value only where it cannot be a secret."""
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:  # of `_fill_places`, which names the variable itself
        return message
    if error["type"].startswith(("datetime", "timezone")):  # pydantic's own words ask for the date that it refuses
        message = "a time with its timezone is needed, such as 1998-04-22T23:59:59Z"
    name = str(error["loc"][0])
    got = f" (got {error['input']!r})" if name not in SECRETS else ""
    return f"{PREFIX}{name.upper()}: {message}{got}"


def _absolute(name: str, path: str | Path) -> Path:
    try:
        absolute = Path(path).expanduser().resolve()
    except (RuntimeError, OSError) as error:  # an unknown ~user, or links in a circle
        raise ValueError(f"{PREFIX}{name.upper()}: {error} (got {str(path)!r})") from None
    if name in ("home", "lake") and _PATTERN_CHARACTER.search(str(absolute)):
        problem = "Spark takes a path with one of *?[]{}\\ for a pattern: name another folder"
        raise ValueError(f"{PREFIX}{name.upper()}: {problem} (got {str(path)!r})")
    return absolute


def _utc(moment: datetime | None) -> datetime | None:
    return moment.astimezone(UTC) if moment else None


def _not_later_than_now(moment: datetime | None, info: ValidationInfo) -> datetime | None:
    if moment and moment > datetime.now(UTC) and not info.data.get("future_days"):
        raise ValueError("later than the wall clock, which only GRASP_FUTURE_DAYS=true allows")
    return moment


def _model_of_server(model: str, info: ValidationInfo) -> str:
    if info.data.get("llm_url") and not model:
        raise ValueError("GRASP_LLM_URL names a server, so say which of its models to ask")
    return model


def _files_of_server(batch_files: bool, info: ValidationInfo) -> bool:
    if batch_files and not info.data.get("llm_url"):
        raise ValueError("batch files are taken by a server: name it in GRASP_LLM_URL")
    return batch_files


def _parameters(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("a JSON object is needed")
    if taken := sorted(_FIXED_PARAMETERS & value.keys()):
        raise ValueError(f"{', '.join(taken)}: set by other settings")
    return json.dumps(value, sort_keys=True)


def _cost_by_prices(max_cost: float, info: ValidationInfo) -> float:
    if max_cost and not (info.data.get("llm_input_price") or info.data.get("llm_output_price")):
        raise ValueError("a cost is counted by GRASP_LLM_INPUT_PRICE and GRASP_LLM_OUTPUT_PRICE, which are both 0")
    return max_cost


def _encoder_of_server(model: str, info: ValidationInfo) -> str:
    if info.data.get("encoder_url") and not model:
        raise ValueError("GRASP_ENCODER_URL names a server, so say which of its models to ask")
    return model


def _names(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


HttpServer = Annotated[str, AfterValidator(server_url)]


class Settings(BaseSettings):
    """All settings. The field `lake` is the variable `GRASP_LAKE`, and so on; descriptions are the help texts."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, env_prefix=PREFIX, env_ignore_empty=True
    )

    home: Path = Field(description="Folder for everything the system writes; `.grasp` in the project when unset.")
    source: Path = Field(description="Folder with interactions, items and optional users (docs/data.md).")
    lake: Path = Field(description="Folder of the day-partitioned parquet tables, seen by every Spark worker.")
    releases: Path = Field(description="Folder of the published releases and the manifest readers follow.")
    data_docs: Path = Field(description="Folder of the quality report (HTML) and of its Great Expectations project.")
    feature_store_yaml: Path = Field(description="Feast's configuration: registry, offline and online store.")
    mlflow_uri: Annotated[SecretStr, AfterValidator(tracking_store)] = Field(
        description="MLflow tracking store, as a database URI or the address of a server."
    )

    future_days: bool = Field(
        False, description="Whether GRASP_NOW may be later than the wall clock; a day published so blocks earlier ones."
    )
    now: Annotated[AwareDatetime | None, AfterValidator(_utc), AfterValidator(_not_later_than_now)] = Field(
        None,
        description="The clock for ages and freshness, such as 1998-04-22T23:59:59Z; the wall clock when unset.",
    )

    llm: Path = Field(description="Folder of the language model: Hugging Face files or one GGUF file.")
    llm_budget: int = Field(
        75, ge=0, description="Most texts of a day, prompt and model; half for items, half for users."
    )
    llm_max_calls: int = Field(0, ge=0, description="Most calls of a day, retries and repairs included; 0: no limit.")
    llm_max_tokens: int = Field(0, ge=0, description="Most tokens of a day, prompts and answers; 0 is no limit.")
    llm_input_price: float = Field(0, ge=0, description="Price of a million tokens of prompts.")
    llm_output_price: float = Field(0, ge=0, description="Price of a million tokens of answers.")
    llm_max_cost: Annotated[float, AfterValidator(_cost_by_prices)] = Field(
        0, ge=0, description="Most a day may cost, half for items, in the currency of the prices; 0: no limit."
    )
    llm_repairs: int = Field(1, ge=0, le=1, description="Further tries of a refused text, told what was wrong.")
    llm_max_failure_share: float = Field(
        0.9, ge=0, le=1, description="Largest share of a day's texts that may fail before the day does."
    )
    llm_park_after: int = Field(
        3, ge=1, description="Equal failures, such as a filter's, after which a text is not asked for again."
    )
    redescribe_growth: float = Field(
        0.2, ge=0, description="Share by which a user's history has to grow before it is described anew."
    )
    llm_batch_size: int = Field(32, ge=1, le=256, description="Prompts generated together in one Spark worker.")
    llm_max_new_tokens: int = Field(48, ge=8, le=512, description="Longest description, in tokens.")
    llm_url: HttpServer = Field(
        "",
        repr=False,
        description="Base URL of an OpenAI-compatible server (ending in /v1); empty runs GRASP_LLM here.",
    )
    llm_model: Annotated[str, AfterValidator(_model_of_server)] = Field(
        "", description="Model asked for at GRASP_LLM_URL, by the exact name that its answers carry, not an alias."
    )
    llm_revision: str = Field(
        "", description="Revision of GRASP_LLM_MODEL; change it when the server's weights change."
    )
    llm_structured: bool = Field(
        False, description="Whether to ask the server for JSON (structured outputs) instead of plain text."
    )
    llm_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="How the server calls the limit of GRASP_LLM_MAX_NEW_TOKENS."
    )
    llm_parameters: Annotated[str, AfterValidator(_parameters)] = Field(
        DEFAULT_PARAMETERS, description="Further parameters of each request to the server, as a JSON object."
    )
    llm_batch_files: Annotated[bool, AfterValidator(_files_of_server)] = Field(
        False, description="Whether to ask GRASP_LLM_URL by batch files: often half the price, an answer within a day."
    )
    llm_batch_patience_hours: float = Field(
        1, ge=0, description="Longest wait of a run for its batches; then a later run reads them."
    )
    llm_concurrency: int = Field(16, ge=1, le=1024, description="Requests to the server at once, in one Spark worker.")
    llm_requests_per_minute: int = Field(0, ge=0, description="Most requests a minute of all workers; 0 is no limit.")
    llm_tokens_per_minute: int = Field(0, ge=0, description="Most tokens a minute of all workers; 0 is no limit.")
    llm_timeout_seconds: float = Field(60, gt=0, description="Longest wait for one whole answer of the server.")
    llm_max_attempts: int = Field(5, ge=1, le=20, description="How often one prompt is sent before it is given up.")
    user_history_holdout: int = Field(
        0, ge=0, description="Latest interactions a user's description must not see; 1 is `train_minus_last`."
    )
    hidden_attributes: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        ("asin", "zip_code", "url", "image"), description="Attributes that never enter a description."
    )
    encoder: Path = Field(description="Folder of the sentence-transformers encoder.")
    encoder_url: HttpServer = Field(
        "",
        repr=False,
        description="Base URL of an OpenAI-compatible embeddings server; empty runs GRASP_ENCODER here.",
    )
    encoder_model: Annotated[str, AfterValidator(_encoder_of_server)] = Field(
        "", description="Model asked for at GRASP_ENCODER_URL, by the exact name that its answers carry."
    )
    encoder_revision: str = Field("", description="Revision of GRASP_ENCODER_MODEL; change it when its weights do.")
    encoder_batch_size: int = Field(64, ge=1, le=1024, description="Texts encoded together in one Spark worker.")

    milvus_uri: Annotated[str, AfterValidator(milvus_address)] = Field(
        description="Milvus server URI, or a folder ending in .db for Milvus-Lite."
    )
    milvus_token: SecretStr = Field(SecretStr(""), description="Token of the Milvus server; empty for Milvus-Lite.")
    neighbour_backend: Literal["exact", "milvus"] = Field(
        "exact", description="Who searches neighbours: exact (FAISS in memory) or milvus."
    )
    num_neighbours: int = Field(10, ge=1, le=1000, description="Neighbours averaged per user and item (k).")

    moments: bool = Field(
        True, description="Whether recent moments of similar users vote for what a user may take next (find_moments)."
    )
    moment_days: int = Field(30, ge=1, le=366, description="Days of moments that vote.")
    moment_active_days: int = Field(90, ge=1, description="Users without an interaction for longer get no votes.")
    moment_sharpness: float = Field(
        20, ge=0, le=80, description="Weight of a vote: exp(sharpness * similarity); 0 counts all moments alike."
    )
    moment_text_share: float = Field(
        0.7, ge=0, le=1, description="Share of the items' texts in the similarity of two moments; the rest are ids."
    )
    moment_min_voters: int = Field(3, ge=1, description="Fewest users whose moments must vote for an item.")
    moment_exact_up_to: int = Field(
        200_000, ge=1, description="Moments up to which all are compared; above it, Milvus proposes the nearest."
    )

    late_days: int = Field(7, ge=0, description="How many days an event may arrive late and still be ingested.")
    min_day_interactions: int = Field(
        1, ge=0, description="Fewest interactions of a day for it to be published; 0 allows an empty day."
    )
    max_quarantine_share: float = Field(
        0.05, ge=0, le=1, description="Largest share of source rows that may be quarantined before the day fails."
    )
    max_vanished_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of a day's interactions, of the items or of users' facts that a source may lack "
        "although they were ingested. Of several, one may always be missing. 1 confirms that they were deleted.",
    )
    max_fallback_share: float = Field(
        1.0, ge=0, le=1, description="Largest share of descriptions built from facts before the gate stops the day."
    )
    max_feature_age_hours: float = Field(
        48,
        gt=0,
        description="Features count as stale this long after the refresh that replaces them was due (02:00 UTC).",
    )
    evaluation_days: int = Field(7, ge=1, description="Days between a training cutoff and the day it is judged on.")
    retrain_every_days: int = Field(7, ge=1, description="The model is retrained when it is this old.")

    task_retries: int = Field(2, ge=0, description="How often Airflow tries a failed task again, minutes apart.")
    task_timeout_hours: float = Field(
        12,
        gt=0,
        description="Longest run of a job before Airflow ends it; batch files get their patience on top.",
    )
    refresh_deadline_hours: float = Field(
        10, gt=0, description="A scheduled refresh that takes longer than this is late: one alert, the run goes on."
    )
    alert_webhook: Annotated[SecretStr, AfterValidator(webhook_address)] = Field(
        SecretStr(""), description="URL that gets a POST when a DAG run fails or a refresh is late; empty: no alerts."
    )
    spark_master: str = Field(
        "local[2,4]",
        description="Spark master of the embedded connection `spark_default`: two workers, a task is tried four times.",
    )
    spark_memory: str = Field("3g", pattern=r"^\d+[mg]$", description="Memory of a Spark driver.")
    num_threads: int = Field(2, ge=1, description="Threads of training; serving and Spark workers use one each.")

    host: str = Field("127.0.0.1", description="Address the HTTP server binds to.")
    port: int = Field(8100, ge=1, le=65535, description="Port of the HTTP server.")
    airflow_port: int = Field(8180, ge=1, le=65535, description="Port of the Airflow UI (make airflow).")
    serving_workers: int = Field(1, ge=1, le=256, description="Processes of the HTTP server, each with a release.")
    lookup_timeout_ms: float = Field(200, gt=0, description="A slower feature lookup gives a named fallback.")
    last_good_users: int = Field(
        1000, ge=0, description="Users whose last row each worker keeps for when the online store fails; 15 kB each."
    )
    index_from_items: int = Field(
        200_000,
        ge=100,
        description="Items from which a catalogue is searched by an index instead of scored as a whole.",
    )
    online_moments: bool = Field(
        True,
        description="Whether requests are compared with the moments of the release, for votes that know the visit.",
    )
    search: bool = Field(True, description="Whether the HTTP server answers searches, which takes the encoder.")
    search_timeout_ms: float = Field(
        500, gt=0, description="A search that Milvus does not answer in this time is done in memory."
    )
    search_min_similarity: float = Field(
        0.4, ge=-1, le=1, description="A search whose best cosine is below this found nothing close; fits the encoder."
    )
    log_requests: bool = Field(True, description="Whether served requests and outcomes are kept in the lake.")
    redis: Annotated[SecretStr, AfterValidator(redis_address)] = Field(
        SecretStr("localhost:6379"),
        description="Redis of the production feature store: redis://user:password@host:port/db, "
        "or host:port[,name=value...].",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_places(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Everything that is written lies under `home` unless it is told otherwise."""
        home = _absolute("home", given.get("home") or ROOT / ".grasp")
        places = {
            "source": home / "source" / "movielens-100k",
            "lake": home / "lake",
            "releases": home / "releases",
            "data_docs": home / "data_docs",
            "feature_store_yaml": ROOT / "feature_repo" / "feature_store.embedded.yaml",
            "mlflow_uri": f"sqlite:///{home}/mlflow.db",
            "llm": home / "models" / "smollm2-135m-instruct",
            "encoder": home / "models" / "all-minilm-l6-v2",
            "milvus_uri": f"{home}/milvus.db",
        }
        resolved = {
            name: _absolute(name, value) if isinstance(places.get(name), Path) else value
            for name, value in given.items()
        }
        if isinstance(uri := given.get("milvus_uri"), str) and "://" not in uri:
            resolved["milvus_uri"] = str(_absolute("milvus_uri", uri))
        return places | resolved | {"home": home}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`Settings(...)` uses its arguments alone. Only `load` reads variables."""
        return (init_settings,)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read and validate every `GRASP_*` variable; raises `SettingsError` that names the wrong ones."""
        variables = _own_variables(os.environ if environ is None else environ)
        for variable in variables:
            name = variable.removeprefix(PREFIX).lower()
            if name not in cls.model_fields:
                near = difflib.get_close_matches(name, cls.model_fields, n=1)
                hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
                raise SettingsError(f"{variable} is not a setting{hint}")
        try:
            return cls(**_Variables(cls, variables)())
        except ValidationError as error:
            raise SettingsError("; ".join(map(_complaint, error.errors()))) from None

    def clock(self) -> datetime:
        """The one clock (UTC): `GRASP_NOW` when set, else the wall clock."""
        return self.now or datetime.now(UTC)

    @property
    def stale_after_hours(self) -> float:
        """The age, from the end of their day, above which features are stale."""
        return HOURS_TO_NEXT_REFRESH + self.max_feature_age_hours

    def stale_message(self, day: str, age_hours: float) -> str:
        return (
            f"features of {day} are {age_hours:.0f} h old: stale, {self.stale_after_hours:g} h is the limit "
            f"(GRASP_MAX_FEATURE_AGE_HOURS={self.max_feature_age_hours:g} after their next refresh was due)"
        )

    def variables(self) -> dict[str, str]:
        """The same settings as `GRASP_*` variables, complete, for child processes and `feature_store.yaml`.

        Secrets are in them: they are for environments, never for a person's eyes.
        """
        return {PREFIX + name.upper(): _as_variable(getattr(self, name)) for name in type(self).model_fields}


SECRETS = frozenset({"mlflow_uri", "milvus_token", "milvus_uri", "redis", "llm_url", "encoder_url", "alert_webhook"})


class _Variables(EnvSettingsSource):
    """Reads given variables instead of those of the process."""

    def __init__(self, settings_cls: type[BaseSettings], variables: Mapping[str, str]) -> None:
        self._variables = variables
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._variables.items()}


def _own_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are meant as settings: not empty, and not set by Kubernetes."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(PREFIX)
        and name not in OUTSIDE_SETTINGS
        and value
        and not _KUBERNETES_NAME.fullmatch(name)
        and not (name.endswith("_PORT") and _KUBERNETES_PORT.match(value))
    }


def _as_variable(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return "" if value is None else str(value)
