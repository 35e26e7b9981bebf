"""Only texts without a vector are encoded; parquet is written first, then the missing texts are added to Milvus."""

import hashlib
import json
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from grasp.manifest import MANIFEST_FILE, Manifest, release_folder
from grasp.versions import collection, description_hash
from spark_jobs import embed_descriptions
from spark_jobs.storage.lake import Lake
from spark_jobs.vectors.milvus import Text, open_vector_store

pytestmark = pytest.mark.spark

BEFORE, DAY, NEXT = "1998-02-28", "1998-03-01", "1998-03-02"
ENTITIES = {"item": tables.ITEM_DESCRIPTION, "user": tables.USER_DESCRIPTION}


class RecordingEncoder:
    """Returns a unit vector per text, and writes one file per encoded text."""

    def __init__(self, asked: Path) -> None:
        self.asked = asked

    def encode(self, texts):
        self.asked.mkdir(exist_ok=True)
        vectors = []
        for text in texts:
            assert not (self.asked / text).exists(), f"{text} was encoded twice"
            (self.asked / text).touch()
            content = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], dtype=np.uint8)
            vectors.append(content / np.linalg.norm(content.astype(float)))
        return np.array(vectors, dtype=np.float32)


class FailingEncoder(RecordingEncoder):
    def encode(self, texts):
        if "fails" in texts:
            raise ValueError("no vector for fails")
        return super().encode(texts)


class ZeroEncoder:
    def encode(self, texts):
        return np.zeros((len(texts), 4), dtype=np.float32)


@pytest.fixture
def embed(tmp_path):
    """`embed(lake, day)` runs the job and returns the texts that were encoded."""

    def job(lake, day):
        asked = tmp_path / "asked"
        for text in asked.glob("*"):
            text.unlink()
        embed_descriptions.main(lake, day, partial(RecordingEncoder, asked=asked))
        return sorted(text.name for text in asked.glob("*"))

    return job


@pytest.fixture
def describe(write_rows):
    """`describe(lake, DAY, item={"1": "a"}, user={...})` writes the descriptions of a day."""

    def write(lake, day, **texts):
        for entity, table in ENTITIES.items():
            rows = [
                (each, text, "facts", None, "p", "m", "i", None, hashlib.sha256(text.encode()).hexdigest(), None)
                for each, text in texts[entity].items()
            ]
            write_rows(lake, table, rows, day)

    return write


def texts_in_milvus(lake, entity="item"):
    with open_vector_store(lake.settings) as store:
        return store.texts(collection(entity, lake.versions.embedding))


def vectors_in_milvus(lake, texts):
    name = collection("item", lake.versions.embedding)
    with open_vector_store(lake.settings) as store:
        assert texts <= store.texts(name)
        return store.read(name, texts)


def ids_in_milvus(lake, entity="item"):
    return {each.id for each in texts_in_milvus(lake, entity)}


def publish(lake, day, **texts):
    """What a release on disk tells the job: its manifest, and the descriptions of its items."""
    versions = lake.versions
    collections = {entity: collection(entity, versions.embedding) for entity in ENTITIES}
    manifest = Manifest(day, versions.feature, versions.embedding, collections, "ranker", None)
    folder = release_folder(lake.settings.releases, manifest)
    (folder / "items").mkdir(parents=True)
    (folder / MANIFEST_FILE).write_text(json.dumps(asdict(manifest)))
    rows = pa.table({"item_id": list(texts), "description": list(texts.values())})
    pq.write_table(rows, folder / "items" / "part-0.parquet")
    return folder


def text(entity_id, description):
    return Text(entity_id, description_hash(description))


def milvus_lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if "Milvus" in line]


def test_every_description_gets_the_vector_of_its_text(lake, embed, describe):
    describe(lake, DAY, item={"1": "jazz", "2": "rock", "3": "jazz"}, user={"u": "likes jazz"})
    assert embed(lake, DAY) == ["jazz", "likes jazz", "rock"]
    rows = {row.item_id: row for row in lake.read(tables.ITEM_EMBEDDING, DAY).collect()}
    assert rows["1"].semantic_embedding == rows["3"].semantic_embedding != rows["2"].semantic_embedding
    assert rows["1"].computed_at.astimezone(UTC) == datetime(1998, 3, 2, tzinfo=UTC)
    assert ids_in_milvus(lake) == {"1", "2", "3"}
    assert ids_in_milvus(lake, "user") == {"u"}


