"""A load's schedule, its percentiles, and that nobody's wait is left out of them."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving import load
from benchmarks.serving.load import Answer, Load, bodies_of, num_slots, percentiles, read_answers


def answer(due: float, done: float, status: int = 200, **changed) -> Answer:
    values = {"slot": 0, "sent": due, "release": "", "fallback": "", "store_problem": "", "marks": ()} | changed
    return Answer(due=due, done=done, status=status, **values)


def test_percentiles_are_values_that_occurred():
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert percentiles(list(range(1, 101)))["p99"] == 100
    assert percentiles([]) is None


def test_a_wait_for_the_connection_counts():
    assert answer(due=10.0, sent=10.4, done=10.5).milliseconds == pytest.approx(500)


@pytest.mark.parametrize(("rate", "seconds", "num"), [(250, 60, 15_000), (10, 0.25, 3), (3, 1, 3)])
def test_slots_are_those_due_before_the_end(rate, seconds, num):
    assert num_slots(rate, seconds) == num


def test_an_unanswered_request_is_an_error_like_another_status():
    found = Load([answer(0, 1), answer(1, 2, status=503)], num_due=4, num_socket_errors=1, seconds=2.0)

    assert found.num_errors == 3
    assert found.summary()["answers_per_second"] == 1.0


def test_a_request_that_was_sent_again_because_its_connection_broke_is_an_error():
    found = Load([answer(0, 1), answer(1, 2)], num_due=2, num_socket_errors=1, seconds=2.0)

    assert found.num_errors == 1


def test_what_wrk_wrote_is_read_back(tmp_path):
    (tmp_path / "thread-0.tsv").write_text(
        "0\t1000000\t1500000\t2000000\t200\t1998-03-01-ab\tlast_good\tstore_error\tr1,?\n"
        "2\t3000000\t3000000\t4000000\t422\t\t\t\t\n"
    )

    assert list(read_answers(tmp_path)) == [
        Answer(0, 1.0, 1.5, 2.0, 200, "1998-03-01-ab", "last_good", "store_error", ("r1", "?")),
        Answer(2, 3.0, 3.0, 4.0, 422, "", "", "", ()),
    ]


def test_an_open_loop_needs_a_rate():
    with pytest.raises(ValueError, match="above 0"):
        load.open_loop("http://127.0.0.1:1", [], 0, 1)


def test_a_missing_wrk_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setenv("PATH", "")

    with pytest.raises(FileNotFoundError, match="apt-get install -y wrk"):
        load.require_wrk()


# --- against wrk itself


class SlowServer:
    """Answers every POST with the same body; stands still once, for a while, or breaks the connection instead."""

    BODY = (
        b'{"release":"1998-03-01-ab","fallback":null,"store_problem":"store_error",'
        b'"items":[{"title":"r1|A \\"b\\""},{"title":"r2|C"},{"title":"r1|D"}]}'
    )

    def __init__(self, still_seconds: float | None) -> None:
        self._still_seconds, self._num_answered = still_seconds, 0
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._answer, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(self.BODY)
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                (length,) = (line for line in request.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                self._num_answered += 1
                if self._num_answered == 20 and self._still_seconds is None:
                    raise ConnectionAbortedError
                if self._num_answered == 20:
                    await asyncio.sleep(self._still_seconds)
                writer.write(head + self.BODY)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@pytest.fixture
def slow_server(require_program) -> Iterator[SlowServer]:
    require_program("wrk", "wrk")
    server = SlowServer(still_seconds=1.0)
    yield server
    server.close()


@pytest.mark.integration
def test_an_open_loop_keeps_its_schedule_and_counts_who_had_to_wait(slow_server):
    found = load.open_loop(slow_server.url, bodies_of(["a", "b", "c"]), rate=50, seconds=2.0, connections=2)

    assert sorted(each.slot for each in found.answers) == list(range(100))
    assert (found.num_due, found.num_errors, found.num_socket_errors) == (100, 0, 0)
    first = found.answers[0]
    assert [each.due - first.due for each in found.answers] == pytest.approx([n / 50 for n in range(100)], abs=0.002)
    # One connection stands still for a second, in which 25 of its requests were due.
    assert sum(each.milliseconds > 200 for each in found.answers) >= 18
    assert {(each.release, each.fallback, each.store_problem, each.marks) for each in found.answers} == {
        ("1998-03-01-ab", "", "store_error", ("r1", "r2"))
    }


@pytest.mark.integration
def test_a_closed_loop_asks_as_soon_as_it_has_an_answer(slow_server):
    found = load.closed_loop(slow_server.url, bodies_of(["a"]), seconds=2)

    assert found.num_errors == 0
    assert len(found.answers) > 25
    assert all(before.done <= after.sent for before, after in zip(found.answers, found.answers[1:], strict=False))


@pytest.mark.integration
def test_a_connection_that_breaks_under_a_request_shows_though_wrk_asks_again(require_program):
    require_program("wrk", "wrk")
    server = SlowServer(still_seconds=None)

    found = load.open_loop(server.url, bodies_of(["a"]), rate=50, seconds=1.0, connections=2)

    server.close()
    assert (len(found.answers), found.num_due) == (50, 50)
    assert (found.num_socket_errors, found.num_errors) == (1, 1)


@pytest.mark.integration
def test_a_load_on_nobody_is_all_errors(require_program, tmp_path: Path):
    require_program("wrk", "wrk")

    with pytest.raises(ValueError, match="wrk failed"):
        load.open_loop("http://127.0.0.1:9", bodies_of(["a"]), rate=5, seconds=1.0, connections=1)
