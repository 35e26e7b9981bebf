"""Refuse requests whose request line and headers together are too large."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 512 * 1024  # far more than proxies allow


class HeadLimit(HttpToolsProtocol):
    """uvicorn's protocol with a limit on the head (request line and headers), which uvicorn itself buffers without end.

    One read is smaller than the limit, so a complete head, or one that follows a body, is never refused.
    """

    _is_in_head = False
    _num_head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._is_in_head or self.transport.is_closing():
            return
        self._num_head_bytes += len(data)
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"request line and headers are larger than {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        self._is_in_head, self._num_head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()
