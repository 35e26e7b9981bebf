"""Around every request: its id, one line in the log, its time and status for Prometheus."""

import contextvars
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.telemetry.metrics import Telemetry

HEADER = "X-Request-ID"
WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,63}")
NO_ROUTE = "none"

request_id_of: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

log = logging.getLogger("grasp.serving.access")


class RequestContext:
    """ASGI middleware. A well-formed `X-Request-ID` is kept, any other replaced; the answer's header carries it."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = accepted(Headers(scope=scope).get(HEADER))
        scope.setdefault("state", {})["request_id"] = request_id
        token = request_id_of.set(request_id)
        status, started = 500, time.perf_counter()  # what an exception becomes outside of this middleware

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self._tell(scope, status, time.perf_counter() - started)
            request_id_of.reset(token)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        """The route's template stands for the path, which may name a user or hold a query."""
        route = getattr(scope.get("route"), "path_format", NO_ROUTE)
        self._telemetry.count_request(route, status, seconds)
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "milliseconds": round(seconds * 1000, 2),
            "roles": sorted(scope["state"].get("roles", [])),
        }
        log.info("request", extra={"fields": fields})


def accepted(given: str | None) -> str:
    """The id that was given, or a new one unless that is well-formed: it ends up in logs and tables."""
    return given if given and WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
