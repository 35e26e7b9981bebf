"""A language model's server that can be told how to fail (`fault_server.py`), in a process of its own."""

import datetime
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("fault_server.py")


class ModelServer:
    """The server's process. `script` says how it fails, `seen` what it was asked."""

    def __init__(self, *arguments: str, scheme: str = "http") -> None:
        command = [sys.executable, str(PROGRAM), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.root = f"{scheme}://127.0.0.1:{int(self.process.stdout.readline())}"
        self.url = f"{self.root}/v1"

    def call(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.root + path, data)) as answer:  # noqa: S310 - our own
            return json.load(answer)

    def script(self, **given: Any) -> None:
        """`prompts={key: [behaviour, ...]}`, `numbers=[behaviour, ...]`, `default=behaviour`."""
        self.call("/script", given)

    def seen(self) -> dict[str, Any]:
        seen: dict[str, Any] = self.call("/seen")
        return seen

    def num_requests(self) -> int:
        return sum(self.seen()["requests"].values())

    def stop(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="session")
def _model_server() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    server.stop()


@pytest.fixture
def model_server(_model_server: ModelServer) -> ModelServer:
    """A server that answers everything at once, until it is told otherwise."""
    _model_server.call("/forget", {})
    return _model_server


@pytest.fixture
def tls_model_server(tmp_path: Path) -> Iterator[ModelServer]:
    """A server whose certificate nobody has signed but itself."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(self_signed_certificate())
    server = ModelServer("--certificate", str(certificate), scheme="https")
    yield server
    server.stop()


def self_signed_certificate() -> bytes:
    """Key and certificate of 127.0.0.1 as PEM, made for this test."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    encoded_key = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    return encoded_key + certificate.public_bytes(serialization.Encoding.PEM)
