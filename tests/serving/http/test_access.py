"""Tokens and roles: who is admitted, who is not, and that no token is ever shown."""

import asyncio
import hashlib

import pytest
from fastapi import APIRouter, Depends, FastAPI

from grasp.manifest import manifest_in_force, release_folder
from serving.http.access import Access, AccessError, TokenRoute
from serving.http.body_limit import MAX_BODY_BYTES

SERVE, READ, OPERATE = "serve-0123456789abcdef", "read-0123456789abcdef", "operate-0123456789abcdef"
HASHED = f"sha256:{hashlib.sha256(READ.encode()).hexdigest()}"


@pytest.fixture
def access() -> Access:
    return Access.from_environment(
        {
            "GRASP_TOKENS_SERVE": f"other-0123456789abcdef, {SERVE}",
            "GRASP_TOKENS_READ": HASHED,
            "GRASP_TOKENS_OPERATE": OPERATE,
        }
    )


def test_plain_and_hashed_tokens_have_their_roles(access):
    assert [access.roles(token) for token in (SERVE, READ, OPERATE)] == [{"serve"}, {"read"}, {"operate"}]
    assert access.roles(HASHED) == access.roles("") == access.roles(SERVE[:-1]) == set()


def test_without_tokens_the_service_is_open_on_the_loopback_interface_only(access):
    nobody = Access.from_environment({"GRASP_TOKENS_SERVE": " , "})

    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        nobody.require_safe_host(host)
    for host in ("0.0.0.0", "::", "192.168.1.2", "serving.example.com", ""):  # noqa: S104
        with pytest.raises(AccessError, match="GRASP_TOKENS_SERVE"):
            nobody.require_safe_host(host)
        access.require_safe_host(host)


@pytest.mark.parametrize("token", ["short", "sha256:abc"])
def test_a_wrong_token_is_named_by_its_variable_and_not_shown(token):
    with pytest.raises(AccessError, match="GRASP_TOKENS_READ") as error:
        Access.from_environment({"GRASP_TOKENS_READ": token})
    assert token not in str(error.value).replace("sha256: is", "")


def test_no_token_appears_in_text(access, settings):
    assert SERVE not in repr(access) + repr(vars(access))
    assert "TOKENS_SERVE" not in repr(settings) + str(settings.variables())


@pytest.mark.parametrize(
    ("token", "path", "status"),
    [
        (None, "/v1/items/i1", 401),
        ("nonsense", "/v1/items/i1", 401),
        (SERVE, "/v1/items/i1", 403),
        (READ, "/v1/items/i1", 200),
        (SERVE, "/v1/items/i1/similar", 200),
        (READ, "/v1/users/u1", 200),
        (SERVE, "/v1/users/u1", 403),
        (SERVE, "/v1/users/u1/features", 200),
        (READ, "/v1/users/u1/features", 200),
        (OPERATE, "/v1/users/u1/features", 403),
        (READ, "/metrics", 403),
        (OPERATE, "/metrics", 200),
        (OPERATE, "/v1/releases", 200),
        (OPERATE, "/v1/users/u1", 403),
        (None, "/livez", 200),
        (None, "/readyz", 200),
    ],
)
def test_each_endpoint_admits_its_roles(publish_day, serve, access, token, path, status):
    publish_day()

    response = serve(access=access).get(path, headers={"Authorization": f"Bearer {token}"} if token else {})

    assert response.status_code == status
    if status == 401:
        assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8100", 200),
        ("localhost", 200),
        ("[::1]:8100", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example:8100", 400),
    ],
)
def test_an_open_service_accepts_local_host_names_only(publish_day, serve, access, host, status):
    """A page whose host name resolves to this machine is refused; with tokens any name is accepted."""
    publish_day()

    response = serve().get("/v1/users/u1", headers={"Host": host})

    assert response.status_code == status
    assert response.headers["X-Request-ID"]
    with_token = {"Host": host, "Authorization": f"Bearer {READ}"}
    assert serve(access=access).get("/v1/users/u1", headers=with_token).status_code == 200


def test_readiness_shows_error_texts_only_without_tokens_configured(publish_day, serve, access, settings):
    nothing = serve(access=access).get("/readyz").json()
    first = publish_day("1998-03-01")
    client = serve(access=access)
    publish_day("1998-03-02", model="broken")
    (release_folder(settings.releases, manifest_in_force(settings.releases)) / "model" / "model.safetensors").unlink()
    (settings.releases / "experiment.json").write_text("{")

    client.app.state.service.check()

    no_release = {"ready": False, "reason": "no_release", "release": None, "problem": "not_loaded"}
    assert nothing == no_release | {"experiment_problem": None}
    kept = {"ready": True, "reason": None, "release": first, "problem": "not_loaded"}
    assert client.get("/readyz").json() == kept | {"experiment_problem": "not_running"}
    listed = client.get("/v1/releases", headers={"Authorization": f"Bearer {OPERATE}"}).json()
    assert "model.safetensors is missing" in listed["problem"]


@pytest.mark.parametrize(
    ("body", "with_token"),
    [("{", 422), ('{"user_id": 7}', 422), ("x" * (MAX_BODY_BYTES + 1), 413)],
    ids=["no JSON", "wrong field", "too large"],
)
def test_the_token_is_checked_before_the_body(publish_day, serve, access, body, with_token):
    publish_day()
    client = serve(access=access)

    statuses = [
        client.post(
            "/v1/recommendations",
            content=body,
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {}),
        ).status_code
        for token in (None, OPERATE, SERVE)
    ]

    assert statuses == [401, 403, with_token]


def test_the_token_is_checked_before_an_id_in_the_address(serve, access):
    assert serve(access=access).get(f"/v1/items/{'i' * 513}").status_code == 401


def test_a_refused_request_reads_no_body(access):
    """Not even a small one, which would keep the connection waiting for it."""

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> dict:
        raise AssertionError("the body was asked for")

    statuses: list[int] = []
    app = FastAPI()
    router = APIRouter(route_class=TokenRoute)

    @router.post("/", dependencies=[Depends(each) for each in access.requires("serve")])
    async def take(body: dict) -> None: ...

    app.include_router(router)
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [], "state": {}}
    asyncio.run(app(scope, receive, send))

    assert statuses == [401]


def test_only_the_serve_role_sends_outcomes(publish_day, serve, access):
    publish_day()
    client = serve(access=access)
    body = {"outcomes": [{"request_id": "visit-0001", "item_id": "i1", "kind": "click"}]}

    statuses = [
        client.post("/v1/outcomes", json=body, headers={"Authorization": f"Bearer {token}"}).status_code
        for token in (SERVE, READ)
    ]

    assert statuses == [202, 403]