def test_a_second_run_changes_nothing(lake, embed, capsys, describe):
    describe(lake, DAY, item={"1": "jazz"}, user={"u": "likes jazz"})
    embed(lake, DAY)
    folder = partitions.partition_path(lake.root, tables.ITEM_EMBEDDING, lake.versions.embedding, DAY)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    assert embed(lake, DAY) == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert all(line.endswith(": 0 vectors added, 0 deleted, 1 held") for line in milvus_lines(capsys))


def test_the_next_day_encodes_only_changes_and_other_rows_keep_computed_at(
    spark, settings_with, embed, capsys, describe
):
    lake = Lake(spark, settings_with(now="1998-03-02T00:00:00Z"))
    describe(lake, DAY, item={"1": "jazz", "2": "rock", "3": "gone"}, user={"u": "likes jazz"})
    embed(lake, DAY)
    lake = Lake(spark, settings_with(now="1998-03-03T00:00:00Z"))
    describe(lake, NEXT, item={"1": "jazz", "2": "rock opera", "4": "jazz"}, user={"u": "likes jazz"})
    capsys.readouterr()
    assert embed(lake, NEXT) == ["rock opera"]
    rows = {row.item_id: row for row in lake.read(tables.ITEM_EMBEDDING, NEXT).collect()}
    assert {key: row.computed_at.astimezone(UTC).day for key, row in rows.items()} == {"1": 2, "2": 3, "4": 3}
    assert rows["4"].semantic_embedding == rows["1"].semantic_embedding
    assert "2 vectors added, 2 deleted, 3 held" in milvus_lines(capsys)[0]
    assert texts_in_milvus(lake) == {text("1", "jazz"), text("2", "rock opera"), text("4", "jazz")}


def test_the_next_day_changes_nothing_that_a_release_searches(lake, embed, describe):
    """The next day may be refused by the quality gate, and a rollback may go back to any release on disk."""
    describe(lake, DAY, item={"1": "jazz", "2": "rock", "3": "gone"}, user={"u": "likes jazz"})
    embed(lake, DAY)
    released = {text("1", "jazz"), text("2", "rock"), text("3", "gone")}
    folder = publish(lake, DAY, **{"1": "jazz", "2": "rock", "3": "gone"})
    before = vectors_in_milvus(lake, released)
    describe(lake, NEXT, item={"1": "jazz", "2": "rock opera"}, user={"u": "likes jazz"})
    embed(lake, NEXT)
    after = vectors_in_milvus(lake, released)
    assert set(after) == released and all((after[each] == before[each]).all() for each in released)
    assert texts_in_milvus(lake) == {*released, text("2", "rock opera")}

    shutil.rmtree(folder)  # as a publication does with old releases
    embed(lake, NEXT)
    assert texts_in_milvus(lake) == {text("1", "jazz"), text("2", "rock opera")}


def test_nothing_is_deleted_while_a_release_cannot_be_read(lake, embed, capsys, describe):
    describe(lake, DAY, item={"1": "jazz"}, user={"u": "likes jazz"})
    embed(lake, DAY)
    (publish(lake, DAY, **{"1": "jazz"}) / MANIFEST_FILE).write_text("{")
    describe(lake, NEXT, item={"1": "rock"}, user={"u": "likes jazz"})
    embed(lake, NEXT)
    assert texts_in_milvus(lake) == {text("1", "jazz"), text("1", "rock")}
    assert "nothing is deleted, because a release cannot be read" in capsys.readouterr().out


def test_an_earlier_day_is_added_and_the_last_day_stays(lake, embed, describe):
    """After days that should not have been ingested, an earlier day is published again."""
    describe(lake, DAY, item={"1": "jazz", "2": "rock"}, user={"u": "likes jazz"})
    embed(lake, DAY)
    describe(lake, BEFORE, item={"1": "early jazz"}, user={"u": "likes jazz"})
    assert embed(lake, BEFORE) == ["early jazz"]
    assert lake.read(tables.ITEM_EMBEDDING, BEFORE).count() == 1
    assert texts_in_milvus(lake) == {text("1", "early jazz"), text("1", "jazz"), text("2", "rock")}


