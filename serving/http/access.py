"""Access control: bearer tokens with roles, read from environment variables.

    GRASP_TOKENS_SERVE      recommendations, scores, users' feature rows, outcomes: the company's own services
    GRASP_TOKENS_READ       recommendations, scores, items, users, search, releases: analysts and the Explorer
    GRASP_TOKENS_OPERATE    releases and metrics: Prometheus and operators

Each holds tokens separated by commas, either plain or as `sha256:` and the hex digest. They are not part of `Settings`,
so that no list of settings can leak them. Without tokens the service is open and binds to the loopback interface only.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, HTTPException, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

Role = Literal["serve", "read", "operate"]
VARIABLES: dict[Role, str] = {
    "serve": "GRASP_TOKENS_SERVE",
    "read": "GRASP_TOKENS_READ",
    "operate": "GRASP_TOKENS_OPERATE",
}
MIN_TOKEN_CHARS = 16
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_bearer = HTTPBearer(auto_error=False, description="A token with the role serve, read or operate.")


class AccessError(ValueError):
    """Tokens are wrong or missing. The message names the variable, never a value."""


@dataclass(frozen=True, repr=False)
class Access:
    """The digests of each role's tokens. Plain tokens are not kept."""

    digests: Mapping[Role, Sequence[bytes]]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Access":
        """Raises `AccessError` for a token that is too short or malformed."""
        return cls({role: _digests(variable, environ.get(variable, "")) for role, variable in VARIABLES.items()})

    @property
    def is_open(self) -> bool:
        return not any(self.digests.values())

    def roles(self, token: str) -> set[Role]:
        """The roles of a token. All digests are always compared, each in constant time."""
        given = hashlib.sha256(token.encode(errors="replace")).digest()
        return {
            role
            for role, digests in self.digests.items()
            if sum([hmac.compare_digest(given, digest) for digest in digests])
        }

    def require_safe_host(self, host: str) -> None:
        """Raises `AccessError` when a service without tokens would be reachable from other machines."""
        if self.is_open and not _is_loopback(host):
            raise AccessError(
                f"GRASP_HOST={host} is reachable from other machines: set {', '.join(VARIABLES.values())}, "
                "or bind to 127.0.0.1"
            )

    def requires(self, *roles: Role) -> "list[RequiredRoles]":
        """Dependencies for routes of a router with `TokenRoute` that admit only these roles."""
        return [] if self.is_open else [RequiredRoles(self, roles)]


@dataclass(frozen=True, eq=False)  # FastAPI hashes its dependencies
class RequiredRoles:
    """The roles of a route. As a dependency it only documents them: `TokenRoute` has checked the token by then."""

    access: Access
    roles: Sequence[Role]

    async def __call__(
        self, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> None:  # async, because a plain function would take a thread for each request
        return

    async def admit(self, request: Request) -> None:
        """Raises 401 without a known token, 403 with another role."""
        credentials = await _bearer(request)
        held = self.access.roles(credentials.credentials) if credentials else set()
        if not held:
            raise HTTPException(401, "a valid bearer token is required", headers={"WWW-Authenticate": "Bearer"})
        request.state.roles = held
        if held.isdisjoint(self.roles):
            raise HTTPException(403, f"the token's role may not do this; required: {' or '.join(self.roles)}")


class TokenRoute(APIRoute):
    """Checks the token before the body is read: who may not call a route costs it no parsing and learns no limit."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        required = [each.dependency for each in self.dependencies if isinstance(each.dependency, RequiredRoles)]

        async def handle_admitted(request: Request) -> Response:
            for roles in required:
                await roles.admit(request)
            return await handle(request)

        return handle_admitted


def has_serve_role(request: Request) -> bool:
    """Whether the caller has the role serve. Anyone has it in an open service."""
    return "serve" in getattr(request.state, "roles", {"serve"})


def _digests(variable: str, listed: str) -> list[bytes]:
    tokens = [token.strip() for token in listed.split(",") if token.strip()]
    return [_digest(variable, token) for token in tokens]


def _digest(variable: str, token: str) -> bytes:
    if token.startswith("sha256:"):
        hashed = _HASHED.fullmatch(token)
        if not hashed:
            raise AccessError(f"{variable}: sha256: must be followed by 64 hexadecimal digits in lower case")
        return bytes.fromhex(hashed[1])
    if len(token) < MIN_TOKEN_CHARS:
        raise AccessError(f"{variable}: a token must have at least {MIN_TOKEN_CHARS} characters")
    return hashlib.sha256(token.encode()).digest()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
