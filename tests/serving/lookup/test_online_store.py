"""The lookup against a real Feast project on SQLite."""

import asyncio
import socket
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
from pydantic import SecretStr

from benchmarks.core.redis_server import RedisServer, production_without_spark
from feature_repo.feast_store import read_config
from grasp.days import end_of
from grasp.manifest import Manifest
from grasp.settings import Settings
from grasp.versions import Versions, feature_service
from serving.lookup.online_store import FeastUserStore, StoreError, UserRow
from serving.lookup.user_lookup import LookupResult, UserLookup

DAY = "1998-03-01"
COMPUTED_AT = datetime(1998, 3, 2, 1, 30, tzinfo=UTC)

pytestmark = pytest.mark.integration


def manifest_of(settings: Settings) -> Manifest:
    versions = Versions(settings)
    return Manifest(DAY, versions.feature, versions.embedding, {}, feature_service(versions.feature), None)


@pytest.fixture
def materialised(settings: Settings) -> Callable[[int], Settings]:
    """`materialised(384)`: a registered project whose online store knows user u1."""
    from feature_repo.materialise import open_for_writing

    def put(size: int) -> Settings:
        version = Versions(settings).feature
        store = open_for_writing(settings, version, apply=True)
        store.write_to_online_store("user_features", pd.DataFrame([row_of("u1", version, size)]))
        return settings

    return put


def plain(row: UserRow) -> dict[str, object]:
    """The row with its vectors as lists, so that rows can be compared."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(row).items()}


def row_of(user_id: str, version: str, size: int) -> dict[str, object]:
    return {
        "user_id": user_id,
        "event_timestamp": end_of(DAY),
        "sequence": ["i2", "i1"],
        "sequence_times": [888_700_000, 888_800_000],
        "earlier_item_ids": ["i9"],
        "num_interactions": 2,
        "gap_days": 3,
        "neighbour_item_ids": ["i7", "i8"],
        "neighbour_item_weights": [0.5, 0.25],
        "is_tail": 1,
        "semantic_embedding": [0.5] * size,
        "neighbour_embedding": [0.25] * size,
        "neighbour_ids": ["u2", "u3"],
        "neighbour_similarities": [0.75, 0.5],
        "description": "likes tests",
        "source": "facts",
        "prompt_version": "p",
        "model_revision": "m",
        "embedding_version": "e",
        "feature_version": version,
        "computed_at": COMPUTED_AT,
    }


@pytest.mark.parametrize("size", [384, 1536])
def test_a_known_user_has_a_complete_row_and_an_unknown_one_none(materialised, size):
    settings = materialised(size)
    users = FeastUserStore(settings, manifest_of(settings))

    row = users.get("u1")

    assert row is not None
    assert (row.sequence, row.num_interactions, row.is_tail) == (["i2", "i1"], 2, True)
    assert row.sequence_times == [888_700_000, 888_800_000]
    assert (row.semantic_embedding.tolist(), row.neighbour_embedding.tolist()) == ([0.5] * size, [0.25] * size)
    assert (row.neighbour_ids, row.neighbour_similarities.tolist()) == (["u2", "u3"], [0.75, 0.5])
    assert (row.gap_days, row.neighbour_item_ids, row.neighbour_item_weights.tolist()) == (3, ["i7", "i8"], [0.5, 0.25])
    assert (row.description, row.source, row.computed_at) == ("likes tests", "facts", COMPUTED_AT)
    assert (end_of(DAY) - row.event_timestamp).total_seconds() < 1
    assert users.get("stranger") is None


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_a_row_equals_what_feast_returns(settings, request, store):
    """The lookup skips much of Feast's code but returns the same answer."""
    from feature_repo.materialise import open_for_writing

    settings = settings if store == "sqlite" else request.getfixturevalue("on_redis")(settings)
    version = Versions(settings).feature
    feast = open_for_writing(settings, version, apply=True)
    feast.write_to_online_store("user_features", pd.DataFrame([row_of("u1", version, 384)]))

    row = FeastUserStore(settings, manifest_of(settings)).get("u1")

    service = feast.get_feature_service(feature_service(version))
    answer = feast.get_online_features(service, [{"user_id": "u1"}]).to_dict(include_event_timestamps=True)
    assert row is not None
    found = plain(row)
    del found["event_timestamp"]
    assert found == {name: answer[name][0] for name in found}
    assert int(row.event_timestamp.timestamp()) == answer["sequence__ts"][0]
    assert FeastUserStore(settings, manifest_of(settings)).get("stranger") is None


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_many_users_are_one_read_and_a_damaged_row_affects_only_its_user(settings, request, store):
    from feature_repo.materialise import open_for_writing

    settings = settings if store == "sqlite" else request.getfixturevalue("on_redis")(settings)
    version = Versions(settings).feature
    feast = open_for_writing(settings, version, apply=True)
    good = [row_of(user_id, version, 4) | {"source": user_id} for user_id in ("u1", "u2", "u3", "u4")]
    damaged = row_of("damaged", version, 4) | {"description": None}
    feast.write_to_online_store("user_features", pd.DataFrame([*good, damaged], dtype=object))
    users = FeastUserStore(settings, manifest_of(settings))

    found = users.rows(["u3", "stranger", "damaged", "u1", "u3"])

    u3, stranger, broken, u1, again = found
    assert [each.source for each in (u3, u1, again)] == ["u3", "u1", "u3"]
    assert (plain(u3), plain(u1), stranger) == (plain(users.get("u3")), plain(users.get("u1")), None)
    assert isinstance(broken, StoreError) and "lacks description" in str(broken)


