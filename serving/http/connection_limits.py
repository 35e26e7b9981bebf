"""Close connections that are silent, slow, or send a head without an end."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 512 * 1024  # far more than proxies allow
HEAD_SECONDS = 10.0  # from the first byte of a request, or from connecting, to the end of its head
READ_SECONDS = 30.0  # for a client that takes nothing of its answer
IDLE_SECONDS = 75  # between requests; longer than proxies keep connections (60 s), so none is closed under a request


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's protocol with the limits that it lacks: it waits without end, and buffers the head without end.

    One read is smaller than the limit of the head, so a complete head, or one that follows a body, is never refused.
    """

    head_seconds, read_seconds = HEAD_SECONDS, READ_SECONDS
    _is_in_head = _is_in_message = False
    _num_head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_read_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"request line and headers are larger than {MAX_HEAD_BYTES} bytes")
            self._await_head()
        elif self.cycle and self.cycle.response_complete:  # the rest of a body that nobody reads
            if self._is_in_message:
                self._await_head()
            else:
                self._stop_head_timer()
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def on_message_begin(self) -> None:
        self._is_in_head, self._is_in_message, self._num_head_bytes = True, True, 0
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._is_in_message = False
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_read_timer()
        super().resume_writing()

    def _await_reader(self, num_bytes: int) -> None:
        """Cut the connection when so many bytes still wait after `read_seconds`."""
        self._read_timer = self.loop.call_later(self.read_seconds, self._check_reader, num_bytes)

    def _check_reader(self, num_bytes: int) -> None:
        num_left = self.transport.get_write_buffer_size()
        if num_left < num_bytes:
            self._await_reader(num_left)
        else:
            self.transport.abort()

    def _await_head(self) -> None:
        """Close the connection unless a head is complete in time. Further bytes do not prolong the time."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_read_timer(self) -> None:
        if self._read_timer:
            self._read_timer.cancel()
            self._read_timer = None
