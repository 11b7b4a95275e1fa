"""Puts the gateway together."""

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType
from typing import Final, cast

import anyio
import uvicorn
from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse
from fastapi_offline import FastAPIOffline

from api import errors, openapi, pages
from api.access import ROLES, authorize
from api.connection_limits import ClientShares, Connections
from api.docs_page import STATIC_URL, docs_page
from api.forwarded import ForwardedHeaders
from api.hosts import HostAndOrigin
from api.listening import allow_connections, require_free
from api.metrics import Metrics
from api.middleware import RequestEnvelope
from api.protocol import PiecewiseProtocol
from api.quotas import RequestCounter, count_request
from api.routes import (
    batches,
    callbacks,
    events,
    exports,
    feed,
    images,
    quota,
    results,
    service,
    submission,
    uploads,
)
from api.routes import jobs as job_routes
from api.sse import Streams
from api.upload_limits import UploadLimiter
from jobs.access.caller import DEFAULT_TENANT
from jobs.access.doors import Doors
from jobs.access.keys import KeyRing
from jobs.access.sessions import Sessions
from jobs.bootstrap import Connection, connect
from jobs.logs import configure_logging
from jobs.private_files import keep_private
from jobs.quotas import quotas_of
from jobs.settings import AccessSettings, ApiSettings, JobsSettings, misspelt, read_settings
from jobs.tracing import configure_tracing, stop_tracing
from jobs.version import __version__

logger = logging.getLogger("lobewise.api")

#: The exit code that uvicorn has for it.
STARTUP_FAILURE: Final = 3


