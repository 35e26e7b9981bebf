"""Stages of the daily refresh: what each reads and writes, and whether its inputs changed since it last ran.

A finished stage leaves a stamp for its day: a fingerprint of its code, its settings and the content hashes of its input
tables, plus the hashes of what it wrote. While the stamp holds, the DAG skips the stage before Spark starts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from grasp import partitions, tables
from grasp.files import files_below, write_json
from grasp.settings import ROOT, Settings
from grasp.tables import Table
from grasp.versions import Versions, digest, file_sha256


@dataclass(frozen=True)
class Stage:
    """One step of a day. `settings` names the settings that change its result, apart from the versions.

    The clock is not one of them. By it `ingest` refuses events that lie in the future, all of them after the day, and
    `check_quality` warns of old features. The same day run later may judge these differently; a stage that is done is
    not run again for it.
    """

    name: str
    code: str  # folder whose source files are part of the fingerprint
    reads: tuple[Table, ...]
    writes: tuple[Table, ...]
    settings: tuple[str, ...] = ()
    reads_source: bool = False
    uses: tuple[str, ...] = ()  # versions it depends on: prompt, llm, embedding, feature


_ITEM_STATE = (tables.ITEMS,)
_USER_STATE = (tables.ITEMS, tables.USERS, tables.INTERACTIONS)
# What a run may spend. After a cap is raised, the next run of the day uses it.
_GENERATION = ("llm_budget", "llm_max_calls", "llm_max_tokens", "llm_max_cost", "llm_repairs", "llm_park_after")

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "ingest",
            "spark_jobs",
            reads=(),
            writes=(tables.INTERACTIONS, tables.ITEMS, tables.WITHDRAWN_ITEMS, tables.USERS, tables.QUARANTINE),
            settings=("source", "late_days", "max_quarantine_share", "max_vanished_share"),
            reads_source=True,
        ),
        Stage(
            "describe_items",
            "spark_jobs",
            # The ledger is not an input: paid answers never change the facts that a text is built from.
            # `generation_metrics` is not an output: items and users both write it, each would undo the other's stamp.
            reads=(tables.ITEMS, tables.WITHDRAWN_ITEMS, tables.INTERACTIONS),
            writes=(tables.ITEM_DESCRIPTION,),
            settings=(*_GENERATION, "llm_max_new_tokens", "hidden_attributes"),
            uses=("llm", "prompt"),
        ),
        Stage(
            "describe_users",
            "spark_jobs",
            reads=_USER_STATE,
            writes=(tables.USER_DESCRIPTION,),
            settings=(
                *_GENERATION,
                "llm_max_new_tokens",
                "hidden_attributes",
                "user_history_holdout",
                "redescribe_growth",
            ),
            uses=("llm", "prompt"),
        ),
        Stage(
            "embed_descriptions",
            "spark_jobs",
            reads=(tables.ITEM_DESCRIPTION, tables.USER_DESCRIPTION),
            writes=(tables.ITEM_EMBEDDING, tables.USER_EMBEDDING),
            settings=("milvus_uri",),
            uses=("embedding",),
        ),
        Stage(
            "find_neighbours",
            "spark_jobs",
            reads=(tables.ITEM_EMBEDDING, tables.USER_EMBEDDING),
            writes=(tables.ITEM_NEIGHBOURS, tables.USER_NEIGHBOURS),
            settings=("num_neighbours", "neighbour_backend"),
            uses=("feature",),
        ),
        Stage(
            "aggregate_neighbours",
            "spark_jobs",
            reads=(tables.ITEM_NEIGHBOURS, tables.USER_NEIGHBOURS, tables.ITEM_EMBEDDING, tables.USER_EMBEDDING),
            writes=(tables.ITEM_NEIGHBOUR_FEATURES, tables.USER_NEIGHBOUR_FEATURES),
            uses=("feature",),
        ),
        Stage(
            "find_moments",
            "spark_jobs",
            # The state of user_features before the window is not an input: it says what the interactions say.
            reads=(tables.INTERACTIONS, tables.ITEM_EMBEDDING),
            # `moments` is not an output: later days remove its old days, which would undo the stamps of earlier ones.
            writes=(tables.USER_NEIGHBOUR_ITEMS,),
            settings=("late_days", "milvus_uri", "moment_exact_up_to"),
            uses=("feature",),  # with every setting that says who asks, who votes and how
        ),
        Stage(
            "build_features",
            "spark_jobs",
            reads=(
                tables.INTERACTIONS,
                tables.ITEMS,
                tables.USERS,
                tables.ITEM_DESCRIPTION,
                tables.USER_DESCRIPTION,
                tables.ITEM_EMBEDDING,
                tables.USER_EMBEDDING,
                tables.ITEM_NEIGHBOUR_FEATURES,
                tables.USER_NEIGHBOUR_FEATURES,
                tables.USER_NEIGHBOUR_ITEMS,  # not there where moments are off
            ),
            writes=(tables.ITEM_FEATURES, tables.USER_FEATURES),
            # Earlier item features are not listed: a day first seen changes only with the interactions.
            settings=("moments",),
            uses=("feature",),
        ),
        Stage(
            "check_quality",
            "feature_repo",
            reads=(
                *_USER_STATE,
                tables.GENERATION_METRICS,
                tables.ITEM_DESCRIPTION,
                tables.USER_DESCRIPTION,
                tables.ITEM_EMBEDDING,
                tables.USER_EMBEDDING,
                tables.ITEM_FEATURES,
                tables.USER_FEATURES,
            ),
            writes=(),
            settings=("min_day_interactions", "max_fallback_share", "max_feature_age_hours"),
            uses=("feature",),
        ),
    )
}


@cache
def _code_hash(folder: str) -> str:
    files = sorted(
        [*(ROOT / folder).glob("**/*.py"), *(ROOT / folder).glob("**/*.txt"), *(ROOT / "grasp").glob("*.py")]
    )
    return digest({str(path.relative_to(ROOT)): file_sha256(path) for path in files})


def _source_state(source: Path) -> list[list[object]]:
    """Path, size and change time of every source file: a cheap sign of new data."""
    files = sorted(path for path in files_below(source) if path.is_file()) if source.is_dir() else []
    return [[str(path.relative_to(source)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _hashes(
    settings: Settings, versions: Versions, stage_tables: Sequence[Table], day: str
) -> dict[str, dict[str, str]]:
    return {
        table.name: partitions.state_hashes(settings.lake, table, versions.of(table.versioned_by), day)
        for table in stage_tables
    }


def fingerprint(settings: Settings, name: str, day: str) -> str:
    """sha256 over everything that the stage's result of that day depends on."""
    stage, versions = STAGES[name], Versions(settings)
    variables = settings.variables()
    return digest(
        {
            "stage": name,
            "day": day,
            "code": _code_hash(stage.code),
            "settings": {key: variables[f"GRASP_{key.upper()}"] for key in stage.settings},
            "versions": [_version(versions, key) for key in stage.uses],
            "source": _source_state(settings.source) if stage.reads_source else [],
            "inputs": _hashes(settings, versions, stage.reads, day),
        }
    )


def _version(versions: Versions, name: str) -> str | None:
    if name == "prompt":
        return digest([versions.prompt("item"), versions.prompt("user")])
    return versions.llm if name == "llm" else versions.of(name)


def _stamp_file(settings: Settings, name: str, day: str) -> Path:
    return settings.home / "stages" / name / f"{day}.json"


def is_current(settings: Settings, name: str, day: str) -> bool:
    """True if the stage ran for this day with these inputs and its output is still there."""
    file = _stamp_file(settings, name, day)
    if not file.exists():
        return False
    try:
        stamp = json.loads(file.read_text())
    except json.JSONDecodeError:  # damaged: the stage runs again and writes a new stamp
        return False
    written = _hashes(settings, Versions(settings), STAGES[name].writes, day)
    return stamp == {"fingerprint": fingerprint(settings, name, day), "outputs": written} and all(
        written[table.name] for table in STAGES[name].writes
    )


def stamp(settings: Settings, name: str, day: str, before: str) -> None:
    """Record that the stage finished. `before` is its fingerprint taken before it read anything."""
    outputs = _hashes(settings, Versions(settings), STAGES[name].writes, day)
    write_json(_stamp_file(settings, name, day), {"fingerprint": before, "outputs": outputs})
