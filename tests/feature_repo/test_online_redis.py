"""Production's online store, a real Redis, answers like the embedded one."""

import socket
import subprocess
import time

import pandas as pd
import pytest

from feature_repo.materialise import materialise, state_file
from grasp import tables
from grasp.days import end_of
from grasp.settings import ROOT
from grasp.versions import Versions, feature_service

pytestmark = pytest.mark.integration

DAY, NEXT = "1998-03-01", "1998-03-02"
# The production file as it is, but for the offline store: Spark is slow to start and not what is asked here.
SPARK = """offline_store:
  # Runs in the Spark session of the process, else starts one with this configuration.
  type: spark
  spark_conf:
    spark.master: ${GRASP_SPARK_MASTER}
    spark.driver.memory: ${GRASP_SPARK_MEMORY}
    spark.sql.session.timeZone: UTC
    spark.ui.enabled: "false"
"""


@pytest.fixture(scope="module")
def redis(require_program, tmp_path_factory):
    """Address of a Redis of our own on a free port."""
    program = require_program("redis-server", "redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(command, cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.DEVNULL) as server:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def on_redis(two_days, redis, tmp_path):
    """Settings with the production configuration and an empty Redis, over the same lake."""
    text = (ROOT / "feature_repo" / "feature_store.production.yaml").read_text()
    assert SPARK in text
    yaml = tmp_path / "production.yaml"
    yaml.write_text(text.replace(SPARK, "offline_store:\n  type: duckdb\n"))
    empty(redis)
    changed = {"home": tmp_path / "redis", "redis": redis, "feature_store_yaml": yaml}
    return two_days.settings.model_copy(update=changed)


def empty(redis):
    from redis import Redis

    host, port = redis.split(":")
    Redis(host=host, port=int(port)).flushall()


def put(settings, day, rollback=False):
    return materialise(settings, Versions(settings).feature, day, rollback)


def look_up(settings, ids):
    from feature_repo.store import open_store

    store = open_store(settings, Versions(settings).feature)
    names = [name for name in tables.USER_FEATURES.column_names if name not in ("user_id", "event_timestamp")]
    answer = store.get_online_features([f"user_features:{name}" for name in names], [{"user_id": i} for i in ids])
    return answer.to_dict(include_event_timestamps=True)


def test_redis_answers_as_sqlite_does(two_days, on_redis):
    for settings in (two_days.settings, on_redis):
        put(settings, DAY)
    ids = ["u1", "u3", "stranger"]
    assert look_up(on_redis, ids) == look_up(two_days.settings, ids)


def test_a_rollback_and_a_correction_arrive_in_redis_too(two_days, on_redis):
    """Feast's Redis store skips rows that are not newer unless told otherwise."""
    two_days.write_features(NEXT, users=["u1", "u4"])
    put(on_redis, NEXT)
    put(on_redis, DAY, rollback=True)
    assert look_up(on_redis, ["u1", "u4"])["description"] == [f"u1 on {DAY}", None]
    two_days.change(tables.USER_FEATURES, DAY, 0, description="corrected")
    assert put(on_redis, DAY)
    assert look_up(on_redis, ["u1"])["description"] == ["corrected"]


def test_a_lost_redis_is_filled_again_by_a_rollback_to_the_same_day(two_days, on_redis, redis):
    put(on_redis, NEXT)
    empty(redis)
    assert state_file(on_redis, Versions(on_redis).feature).exists()
    assert put(on_redis, NEXT, rollback=True)
    assert look_up(on_redis, ["u2"])["description"] == [f"u2 on {NEXT}"]


@pytest.fixture
def spark_for_feast(spark):
    """The shared session, without the setting that Feast leaves behind in it."""
    yield
    spark.conf.unset("spark.sql.parser.quotedRegexColumnNames")


@pytest.mark.spark
def test_the_production_file_works_as_it_is(two_days, redis, spark_for_feast, tmp_path):
    """Spark offline store, SQL registry and Redis together: online, and as of a past moment."""
    from feature_repo.store import open_store

    empty(redis)
    yaml = ROOT / "feature_repo" / "feature_store.production.yaml"
    changed = {"home": tmp_path / "production", "redis": redis, "feature_store_yaml": yaml}
    settings = two_days.settings.model_copy(update=changed)
    put(settings, NEXT)
    assert look_up(settings, ["u1", "stranger"])["description"] == [f"u1 on {NEXT}", None]
    asked = pd.DataFrame({"user_id": ["u1", "u2"], "event_timestamp": [end_of(DAY), end_of(NEXT)]})
    version = Versions(settings).feature
    store = open_store(settings, version)
    service = store.get_feature_service(feature_service(version))
    known = store.get_historical_features(entity_df=asked, features=service).to_df().set_index("user_id")
    assert known["description"].to_dict() == {"u1": f"u1 on {DAY}", "u2": f"u2 on {NEXT}"}
