"""Ids in addresses: percent-encoded until the route is chosen, so that a slash within an id separates nothing.

With decoded paths, the user `x/similar` (`/v1/users/x%2Fsimilar`) would meet the route of the users similar to `x`.
"""

from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send

PREFIXES = (b"/v1/items/", b"/v1/users/")


class EncodedIds:
    """ASGI middleware that keeps the paths of items and users as they were sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw_path = scope.get("raw_path") or b""
        if raw_path.startswith(PREFIXES):
            scope["path"] = raw_path.decode("ascii")
        await self.app(scope, receive, send)


class EncodedId(Convertor[str]):
    """`{item_id:id}`: the rest of such a path, decoded. A plain slash belongs to the id as well."""

    regex = ".*"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        raise NotImplementedError("no address is made from an id")


register_url_convertor("id", EncodedId())
