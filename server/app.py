"""The application: routes, error envelopes, and the life of the engines."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TextIO

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from infalign.bundle import Bundle
from infalign.home import home
from infalign.validation import beginning
from server.adapters import Adapters
from server.admission import Admission
from server.audit import Audit, AuditLog
from server.auth import Authenticate, Keyring
from server.body import LimitBody
from server.calibrator import Calibrator, context
from server.catalogue import Catalogue
from server.content import unreadable
from server.decoder import Decoder
from server.drift import Drift
from server.engines import Engines
from server.errors import CLIENT_CLOSED_REQUEST, BadRequest, ServerError
from server.failures import Contain
from server.limits import Limits
from server.logs import LogRequests
from server.metrics import Metrics
from server.middleware.headers import SecureHeaders
from server.middleware.hosts import LocalHosts
from server.paths import NormalizePath
from server.protocol.answers import ErrorAnswer
from server.protocol.refusals import refuse
from server.routes import adapters, calibrations, decoding, openai, operations
from server.routes.common import ClientGone, Serving
from server.sampler import Sampler
from server.settings import Settings
from server.store import Store
from server.supervisor import Supervisor
from server.tracing import Tracing, tracing_of

log = logging.getLogger("infalign.server")


@dataclass(frozen=True)
class Served:
    """What is served: the bundle, the tokenizers of policy and reward models, the names that clients use."""

    bundle: Bundle
    tokenizers: tuple[Any, Mapping[str, Any]]
    """The policy's, and by name those of the reward models, in the order of their calibrations."""
    policies: Mapping[str, str]
    """By the names that clients use, the procedure that each was aligned for; the first is the default."""


def create_app(
    settings: Settings,
    engines: Engines,
    served: Served,
    on_failure: Callable[[BaseException], None] = lambda _: None,
    tracing: Tracing | None = None,
    console: TextIO | None = None,
) -> FastAPI:
    """The ASGI application over ``engines``, which it starts in the background and stops at the end.

    ``on_failure`` is told when the engines do not come up, or have died for good; without it the server stays, never
    ready. ``tracing`` is that of the settings unless given. Without a file the audit log is on ``console``, or
    stderr.

    Raises:
        BadKeysFile: the keys file of the settings is not accepted.
        InvalidValue: the audit log of the settings cannot be written.
    """
    metrics = Metrics()
    sampler = Sampler(engines, served.tokenizers, metrics)
    calibrator = _calibrator(settings, served.bundle, sampler)
    manifest = served.bundle.manifest
    drift = Drift({name: manifest.policies.get(name) for name in served.policies}, manifest.sampling, metrics)
    tracing = tracing or tracing_of(settings)
    decoder = Decoder(sampler, calibrator, metrics, drift, tracing)
    keyring, audit_log = Keyring(settings.keys), AuditLog(settings.audit_log, console)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        supervisor = Supervisor(engines, metrics, settings.on_engine_failure == "restart", on_failure)
        watching = asyncio.create_task(supervisor.run())
        yield
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await asyncio.to_thread(engines.stop)
        await calibrator.close()
        sampler.reader.close()
        audit_log.close()
        await asyncio.to_thread(tracing.stop)

    app: FastAPI = FastAPIOffline(
        title="InfAlign",
        summary="Best-of-N and Worst-of-N decoding with calibrated rewards",
        lifespan=lifespan,
        redirect_slashes=False,
        responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}},
    )
    catalogue = Catalogue(served.policies)
    app.state.keyring = keyring
    app.state.serving = Serving(
        catalogue,
        served.bundle.manifest.sampling,
        decoder,
        Admission(settings.max_requests, metrics),
        Adapters(served.bundle, settings.bundles, catalogue, engines, drift),
        settings,
        metrics,
    )
    for router in (decoding.router, calibrations.router, openai.router, adapters.router, operations.router):
        app.include_router(router)
    _answer_head(app)
    _answer_errors(app)
    # From the inside out.
    app.add_middleware(LimitBody, settings=settings, metrics=metrics)
    app.add_middleware(Authenticate, keyring=keyring, limits=Limits(metrics), metrics=metrics)
    app.add_middleware(Audit, audit_log=audit_log)
    app.add_middleware(Contain)
    if settings.cors_origins:
        # Outside of Authenticate: a browser sends a preflight without the key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),  # clients send headers of their own; none of them gives a right but the key
            expose_headers=("X-Request-Id", "Retry-After"),
        )
    if settings.keys is None:
        app.add_middleware(LocalHosts, host=settings.host, metrics=metrics)
    app.add_middleware(SecureHeaders)
    app.add_middleware(CountRequests, metrics=metrics)
    app.add_middleware(LogRequests, settings=settings, metrics=metrics, tracing=tracing)
    app.add_middleware(NormalizePath)
    tracing.install(app)
    return app


def _calibrator(settings: Settings, bundle: Bundle, sampler: Sampler) -> Calibrator:
    record, path = bundle.calibration, settings.calibration_store or home() / "calibrations.sqlite"
    shape = bundle.combination.models, record.samples
    store = Store(path, settings.calibration_store_mib << 20, context(record), shape, sampler.metrics)
    return Calibrator(bundle, sampler, store, settings.calibration_concurrency)


class CountRequests:
    """Counts answers by route and status. Plain ASGI: it passes ``http.disconnect`` on to the endpoints."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "unmatched")
                self.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counting if scope["type"] == "http" else send)


def _answer_head(app: FastAPI) -> None:
    """HEAD wherever there is GET, with the same status and headers. The HTTP server leaves the body out."""
    for route in [route for route in app.routes if isinstance(route, APIRoute) and route.methods == {"GET"}]:
        app.add_api_route(
            route.path,
            route.endpoint,
            methods=["HEAD"],
            response_class=route.response_class,
            dependencies=route.dependencies,
            include_in_schema=False,
        )


def _answer_errors(app: FastAPI) -> None:
    """Every error leaves as ``{"error": {message, type, param, code}}``."""

    @app.exception_handler(ServerError)
    async def known(request: Request, error: ServerError) -> Response:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        if refused := unreadable(request, error):
            return refused.response
        return refuse(error.errors(), _body_model(request)).response

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ClientDisconnect):  # in the middle of its body
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if refused := unreadable(request, error):
            return refused.response
        message = f"{request.method} {beginning(request.url.path)}: {error.detail}"
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        param = "body" if error.status_code == BadRequest.status else None
        envelope = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
        return JSONResponse(envelope, error.status_code, headers=error.headers)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


def _body_model(request: Request) -> type[BaseModel]:
    """The model of the matched route's body, in which the nearest known field is looked up."""
    field = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(field, "field_info", None), "annotation", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else BaseModel