def test_the_next_run_repairs_a_crash_before_milvus_without_encoding_again(lake, embed, tmp_path, describe):
    describe(lake, DAY, item={"1": "jazz", "2": "rock"}, user={"u": "likes jazz"})
    milvus = Path(lake.settings.milvus_uri)
    milvus.write_text("in the way")
    with pytest.raises(ValueError, match=f"{milvus} is a file"):
        embed(lake, DAY)
    milvus.unlink()
    assert embed(lake, DAY) == []
    assert ids_in_milvus(lake) == {"1", "2"}


def test_a_text_that_returns_is_not_encoded_again(lake, embed, describe):
    describe(lake, BEFORE, item={"1": "jazz", "2": "rock"}, user={"u": "likes jazz"})
    embed(lake, BEFORE)
    [before] = lake.read(tables.ITEM_EMBEDDING, BEFORE).where("item_id = '1'").collect()
    describe(lake, DAY, item={"2": "rock"}, user={"u": "likes rock"})
    embed(lake, DAY)
    describe(lake, NEXT, item={"1": "jazz", "2": "rock"}, user={"u": "likes jazz"})
    assert embed(lake, NEXT) == []
    [after] = lake.read(tables.ITEM_EMBEDDING, NEXT).where("item_id = '1'").collect()
    assert after.semantic_embedding == before.semantic_embedding


def test_vectors_encoded_before_a_failure_are_kept(lake, embed, tmp_path, describe):
    describe(lake, DAY, item={"1": "jazz", "2": "rock"}, user={"u": "likes jazz"})
    describe(lake, NEXT, item={"1": "jazz", "2": "rock"}, user={"u": "fails"})
    with pytest.raises(ValueError, match="no vector for fails"):
        embed_descriptions.main(lake, NEXT, partial(FailingEncoder, tmp_path / "asked"))
    assert lake.days(tables.USER_EMBEDDING) == []
    assert embed(lake, DAY) == ["likes jazz"]


def test_another_prompt_or_language_model_encodes_no_text_again(lake, spark, settings_with, embed, describe):
    describe(lake, DAY, item={"1": "jazz"}, user={"u": "likes jazz"})
    embed(lake, DAY)
    changed = Lake(spark, settings_with(llm_max_new_tokens=64))
    assert changed.versions.embedding != lake.versions.embedding
    assert embed(changed, DAY) == []
    assert ids_in_milvus(changed) == {"1"}


def test_a_changed_encoder_gets_a_collection_beside_the_old_one(lake, spark, settings_with, embed, tmp_path, describe):
    describe(lake, DAY, item={"1": "jazz"}, user={"u": "likes jazz"})
    embed(lake, DAY)
    other = tmp_path / "other-encoder"
    other.mkdir()
    (other / "config.json").write_text("{}")
    changed = Lake(spark, settings_with(encoder=str(other)))
    assert embed(changed, DAY) == ["jazz", "likes jazz"]
    assert changed.versions.embedding != lake.versions.embedding
    assert ids_in_milvus(lake) == ids_in_milvus(changed) == {"1"}


def test_a_server_can_encode_instead_of_a_folder(lake, spark, settings_with, model_server, describe):
    describe(lake, DAY, item={"1": "jazz", "2": "rock"}, user={"u": "likes jazz"})
    served = Lake(spark, settings_with(encoder_url=model_server.url, encoder_model="test-encoder"))
    embed_descriptions.main(served, DAY)
    assert served.versions.embedding.startswith("test_encoder_")
    rows = served.read(tables.ITEM_EMBEDDING, DAY).collect()
    assert [np.linalg.norm(row.semantic_embedding) for row in rows] == pytest.approx([1, 1])
    assert ids_in_milvus(served) == {"1", "2"}


def test_an_invalid_vector_fails_the_day_and_nothing_is_written(lake, describe):
    describe(lake, DAY, item={"1": "jazz"}, user={"u": "likes jazz"})
    with pytest.raises(ValueError, match=r"these are not: the description with hash \w{64} \(length 0\)"):
        embed_descriptions.main(lake, DAY, ZeroEncoder)
    assert lake.days(tables.ITEM_EMBEDDING) == []