def test_features_without_times_are_still_served(settings):
    """A release of feature definition 1 stays in force until the first refresh after it."""
    service, feast = service_without(settings, "sequence_times")
    feast.write_to_online_store("user_features", pd.DataFrame([row_of("u1", Versions(settings).feature, 4)]))

    row = FeastUserStore(settings, replace(manifest_of(settings), feature_service=service)).get("u1")

    assert row is not None
    assert (row.sequence, row.sequence_times) == (["i2", "i1"], [])


def test_features_of_definition_3_are_still_served(settings):
    service, feast = service_without(settings, "gap_days", "neighbour_item_ids", "neighbour_item_weights")
    feast.write_to_online_store("user_features", pd.DataFrame([row_of("u1", Versions(settings).feature, 4)]))

    row = FeastUserStore(settings, replace(manifest_of(settings), feature_service=service)).get("u1")

    assert row is not None
    assert (row.gap_days, row.neighbour_item_ids, row.neighbour_item_weights.tolist()) == (None, [], [])


def test_a_user_for_whom_no_moment_votes_has_empty_lists(settings):
    from feature_repo.materialise import open_for_writing

    version = Versions(settings).feature
    store = open_for_writing(settings, version, apply=True)
    nothing = {"gap_days": 0, "neighbour_item_ids": [], "neighbour_item_weights": []}
    store.write_to_online_store("user_features", pd.DataFrame([row_of("u1", version, 4) | nothing]))

    row = FeastUserStore(settings, manifest_of(settings)).get("u1")

    assert row is not None
    assert (row.gap_days, row.neighbour_item_ids, row.neighbour_item_weights.tolist()) == (0, [], [])


def test_a_feature_service_without_a_needed_column_is_refused(settings):
    service, _ = service_without(settings, "neighbour_embedding")

    with pytest.raises(StoreError, match="feature service other has no neighbour_embedding"):
        FeastUserStore(settings, replace(manifest_of(settings), feature_service=service))


def service_without(settings, *columns):
    """Name of a registered feature service that lacks some columns, and the store it is registered in."""
    from feast import FeatureService

    from feature_repo.features import RANKER_FEATURES
    from feature_repo.materialise import open_for_writing

    feast = open_for_writing(settings, Versions(settings).feature, apply=True)
    view = feast.get_feature_view("user_features")
    kept = [name for name in RANKER_FEATURES if name not in columns]
    feast.apply([FeatureService(name="other", features=[view[kept]])])
    return "other", feast


