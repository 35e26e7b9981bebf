"""Refuse request bodies that are too large or too slow."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 1024 * 1024  # enough for an allow list and a deny list of full length
# Impressions may be whole answers: a hundred of 200 items, with titles of 150 characters, take 23 MiB.
MAX_BYTES_OF = {"/v1/impressions": 32 * MAX_BODY_BYTES}
MAX_BODY_SECONDS = 10.0


class BodyLimit:
    """ASGI middleware that answers 413 to a body that is too large and 408 to one that is too slow."""

    def __init__(self, app: ASGIApp, max_seconds: float = MAX_BODY_SECONDS) -> None:
        self.app = app
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        num_bytes, is_complete = 0, False
        max_bytes = MAX_BYTES_OF.get(scope["path"], MAX_BODY_BYTES)
        deadline = asyncio.get_running_loop().time() + self._max_seconds

        async def limited() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:
                return await receive()  # waits for the client to disconnect
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request body took longer than {self._max_seconds:g} s") from None
            num_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if num_bytes > max_bytes:
                raise HTTPException(413, f"the request body is larger than {max_bytes} bytes")
            return message

        await self.app(scope, limited, send)
