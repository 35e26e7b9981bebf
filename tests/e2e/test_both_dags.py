"""Both DAGs through Airflow on a small slice of real data: every store is right, and a second run changes nothing."""

import hashlib
import json
import re
import sqlite3
from pathlib import Path

import pandas as pd
import pytest

from cli.visitors import visit
from feature_repo.sql import connect
from feature_repo.sql import run as run_sql
from grasp import partitions, stages, tables
from grasp.days import last_second
from grasp.manifest import manifest_in_force, release_folder
from grasp.settings import ROOT
from grasp.versions import Versions, feast_project, feature_service

CUTOFF, LATEST = "1998-02-28", "1998-03-15"
LLM_BUDGET = 6

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


def read(run, table, day):
    version = Versions(run.settings).of(table.versioned_by)
    return pd.read_parquet(partitions.require_partition(run.settings.lake, table, version, day))


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    files = [path for path in sorted(folder.glob("**/*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def milvus_rows(run) -> dict[str, dict[tuple[str, str], list[float]]]:
    """Every vector in the collections of the release in force, by entity and id."""
    from spark_jobs.vectors.milvus import open_vector_store

    found = {}
    with open_vector_store(run.settings) as store:
        for entity, name in manifest_in_force(run.settings.releases).collections.items():
            vectors = store.read(name, store.texts(name))
            found[entity] = {tuple(text): vector.tolist() for text, vector in vectors.items()}
    return found


@pytest.mark.parametrize("day", [CUTOFF, LATEST])
@pytest.mark.parametrize("entity", ["item", "user"])
def test_every_entity_has_one_complete_feature_row_a_day(finished, entity, day):
    entities = read(finished, tables.ITEMS if entity == "item" else tables.USERS, day)
    features = read(finished, tables.ITEM_FEATURES if entity == "item" else tables.USER_FEATURES, day)
    assert sorted(features[f"{entity}_id"]) == sorted(entities[f"{entity}_id"])
    assert not features.isna().any().any()
    assert set(features.event_timestamp.dt.tz_convert("UTC").astype("datetime64[us, UTC]")) == {last_second(day)}
    assert {len(vector) for vector in features.neighbour_embedding} == {384}


def test_no_feature_knows_an_event_after_its_day(finished):
    interactions = pd.concat(
        read(finished, tables.INTERACTIONS, day)
        for day in partitions.days(finished.settings.lake, tables.INTERACTIONS, None, until=CUTOFF)
    )
    known = interactions.groupby("user_id").size()
    features = read(finished, tables.USER_FEATURES, CUTOFF).set_index("user_id")
    assert features.num_interactions.to_dict() == known.to_dict()


def test_the_language_model_stays_within_its_budget_and_facts_describe_the_rest(finished):
    for day in (CUTOFF, LATEST):
        ledgers = [read(finished, table, day) for table in (tables.ITEM_GENERATION, tables.USER_GENERATION)]
        assert sum(ledger.generation_key.nunique() for ledger in ledgers) == LLM_BUDGET  # a repair is a second row
        metrics = read(finished, tables.GENERATION_METRICS, day)
        assert metrics.num_answers.sum() == LLM_BUDGET
        assert sorted(metrics.entity) == ["item", "user"]
    descriptions = read(finished, tables.ITEM_DESCRIPTION, LATEST)
    assert set(descriptions.source) <= {"llm", "facts"}
    assert (descriptions[descriptions.source == "facts"].fallback_reason.str.len() > 0).all()
    assert (descriptions.description.str.len() > 0).all()


def test_milvus_holds_the_texts_of_the_release_in_force(finished):
    for entity, rows in milvus_rows(finished).items():
        latest = read(finished, tables.ITEM_EMBEDDING if entity == "item" else tables.USER_EMBEDDING, LATEST)
        assert set(rows) >= set(zip(latest[f"{entity}_id"], latest.description_hash, strict=True))


def test_the_online_store_answers_with_the_latest_day(finished):
    from feature_repo.feast_store import open_store

    version = Versions(finished.settings).feature
    store = open_store(finished.settings, version)
    service = store.get_feature_service(feature_service(version))
    row = store.get_online_features(service, [{"user_id": "1"}]).to_dict()
    expected = read(finished, tables.USER_FEATURES, LATEST).set_index("user_id").loc["1"]
    assert row["sequence"][0] == list(expected.sequence)
    assert store.project == feast_project(version)


def test_the_release_in_force_is_the_latest_day_and_complete(finished):
    manifest = manifest_in_force(finished.settings.releases)
    assert manifest.day == LATEST
    folder = release_folder(finished.settings.releases, manifest)
    for file, checksum in manifest.checksums.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == checksum
    decision = json.loads((finished.settings.home / "training" / LATEST / "decision.json").read_text())
    assert (manifest.model is not None) == decision["promoted"]
    assert decision["reason"]


def test_the_server_answered_during_the_whole_refresh(finished):
    assert finished.errors == []
    assert len(finished.answers) > 10
    assert all(len(answer["items"]) == 5 for answer in finished.answers)
    assert {answer["fallback"] for answer in finished.answers} <= {None, "no_model"}


def test_the_release_event_carries_the_day(finished):
    with sqlite3.connect(finished.settings.home / "airflow" / "airflow.db") as metadata:
        extras = [json.loads(row[0]) for row in metadata.execute("SELECT extra FROM asset_event ORDER BY id")]
    assert [extra["day"] for extra in extras][:2] == [CUTOFF, LATEST]


def test_data_docs_show_the_checks(finished):
    assert list(finished.settings.data_docs.glob("**/index.html"))


def test_every_query_of_the_analysts_page_shows_something_after_the_demo(finished):
    visit(finished.settings.model_copy(update={"search": False}), LATEST)  # without the encoder it starts sooner
    page = (ROOT / "docs" / "analysts.md").read_text()
    connection = connect(finished.settings)
    for query in re.findall(r"```sql\n(.*?)```", page, re.DOTALL):
        (result,) = run_sql(connection, query)
        assert result.fetchall(), query


@pytest.mark.parametrize("day", [CUTOFF, LATEST])
def test_a_second_run_starts_no_spark(finished, day):
    times = finished.refresh(day)
    skipped = {each.stage for each in times if each.seconds is None}
    assert skipped == set(stages.STAGES)


def test_a_forced_run_changes_nothing(finished):
    settings = finished.settings
    folders = {"lake": settings.lake, "releases": settings.releases, "training": settings.home / "training"}
    before = {name: snapshot(folder) for name, folder in folders.items()}
    vectors = milvus_rows(finished)
    finished.refresh(LATEST, force=True)
    finished.retrain(force=True)
    assert "was trained from these inputs already" in finished.log.read_text()
    assert {name: snapshot(folder) for name, folder in folders.items()} == before
    assert milvus_rows(finished) == vectors
