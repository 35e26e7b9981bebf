"""Refuse request bodies that are too large for the memory or take too long."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 512 * 1024  # an allow list and a deny list of full length fit
MAX_BODY_SECONDS = 10.0


class BodyLimit:
    """ASGI middleware: a body beyond the limits ends in 413 or 408."""

    def __init__(self, app: ASGIApp, max_seconds: float = MAX_BODY_SECONDS) -> None:
        self.app = app
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        num_bytes, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._max_seconds

        async def limited() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:
                return await receive()  # waits for the client to leave
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request body took longer than {self._max_seconds:g} s") from None
            num_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if num_bytes > MAX_BODY_BYTES:
                raise HTTPException(413, f"the request body is larger than {MAX_BODY_BYTES} bytes")
            return message

        await self.app(scope, limited, send)
