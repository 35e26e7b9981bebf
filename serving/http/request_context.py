"""Give every request an id, and record its time and status in the log and the metrics."""

import contextvars
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.telemetry.metrics import Metrics

HEADER = "X-Request-ID"
WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,63}")
NO_ROUTE = "none"

request_id_of: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

log = logging.getLogger("grasp.serving.access")


class RequestContext:
    """ASGI middleware. It keeps a well-formed `X-Request-ID` or makes a new id, and returns it in the same header."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = valid_or_new_id(Headers(scope=scope).get(HEADER))
        scope.setdefault("state", {})["request_id"] = request_id
        token = request_id_of.set(request_id)
        status, started = 500, time.perf_counter()  # 500 if the application raises: a handler outside answers so

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started)
            request_id_of.reset(token)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Record the route's template instead of the path, which may hold a user id or a query."""
        route = getattr(scope.get("route"), "path_format", NO_ROUTE)
        self._metrics.count_request(route, status, seconds)
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "milliseconds": round(seconds * 1000, 2),
            "roles": sorted(scope["state"].get("roles", [])),
        }
        log.info("request", extra={"fields": fields})


def valid_or_new_id(given: str | None) -> str:
    """The given id if it is well-formed, because ids go into logs and tables; else a new one."""
    return given if given and WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
