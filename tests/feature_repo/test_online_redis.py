"""Production's online store, a real Redis, answers like the embedded one."""

from dataclasses import replace

import pandas as pd
import pytest
from pydantic import SecretStr

from feature_repo.materialise import NewerOnlineError, materialise
from feature_repo.online_expiry import remove_expired, state_file
from grasp import tables
from grasp.days import end_of, last_second, start_of
from grasp.settings import ROOT
from grasp.versions import Versions, feature_service

pytestmark = pytest.mark.integration

DAY, NEXT = "1998-03-01", "1998-03-02"


@pytest.fixture
def redis_settings(two_days, on_redis):
    return on_redis(two_days.settings)


def put(settings, day, rollback=False):
    return materialise(settings, Versions(settings).feature, day, rollback)


def look_up(settings, ids):
    from feature_repo.feast_store import open_store

    store = open_store(settings, Versions(settings).feature)
    names = [name for name in tables.USER_FEATURES.column_names if name not in ("user_id", "event_timestamp")]
    answer = store.get_online_features([f"user_features:{name}" for name in names], [{"user_id": i} for i in ids])
    return answer.to_dict(include_event_timestamps=True)


def test_redis_answers_as_sqlite_does(two_days, redis_settings):
    for settings in (two_days.settings, redis_settings):
        put(settings, DAY)
    ids = ["u1", "u3", "stranger"]
    assert look_up(redis_settings, ids) == look_up(two_days.settings, ids)


def test_our_batches_put_the_same_rows_online_as_feast(two_days, redis_settings, empty_redis):
    """Every feature of every user, with its time: our own way to the store and `FeatureStore.materialize`."""
    from feature_repo.materialise import open_for_writing

    put(redis_settings, DAY)
    ids = ["u1", "u2", "u3"]
    ours = look_up(redis_settings, ids)
    empty_redis()
    store = open_for_writing(redis_settings, Versions(redis_settings).feature, apply=False)
    store.materialize(start_of(DAY), end_of(DAY), feature_views=["user_features"])
    assert None not in ours["sequence_times"]
    assert look_up(redis_settings, ids) == ours


def test_a_rollback_and_a_correction_arrive_in_redis_too(two_days, redis_settings):
    """Feast's Redis store skips rows that are not newer unless told otherwise."""
    two_days.write_features(NEXT, users=["u1", "u4"])
    put(redis_settings, NEXT)
    put(redis_settings, DAY, rollback=True)
    assert look_up(redis_settings, ["u1", "u4"])["description"] == [f"u1 on {DAY}", None]
    two_days.change(tables.USER_FEATURES, DAY, 0, description="corrected")
    assert put(redis_settings, DAY)
    assert look_up(redis_settings, ["u1"])["description"] == ["corrected"]


def test_no_older_value_replaces_a_newer_one_of_another_writer(two_days, redis_settings, tmp_path):
    """The other writer has a home, and so a state file, of its own."""
    elsewhere = redis_settings.model_copy(update={"home": tmp_path / "elsewhere"})
    two_days.write_features(NEXT, users=["u1", "u4"])
    for day in (DAY, NEXT):
        put(elsewhere, day)
    with pytest.raises(NewerOnlineError, match="user_features: 4 rows online are newer than 1998-03-01, such as u1"):
        put(redis_settings, DAY)
    assert look_up(redis_settings, ["u1", "u2"])["description"] == [f"u1 on {NEXT}", None]  # u2 stays cleared
    assert put(redis_settings, DAY, rollback=True)
    assert look_up(redis_settings, ["u1", "u2", "u4"])["description"] == [f"u1 on {DAY}", f"u2 on {DAY}", None]


def test_a_rollback_clears_a_user_of_a_later_day_that_another_host_wrote(two_days, redis_settings, tmp_path):
    """This host's own state file knows the earlier day alone."""
    elsewhere = redis_settings.model_copy(update={"home": tmp_path / "elsewhere"})
    two_days.write_features(NEXT, users=["u1", "u4"])
    put(redis_settings, DAY)
    put(elsewhere, NEXT)

    put(redis_settings, DAY, rollback=True)

    assert look_up(redis_settings, ["u1", "u4"])["description"] == [f"u1 on {DAY}", None]


def test_without_the_state_file_users_who_are_not_in_the_day_are_still_cleared(two_days, redis_settings):
    two_days.write_features(DAY, users=["u1", "u4"])
    put(redis_settings, DAY)
    state_file(redis_settings, Versions(redis_settings).feature).unlink()

    put(redis_settings, NEXT)

    assert look_up(redis_settings, ["u1", "u4"])["description"] == [f"u1 on {NEXT}", None]


def test_a_lost_redis_is_filled_again_by_a_rollback_to_the_same_day(two_days, redis_settings, empty_redis):
    put(redis_settings, NEXT)
    empty_redis()
    assert state_file(redis_settings, Versions(redis_settings).feature).exists()
    assert put(redis_settings, NEXT, rollback=True)
    assert look_up(redis_settings, ["u2"])["description"] == [f"u2 on {NEXT}"]


def test_a_version_that_no_release_has_leaves_redis(two_days, redis_settings, redis):
    """In more than one batch; the current version's rows stay."""
    from redis import Redis

    host, port = redis.split(":")
    client = Redis(host=host, port=int(port))
    users = [f"u{number}" for number in range(1, 2502)]
    two_days.write_features(DAY, users=users)
    put(redis_settings, DAY)
    later = redis_settings.model_copy(update={"num_neighbours": 3})
    of_later = replace(two_days, settings=later)
    of_later.write_features(NEXT)
    of_later.publish(NEXT)
    assert client.dbsize() == len(users)

    put(later, NEXT)

    assert client.dbsize() == 3
    assert look_up(later, ["u1"])["description"] == [f"u1 on {NEXT}"]
    remove_expired(later, Versions(later).feature)
    assert client.dbsize() == 3


@pytest.fixture
def spark_for_feast(spark):
    """The shared session, without the setting that Feast leaves behind in it."""
    yield
    spark.conf.unset("spark.sql.parser.quotedRegexColumnNames")


@pytest.mark.spark
def test_the_production_file_works_as_it_is(two_days, redis, empty_redis, spark_for_feast, tmp_path):
    """Spark offline store, SQL registry and Redis together: online, and as of a past moment."""
    from feature_repo.feast_store import open_store

    empty_redis()
    yaml = ROOT / "feature_repo" / "feature_store.production.yaml"
    changed = {"home": tmp_path / "production", "redis": SecretStr(redis), "feature_store_yaml": yaml}
    settings = two_days.settings.model_copy(update=changed)
    put(settings, NEXT)
    assert look_up(settings, ["u1", "stranger"])["description"] == [f"u1 on {NEXT}", None]
    asked = pd.DataFrame({"user_id": ["u1", "u2"], "event_timestamp": [last_second(DAY), end_of(NEXT)]})
    version = Versions(settings).feature
    store = open_store(settings, version)
    service = store.get_feature_service(feature_service(version))
    known = store.get_historical_features(entity_df=asked, features=service).to_df().set_index("user_id")
    assert known["description"].to_dict() == {"u1": f"u1 on {DAY}", "u2": f"u2 on {NEXT}"}