def test_rows_can_be_read_while_a_day_is_written(materialised):
    from feature_repo.materialise import open_for_writing

    settings = materialised(384)
    version = Versions(settings).feature
    day = pd.DataFrame([row_of(f"u{number}", version, 384) for number in range(1, 301)])
    writer = open_for_writing(settings, version, apply=False)
    users = FeastUserStore(settings, manifest_of(settings))

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(writer.write_to_online_store, "user_features", day)
        num_answers = 0
        while not writing.done():
            assert users.get("u1") is not None
            num_answers += 1
        writing.result()

    assert num_answers > 1
    assert users.get("u300") is not None


def test_a_redis_that_is_gone_is_a_store_error_at_once(settings, on_redis):
    """By default redis-py tries three times, seconds apart."""
    from benchmarks.core.redis_server import free_port
    from feature_repo.materialise import open_for_writing

    settings = on_redis(settings)
    open_for_writing(settings, Versions(settings).feature, apply=True)
    gone = settings.model_copy(update={"redis": SecretStr(f"127.0.0.1:{free_port()}")})
    users = FeastUserStore(gone, manifest_of(gone))
    taken = []

    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(StoreError, match="did not answer: ConnectionError"):
            users.get("u1")
        taken.append(time.monotonic() - started)

    assert min(taken) < 0.5


def test_a_redis_that_never_answers_is_not_waited_for(settings, on_redis):
    from feature_repo.materialise import open_for_writing

    settings = on_redis(settings)
    open_for_writing(settings, Versions(settings).feature, apply=True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = settings.model_copy(update={"redis": SecretStr(f"127.0.0.1:{silent.getsockname()[1]}")})
        users = FeastUserStore(mute, manifest_of(mute))

        with pytest.raises(StoreError, match="did not answer: TimeoutError"):
            users.get("u1")


@pytest.fixture
def own_redis(require_program, tmp_path):
    """A Redis that a test may stop and kill."""
    require_program("redis-server", "redis-server")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_redis_that_hangs_or_comes_back_empty_gives_every_request_the_last_good_row_and_a_name(
    settings, own_redis, tmp_path
):
    from feature_repo.materialise import open_for_writing

    version = Versions(settings).feature
    yaml = production_without_spark(tmp_path / "production.yaml")
    settings = settings.model_copy(update={"redis": SecretStr(own_redis.address), "feature_store_yaml": yaml})
    writer = open_for_writing(settings, version, apply=True)
    rows = pd.DataFrame([row_of(each, version, 384) for each in ("u1", "u2")])
    writer.write_to_online_store("user_features", rows)
    users = FeastUserStore(settings, manifest_of(settings))
    release = SimpleNamespace(users=users, release_id="r1", feature_version=version)
    lookup = UserLookup(0.3, 10)

    def ask(num: int = 1) -> set[tuple[bool, str | None]]:
        """Whether there are rows, and the problems."""

        async def at_once() -> list[LookupResult]:
            return await asyncio.gather(*(lookup.get(release, "u1") for _ in range(num)))

        return {(each.row is not None, each.problem) for each in asyncio.run(at_once())}

    def comes(expected: str | None) -> bool:
        return any(ask() == {(True, expected)} or time.sleep(0.2) for _ in range(100))

    assert comes(None)
    psutil.Process(own_redis.pid).suspend()
    assert [ask(12) for _ in range(2)] == [{(True, "store_timeout")}] * 2
    psutil.Process(own_redis.pid).resume()
    assert comes(None)
    own_redis.kill()
    assert ask(12) <= {(True, "store_error"), (True, "store_timeout")}
    own_redis.start()
    assert comes("store_empty")
    writer.write_to_online_store("user_features", rows)
    assert lookup.probe(release) is None
    assert ask(12) == {(True, None)}
    lookup.close()


def test_a_store_that_loses_its_tables_is_a_store_error(materialised):
    settings = materialised(4)
    users = FeastUserStore(settings, manifest_of(settings))
    with sqlite3.connect(settings.home / "feast" / "online.db") as connection:
        (name,) = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE '%user_features'").fetchone()
        connection.execute(f'DROP TABLE "{name}"')

    with pytest.raises(StoreError, match="no such table"):
        users.get("u1")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"description": None}, "an online row lacks description"),
        ({"sequence_times": [888_700_000]}, "sequence and sequence_times of an online row differ in length"),
        ({"semantic_embedding": [0.5, 0.5, 0.5, float("nan")]}, "an online row holds numbers that are not finite"),
        ({"neighbour_ids": ["u2"]}, "neighbour_ids and neighbour_similarities of an online row differ in length"),
        ({"gap_days": None}, "an online row lacks gap_days"),
        (
            {"neighbour_item_weights": [0.5]},
            "neighbour_item_ids and neighbour_item_weights of an online row differ in length",
        ),
    ],
)
def test_a_damaged_row_is_a_store_error_and_no_log_names_its_user(settings, caplog, changed, message):
    from feature_repo.materialise import open_for_writing

    version = Versions(settings).feature
    store = open_for_writing(settings, version, apply=True)
    row = row_of("user-4711", version, 4) | changed
    store.write_to_online_store("user_features", pd.DataFrame([row], dtype=object))
    users = FeastUserStore(settings, manifest_of(settings))
    release = SimpleNamespace(users=users, release_id="r1", feature_version=version)
    caplog.clear()

    found = asyncio.run(UserLookup(20, 10).get(release, "user-4711"))

    assert (found.row, found.problem) == (None, "store_error")
    assert message in caplog.text
    assert "4711" not in caplog.text


