"""The HTTP application: one feature lookup, one pass of the ranker, answers with reasons.

python -m serving.http.app        http://127.0.0.1:8100/docs shows the endpoints (its page loads Swagger UI from a CDN)
"""

import argparse
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from grasp.environment import process_environment
from grasp.settings import Settings, SettingsError
from serving.answers.search import Search
from serving.http.access import Access, AccessError
from serving.http.body_limit import BodyLimit
from serving.http.errors import add_error_handlers
from serving.http.explorer import explorer_router
from serving.http.head_limit import HeadLimit
from serving.http.logs import configure_logging
from serving.http.request_context import RequestContext
from serving.http.routes import about_features, about_itself, about_users
from serving.http.service import OpenUsers, Service
from serving.lookup.online_store import FeastUserFeatures
from serving.telemetry.metrics import share_metrics

GRACE_SECONDS = 30  # for requests under way when the server is told to stop
# Within which a worker must answer its supervisor, or it is replaced. A worker that is starting imports torch before it
# can: with uvicorn's five seconds a busy machine would kill every worker just before it is there, again and again.
ANSWER_SECONDS = 120
# What an open service may be called. Otherwise a page from elsewhere, whose own name leads to 127.0.0.1, could have a
# browser ask it.
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
# For how long a thread that loads a release or answers a batch may keep the interpreter from the event loop, each time
# that a pass of the ranker wants it back (docs/decisions/one-thread-answers.md). Python's default is ten times as long.
SWITCH_SECONDS = 0.0005
IDLE_SECONDS = 75  # longer than proxies keep idle connections (60): none is closed while a request is on its way


def create_app(
    settings: Settings,
    open_users: OpenUsers = FeastUserFeatures,
    poll_seconds: float = 1.0,
    access: Access | None = None,
    search: Search | None = None,
) -> FastAPI:
    """The application; `access` is open unless given."""
    access = access or Access({})
    service = Service(settings, open_users, search)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start(poll_seconds)
        yield
        service.stop()

    app = FastAPI(title="GRASP", description="Sequential recommendations with reasons.", lifespan=lifespan)
    app.state.service = service
    app.add_middleware(BodyLimit)
    if access.is_open:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL_HOSTS, settings.host])
    app.add_middleware(RequestContext, telemetry=service.telemetry)  # added last: the outer one
    add_error_handlers(app)
    for router in (about_users(service, access), about_features(service, access), about_itself(service, access)):
        app.include_router(router)
    app.include_router(explorer_router())
    return app


def create_configured_app() -> FastAPI:
    """The application of this process's environment; each worker calls it once."""
    configure_logging()
    sys.setswitchinterval(SWITCH_SECONDS)
    return create_app(Settings.load(), access=Access.from_environment(os.environ))


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m serving.http.app",
        description="The HTTP server for the release in force. It has no options: GRASP_HOST, GRASP_PORT, "
        "GRASP_SERVING_WORKERS and the other variables say how it runs (docs/serving.md, .env.example).",
    ).parse_args()
    try:
        settings = Settings.load()
        Access.from_environment(os.environ).require_safe_host(settings.host)
    except (SettingsError, AccessError) as error:
        sys.exit(f"error: {error}")
    if not os.environ.get("OMP_NUM_THREADS"):
        # Begin again as `make serve` begins: NumPy, imported above, would keep a thread for each core.
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, process_environment(settings))  # noqa: S606 - this very command
    configure_logging()
    if settings.serving_workers > 1:
        share_metrics(settings)
    uvicorn.run(
        "serving.http.app:create_configured_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.serving_workers,
        http=HeadLimit,
        ws="none",
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_worker_healthcheck=ANSWER_SECONDS,
        log_config=None,
        access_log=False,
    )


if __name__ == "__main__":
    main()
