"""A head without an end is refused, and silent, slow or deaf clients are cut off; all others are served."""

import socket
import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, HTTPException, Request, Response

from serving.http.connection_limits import MAX_HEAD_BYTES, LimitedConnection

PATIENCE_SECONDS = 60
LARGE = 50_000_000  # more than the buffers between server and client hold


class Impatient(LimitedConnection):
    head_seconds = read_seconds = 0.5


async def length(request: Request) -> int:
    return len(await request.body())


async def refused() -> None:
    raise HTTPException(401)


async def large() -> Response:
    return Response(b"l" * LARGE)


@pytest.fixture
def client(run_server) -> Iterator[socket.socket]:
    """A connection to a server that answers with the length of a body."""
    app = FastAPI()
    app.post("/length")(length)
    with socket.create_connection(
        ("127.0.0.1", run_server(app, http=LimitedConnection)), PATIENCE_SECONDS
    ) as connection:
        yield connection


@pytest.fixture
def hasty(run_server) -> Iterator[socket.socket]:
    """A connection to a server that waits half a second for a head or a reader, and four seconds between requests."""
    app = FastAPI()
    app.post("/length")(length)
    app.post("/refused")(refused)
    app.get("/large")(large)
    port = run_server(app, http=Impatient, timeout_keep_alive=4)
    with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as connection:
        yield connection


def num_received(client: socket.socket, pause_seconds: float = 0.0) -> int:
    """Bytes until the server ends the connection; fails when it does not within a minute."""
    num = 0
    try:
        while piece := client.recv(1_000_000):
            num += len(piece)
            time.sleep(pause_seconds)
    except ConnectionResetError:
        pass
    return num


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


def test_a_silent_connection_is_closed(hasty):
    assert num_received(hasty) == 0


def test_a_head_that_dribbles_is_closed(hasty):
    started = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - started < PATIENCE_SECONDS:
            hasty.sendall(b"G")
            time.sleep(0.05)


def test_an_idle_connection_is_closed_after_its_answers(hasty):
    for _ in range(2):
        hasty.sendall(b"POST /length HTTP/1.1\r\nHost: here\r\nContent-Length: 1\r\n\r\nb")
        assert hasty.recv(65_536).startswith(b"HTTP/1.1 200 ")

    assert num_received(hasty) == 0


def test_a_body_that_dribbles_after_its_answer_is_closed(hasty):
    hasty.sendall(b"POST /refused HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\n")
    assert hasty.recv(65_536).startswith(b"HTTP/1.1 401 ")
    started = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - started < PATIENCE_SECONDS:
            hasty.sendall(b"b")
            time.sleep(0.05)


def test_a_body_that_comes_after_its_answer_costs_no_later_request(hasty):
    hasty.sendall(b"POST /refused HTTP/1.1\r\nHost: here\r\nContent-Length: 1\r\n\r\n")
    assert hasty.recv(65_536).startswith(b"HTTP/1.1 401 ")
    hasty.sendall(b"b")
    time.sleep(1.5)

    hasty.sendall(b"POST /length HTTP/1.1\r\nHost: here\r\nContent-Length: 1\r\n\r\nb")

    assert hasty.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_does_not_take_its_answer_is_cut_off(hasty):
    hasty.sendall(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")
    time.sleep(3)

    assert num_received(hasty) < LARGE


def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(hasty):
    hasty.sendall(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")

    assert num_received(hasty, pause_seconds=0.02) > LARGE