def test_invalid_bytes_are_a_store_error_of_one_user(materialised):
    from feature_repo.materialise import open_for_writing

    settings = materialised(4)
    version = Versions(settings).feature
    store = open_for_writing(settings, version, apply=False)
    users = FeastUserStore(settings, manifest_of(settings))
    with sqlite3.connect(settings.home / "feast" / "online.db") as connection:
        (name,) = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE '%user_features'").fetchone()
        connection.execute(f"""UPDATE "{name}" SET value = x'ff00' WHERE feature_name = 'description'""")  # noqa: S608
    store.write_to_online_store("user_features", pd.DataFrame([row_of(each, version, 4) for each in ("u0", "u2")]))

    with pytest.raises(StoreError, match="an online row cannot be read"):
        users.get("u1")
    before, broken, after, stranger = users.rows(["u0", "u1", "u2", "stranger"])
    assert (before.user_id, after.user_id, stranger) == ("u0", "u2", None)
    assert isinstance(broken, StoreError) and "cannot be read" in str(broken)


def test_unregistered_features_are_named_and_nothing_is_written(materialised, settings_with):
    settings = materialised(4)
    registry = settings.home / "feast" / "registry.db"
    before = registry.read_bytes()
    changed = settings_with(num_neighbours=3)

    with pytest.raises(StoreError, match=f"run `grasp materialise --day {DAY}`"):
        FeastUserStore(changed, manifest_of(changed))
    assert registry.read_bytes() == before


def test_a_missing_registry_is_named(settings):
    with pytest.raises(StoreError, match="is not registered"):
        FeastUserStore(settings, manifest_of(settings))


@pytest.mark.parametrize("text", ["online_store: {type: nonsense}", "registry: ${GRASP_NOWHERE}", "", "[: not yaml"])
def test_a_broken_configuration_is_named(settings_with, tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    settings = settings_with(feature_store_yaml=str(file))

    with pytest.raises(StoreError, match=r"broken\.yaml opens no feature store"):
        FeastUserStore(settings, manifest_of(settings))


@pytest.mark.parametrize("text", ["registry: 'postgresql://me:hunter2@db\nb: }", "registry: x\nonline_store: *hunter2"])
def test_a_secret_in_a_broken_configuration_is_not_shown(settings_with, tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    settings = settings_with(feature_store_yaml=str(file))

    with pytest.raises(StoreError, match=r"broken\.yaml opens no feature store") as error:
        FeastUserStore(settings, manifest_of(settings))
    assert "hunter2" not in str(error.value)
    with pytest.raises(ValueError, match=r"broken\.yaml: not valid YAML near line 2") as wrong:
        read_config(settings)
    assert "hunter2" not in str(wrong.value)
