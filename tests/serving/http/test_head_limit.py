"""A head without an end is refused; complete heads are not, whatever came before on the connection."""

import socket
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request

from serving.http.head_limit import MAX_HEAD_BYTES, HeadLimit

PATIENCE_SECONDS = 60


async def length(request: Request) -> int:
    return len(await request.body())


@pytest.fixture
def client(run_server) -> Iterator[socket.socket]:
    """A connection to a server that answers with the length of a body."""
    app = FastAPI()
    app.post("/length")(length)
    with socket.create_connection(("127.0.0.1", run_server(app, http=HeadLimit)), PATIENCE_SECONDS) as connection:
        yield connection


def test_a_head_without_an_end_is_refused(client):
    client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nX-Long: ")
    piece, num_sent = b"a" * 65_536, 0
    with pytest.raises(OSError):
        while num_sent < 64 * MAX_HEAD_BYTES:
            client.sendall(piece)
            num_sent += len(piece)

    assert num_sent < 64 * MAX_HEAD_BYTES


def test_requests_with_bodies_one_after_another_are_answered(client):
    body = b"b" * (MAX_HEAD_BYTES - 1)
    request = f"POST /length HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    for _ in range(4):
        client.sendall(request)
        answer = client.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(str(len(body)).encode())