def create_app(
    settings: ApiSettings | None = None, jobs: Connection | None = None, doors: Doors | None = None
) -> FastAPI:
    """The gateway as an ASGI application; settings come from the environment where none are given.

    It answers whoever reaches it where nothing says who may: `run` looks where it listens, and refuses to.

    Without `jobs` it connects when it starts, and closes when it stops; given ones are the caller's to close.
    """
    settings = settings or read_settings(ApiSettings)
    # /docs without a content delivery network, which hospitals do not reach.
    app = FastAPIOffline(
        title="Lobewise",
        version=__version__,
        summary="Severity of lung opacities on chest CT, per lobe.",
        description=openapi.DESCRIPTION,
        contact={"name": "The maintainers of Lobewise"},
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        # A generated client begins with the first; where a proxy adds a prefix, the framework puts that one before it.
        servers=[{"url": str(settings.public_url).rstrip("/") if settings.public_url else settings.root_path or "/"}],
        root_path_in_servers=settings.public_url is None,
        openapi_tags=openapi.TAGS,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        static_url=STATIC_URL,
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.streams = Streams(settings.max_streams, settings.max_streams_per_client)
    app.state.metrics.watch_streams(app.state.streams.count)
    app.state.waiting = anyio.CapacityLimiter(settings.max_waiting)
    app.state.waiting_of_clients = ClientShares("waits", settings.max_waiting_per_client)
    app.state.upload_limiter = UploadLimiter(
        settings.max_uploads, settings.max_uploads_per_client, settings.crowded_seconds
    )
    app.state.connections = Connections(settings, app.state.metrics.refused)
    app.state.metrics.watch_uploads(app.state.upload_limiter.taken, app.state.upload_limiter.bytes_per_second)
    app.state.connection = app.state.audit = None
    app.state.doors = doors
    if jobs is not None:
        _use(app, jobs)
    # The router tries its routes in this order, so polls, which are most of the requests, come first.
    first = (job_routes, submission, batches, uploads, events, feed, callbacks)
    routers = [module.router for module in (*first, results, images, exports, quota, service)]
    app.state.routes = [route for router in routers for route in router.routes]
    # One that nobody has thought of would be everybody's.
    if forgotten := {route.operation_id for route in app.state.routes} ^ set(ROLES):
        raise RuntimeError(f"api.access.ROLES and the operations differ: {sorted(forgotten)}")
    for router in routers:
        # Counted once it is known that the caller may ask: nobody else uses up what a tenant has.
        app.include_router(router, dependencies=[Depends(authorize), Depends(count_request)])
    app.webhooks.include_router(callbacks.webhooks)
    errors.install(app)
    openapi.install(app)
    # Beside the document, and not in it.
    app.add_route("/docs", docs_page)
    pages.install(app)
    app.add_route("/llms.txt", lambda _request: PlainTextResponse(openapi.for_language_models(app)))
    app.add_middleware(HostAndOrigin, settings=settings)
    app.add_middleware(RequestEnvelope, metrics=app.state.metrics, upload_limiter=app.state.upload_limiter)
    # Outside of the other: its answers, too, name the path that the client asked for.
    app.add_middleware(ForwardedHeaders, settings=settings)
    return app


def run(host: str | None = None, port: int | None = None, jobs_settings: JobsSettings | None = None) -> None:
    """Serve until a signal says stop; what is not given comes from the environment."""
    given = {"host": host, "port": port}
    settings = read_settings(ApiSettings, **{name: value for name, value in given.items() if value is not None})
    jobs_settings = jobs_settings or read_settings(JobsSettings)
    keep_private(jobs_settings)
    configure_logging(jobs_settings.log_format, jobs_settings.log_level)
    for sentence in misspelt((JobsSettings, ApiSettings)):
        logger.warning("%s", sentence)
    access = read_settings(AccessSettings)
    require_free(settings.host, settings.port)
    allow_connections(settings.max_connections)
    jobs = connect(jobs_settings)
    try:
        doors = Doors(access, KeyRing(jobs.backends.store.blobs))
        doors.require_guarded(settings.host)
        logger.info("access: %s", doors.words())
        app = create_app(settings, jobs, doors)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=cast("type[asyncio.Protocol]", partial(PiecewiseProtocol, connections=app.state.connections)),
            # None is spoken here, and a library for it may be installed all the same.
            ws="none",
            log_config=None,
            # The middleware logs each request itself; uvicorn's line would show paths, queries and signatures.
            access_log=False,
            server_header=False,
            # `ForwardedHeaders` reads more of them, and has to see who the peer really is.
            proxy_headers=False,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        server = _Server(config, app.state.streams)
        gc.collect()
        # What stays for good is not looked through again: a full collection kept all clients waiting for some 50 ms.
        gc.freeze()
        server.run()
        if not server.started:
            sys.exit(STARTUP_FAILURE)
    finally:
        jobs.close()


class _Server(uvicorn.Server):
    """Ends the streams of events when it is told to stop: it would wait for them else."""

    def __init__(self, config: uvicorn.Config, streams: Streams) -> None:
        super().__init__(config)
        self._streams = streams

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._streams.close()
        super().handle_exit(sig, frame)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    configure_tracing("lobewise-gateway")
    owned: Connection | None = None
    if app.state.connection is None:
        owned = await anyio.to_thread.run_sync(connect)
        _use(app, owned)
    connection: Connection = app.state.connection
    await anyio.to_thread.run_sync(app.state.doors.start)
    connection.reconciler.start()
    app.state.streams.start(connection.service)
    app.state.status_batchers = {DEFAULT_TENANT: connection.service.open_status_batcher()}
    try:
        yield
    finally:
        for batcher in app.state.status_batchers.values():
            await batcher.close()
        await app.state.request_counter.close()
        await app.state.doors.close()
        await anyio.to_thread.run_sync(app.state.streams.stop)
        if owned is not None:
            await anyio.to_thread.run_sync(owned.close)
        await anyio.to_thread.run_sync(stop_tracing)


def _use(app: FastAPI, connection: Connection) -> None:
    app.state.connection, app.state.tenants = connection, connection.tenants
    app.state.metrics.watch(connection.tenants)
    app.state.quotas, app.state.usage = quotas_of(connection.settings), connection.backends.live.usage
    app.state.request_counter = RequestCounter(app.state.quotas, app.state.usage)
    app.state.audit = connection.backends.audit
    if connection.backends.audit is not None:
        app.state.metrics.watch_audit(connection.backends.audit)
    app.state.sessions = Sessions(connection.backends.store.blobs)
    app.state.doors = app.state.doors or Doors(read_settings(AccessSettings), KeyRing(connection.backends.store.blobs))
