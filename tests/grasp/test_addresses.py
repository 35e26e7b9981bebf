"""Addresses of servers: what Feast makes of a Redis address, and that no message shows a secret."""

import os

import pytest
import yaml
from feast.infra.online_stores.redis import RedisOnlineStore
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from grasp.addresses import milvus_address, redis_address, tracking_store, webhook_address

AWKWARD = "a,b=c:d@/e #\"'\\{}[]$HOME%25 é😀\t"


def feast_reads(address: str) -> tuple[list[dict[str, str]], dict[str, object]]:
    """What Feast makes of an address that went through the YAML of the feature store, as its own command reads it."""
    os.environ["TEST_REDIS_ADDRESS"] = redis_address(SecretStr(address)).get_secret_value()
    text = yaml.safe_load(os.path.expandvars("connection_string: ${TEST_REDIS_ADDRESS}"))["connection_string"]
    return RedisOnlineStore._parse_connection_string(text)


def percent_encoded(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@example(AWKWARD)
@example("true")
@example("12345")
def test_a_password_in_a_url_may_hold_any_character(password):
    nodes, options = feast_reads(f"redis://me:{percent_encoded(password)}@redis.example.com:6380/2")
    assert nodes == [{"host": "redis.example.com", "port": "6380"}]
    assert options == {"db": 2, "username": "me", "password": password}


def test_tls_and_options_of_a_url_are_kept():
    _, options = feast_reads("rediss://:secret@redis.example.com?socket_timeout=2")
    assert options == {"db": 0, "ssl": True, "password": "secret", "socket_timeout": 2}


def test_several_servers_and_options_are_named_as_feast_reads_them():
    nodes, options = feast_reads("a:6379,b.example.com:6380,ssl=true,password=x=y:z #1")
    assert nodes == [{"host": "a", "port": "6379"}, {"host": "b.example.com", "port": "6380"}]
    assert options == {"ssl": True, "password": "x=y:z #1"}


@pytest.mark.parametrize("address", ["a:6379", "redis://:x%2Cy@a", "a:6379,password=1"])
def test_an_address_that_was_read_once_stays_as_it_is(address):
    once = redis_address(SecretStr(address))
    assert redis_address(once) == once


@pytest.mark.parametrize(
    "address",
    [
        "hunter2",
        "hunter2:",
        "a:6379,hunter2",
        "password=hunter2",
        "a:b:6379,hunter2=1",
        "redis://:hunter2",
        "http://hunter2",
    ],
)
def test_a_wrong_address_is_refused_and_not_shown(address):
    with pytest.raises(ValueError, match=r"host:port.*redis://user:password@") as error:
        redis_address(SecretStr(address))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:hunter2@milvus:19530",
        "https://milvus?token=hunter2",
        "https://milvus#hunter2",
        "http://:hunter2",
        "me:hunter2@milvus:19530",
        "/srv/me:hunter2@milvus:19530",
    ],
)
def test_a_secret_in_the_address_of_milvus_is_refused_and_not_shown(uri):
    with pytest.raises(ValueError, match=r"Milvus|GRASP_MILVUS_TOKEN") as error:
        milvus_address(uri)
    assert "hunter2" not in str(error.value)


def test_a_webhook_keeps_its_secret_path_and_query():
    url = webhook_address(SecretStr("https://alerts.example.com/hook/ab c?token=x"))
    assert url.get_secret_value() == "https://alerts.example.com/hook/ab%20c?token=x"
    assert webhook_address(SecretStr("")).get_secret_value() == ""


@pytest.mark.parametrize(
    "url", ["hunter2", "ftp://hunter2", "file:///hunter2", "https://me:hunter2@alerts.example.com"]
)
def test_what_is_no_webhook_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="webhook") as error:
        webhook_address(SecretStr(url))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "uri", ["sqlite:////lake/mlflow.db", "postgresql+psycopg://me:hunter2@db/mlflow", "https://mlflow.example.com"]
)
def test_a_tracking_store_is_a_database_or_a_server(uri):
    assert tracking_store(SecretStr(uri)).get_secret_value() == uri


@pytest.mark.parametrize("uri", ["https://me:hunter2@mlflow", "postgres://me:hunter2@db/mlflow", "hunter2"])
def test_a_tracking_store_that_mlflow_would_show_is_refused_and_not_shown(uri):
    """MLflow names an unknown kind of URI, and that of a server, in its own errors."""
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_PASSWORD|postgresql://user:password@") as error:
        tracking_store(SecretStr(uri))
    assert "hunter2" not in str(error.value)
