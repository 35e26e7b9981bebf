"""Addresses of servers, as settings name them. Each message says what is expected and never shows the value."""

import json
import re
from urllib.parse import unquote

from pydantic import AnyUrl, HttpUrl, RedisDsn, SecretStr, TypeAdapter, ValidationError

_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://")


def server_url(url: str) -> str:
    """The address of an HTTP server without a slash at its end."""
    if url:
        _require_plain(
            url, HttpUrl, "a server is named like https://models.example.com/v1", "GRASP_LLM_API_KEY and its like"
        )
    return url.rstrip("/")


def milvus_address(uri: str) -> str:
    """A server's address or a folder of Milvus-Lite."""
    example = "a Milvus server is named like http://milvus.example.com:19530, a folder of Milvus-Lite ends in .db"
    if "://" in uri:
        _require_plain(uri, AnyUrl, example, "GRASP_MILVUS_TOKEN, as key or user:password")
    elif not uri.endswith(".db"):  # for example user:password@host:port, which must not become a path in messages
        raise ValueError(example)
    return uri


def tracking_store(uri: SecretStr) -> SecretStr:
    """MLflow's store: a database's URI, which may hold a password, or a server's address, which may not.

    MLflow shows any other URI, and that of a server, in its own messages.
    """
    text = uri.get_secret_value()
    if not _DATABASE.match(text):
        example = "a tracking store is named like sqlite:///folder/mlflow.db or postgresql://user:password@host/name"
        _require_plain(text, HttpUrl, example, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    return uri


def webhook_address(url: SecretStr) -> SecretStr:
    """The address of an HTTP server, percent-encoded; its path or query may be the secret."""
    if not url.get_secret_value():
        return url
    try:
        parts = TypeAdapter(HttpUrl).validate_python(url.get_secret_value())
    except ValidationError:
        raise ValueError("a webhook is named like https://alerts.example.com/hook") from None
    if parts.username or parts.password:
        raise ValueError("no user or password belongs here: a webhook's secret is in its path or query")
    return SecretStr(str(parts))


def _require_plain(url: str, kind: type[AnyUrl], example: str, secret_setting: str) -> None:
    """Raises `ValueError` for what is no URL of this kind, and for one that carries a secret."""
    try:
        parts = TypeAdapter(kind).validate_python(url)
    except ValidationError:
        raise ValueError(example) from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"no user, password, query or fragment belongs here: a key goes into {secret_setting}")


def redis_address(address: SecretStr) -> SecretStr:
    """Feast's form of a Redis address: `host:port[,host:port...][,name=value...]`, whatever form was given.

    User and password become JSON strings of escapes alone: Feast splits at commas and reads values as JSON, and the
    text passes through YAML. So each may hold any character.
    """
    text = address.get_secret_value()
    try:
        parts = _redis_parts_of_url(text) if "://" in text else _redis_parts(text)
    except (ValidationError, ValueError):
        raise ValueError(
            "a Redis is named host:port, further ones and name=value options after commas, or as a URL: "
            "redis://user:password@host:port/db (rediss:// for TLS), special characters percent-encoded"
        ) from None
    return SecretStr(",".join(parts))


def _redis_parts_of_url(url: str) -> list[str]:
    dsn = TypeAdapter(RedisDsn).validate_python(url)
    options = {"username": dsn.username, "password": dsn.password}
    return [
        f"{dsn.host}:{dsn.port}",
        f"db={int((dsn.path or '/0').removeprefix('/') or 0)}",
        *(["ssl=true"] if dsn.scheme == "rediss" else []),
        *(f"{name}={_escaped(unquote(value))}" for name, value in options.items() if value),
        *(f"{name}={value}" for name, value in dsn.query_params()),
    ]


def _redis_parts(text: str) -> list[str]:
    parts = []
    for part in text.split(","):
        name, is_option, value = part.partition("=")
        if not is_option:
            dsn = TypeAdapter(RedisDsn).validate_python(f"redis://{part}")
            if part != f"{dsn.host}:{dsn.port}":
                raise ValueError(part)
        parts.append(f"{name}={_escaped(value)}" if name in ("username", "password") else part)
    if "=" in parts[0]:
        raise ValueError(parts[0])
    return parts


def _escaped(text: str) -> str:
    """A JSON string in which every character but letters and digits is an escape; what has this form already stays."""
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        return text
    return f'"{"".join(map(_escaped_character, text))}"'


def _escaped_character(character: str) -> str:
    if character.isascii():
        return character if character.isalnum() else f"\\u{ord(character):04x}"
    return json.dumps(character)[1:-1]
