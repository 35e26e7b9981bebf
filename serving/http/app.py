"""Start the HTTP server.

grasp serve        http://127.0.0.1:8100/docs lists the endpoints
"""

import argparse
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from grasp.environment import prepare
from grasp.preflight import listen, require_feature_store, require_port
from grasp.settings import Settings, SettingsError
from serving.answers.search import Search
from serving.http.access import Access, AccessError
from serving.http.body_limit import BodyLimit
from serving.http.connection_limits import IDLE_SECONDS, LimitedConnection
from serving.http.docs import docs_router
from serving.http.encoded_ids import EncodedIds
from serving.http.errors import add_error_handlers
from serving.http.explorer import explorer_router
from serving.http.logs import configure_logging
from serving.http.request_context import RequestContext
from serving.http.routes import feature_routes, operations_routes, recommendation_routes
from serving.http.service import OpenUserStore, Service
from serving.lookup.online_store import FeastUserStore
from serving.telemetry.metrics import share_metrics

GRACE_SECONDS = 30  # for running requests when the server is told to stop
# A worker that does not answer its supervisor within this time is replaced. A starting worker imports torch first. With
# uvicorn's default of 5 s, a busy machine would kill every worker before it has started.
ANSWER_SECONDS = 120
# The host names that a service without tokens accepts. They protect against DNS rebinding: a foreign page whose name
# resolves to 127.0.0.1 must not make a browser call the service.
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
# How long a thread that loads a release or answers a batch may hold the interpreter when the event loop needs it
# (docs/decisions/one-thread-answers.md). Python's default is ten times as long.
SWITCH_SECONDS = 0.0005

log = logging.getLogger("grasp.serving")


def create_app(
    settings: Settings,
    open_user_store: OpenUserStore = FeastUserStore,
    poll_seconds: float = 1.0,
    access: Access | None = None,
    search: Search | None = None,
) -> FastAPI:
    """The application; without `access` anyone may call it."""
    access = access or Access({})
    service = Service(settings, open_user_store, search)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start(poll_seconds)
        yield
        service.stop()

    app = FastAPI(
        title="GRASP",
        description="Sequential recommendations with reasons.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from another host
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(BodyLimit)
    app.add_middleware(EncodedIds)
    if access.is_open:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL_HOSTS, settings.host])
    app.add_middleware(RequestContext, metrics=service.metrics)  # added last, so it is the outermost
    add_error_handlers(app)
    for routes in (recommendation_routes, feature_routes, operations_routes):
        app.include_router(routes(service, access))
    app.include_router(docs_router())
    app.include_router(explorer_router())
    return app


def create_configured_app() -> FastAPI:
    """The application with the settings of the environment. Each worker calls this once."""
    configure_logging()
    sys.setswitchinterval(SWITCH_SECONDS)
    return create_app(Settings.load(), access=Access.from_environment(os.environ))


def main() -> None:
    argparse.ArgumentParser(
        prog="grasp serve",
        description="The HTTP server for the release in force. It has no options: GRASP_HOST, GRASP_PORT, "
        "GRASP_SERVING_WORKERS and the other variables say how it runs (docs/serving.md, .env.example).",
    ).parse_args()
    try:
        settings = Settings.load()
        Access.from_environment(os.environ).require_safe_host(settings.host)
        # Before the release is loaded, which takes seconds: a second server then finds the port taken and ends.
        listening = listen("GRASP_PORT", settings.host, settings.port)
    except (SettingsError, AccessError) as error:
        sys.exit(f"error: {error}")
    configure_logging()
    if settings.serving_workers > 1:
        share_metrics(settings)
    config = uvicorn.Config(
        "serving.http.app:create_configured_app",
        factory=True,
        workers=settings.serving_workers,
        http=LimitedConnection,
        ws="none",
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_worker_healthcheck=ANSWER_SECONDS,
        log_config=None,
        access_log=False,
    )
    log.info("listening on http://%s:%d; requests wait until the release is loaded", settings.host, settings.port)
    run(config, listening)


def run(config: uvicorn.Config, listening: socket.socket) -> None:
    """Serve on a socket until a signal. `uvicorn.run` takes none, so this is its end with one."""
    if config.workers > 1:
        Multiprocess(config, [listening]).run()
        return
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):  # sent again once the server has stopped
        server.run([listening])
    if not server.started:
        sys.exit(STARTUP_FAILURE)


if __name__ == "__main__":
    prepare(require_feature_store, require_port)
    main()
