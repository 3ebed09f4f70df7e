"""The application: routes, error envelopes, and the life of the engines."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from infalign.bundle import Bundle
from infalign.errors import one_line
from infalign.validation import explain
from server.calibrator import Calibrator
from server.catalogue import Catalogue
from server.decoder import Decoder
from server.drift import Drift
from server.engines import Engines
from server.errors import BadRequest, ServerError
from server.logs import CLIENT_CLOSED_REQUEST, LogRequests
from server.metrics import Metrics, resident_memory
from server.routes import decoding, openai, operations
from server.routes.common import ClientGone, Serving
from server.sampler import Sampler
from server.settings import Settings
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
) -> FastAPI:
    """The ASGI application over ``engines``, which it starts in the background and stops at the end.

    ``on_failure`` is told when the engines do not come up; without it the server stays, never ready.
    ``tracing`` is that of the settings unless given.
    """
    metrics = Metrics()
    sampler = Sampler(engines, served.tokenizers, metrics)
    manifest = served.bundle.manifest
    drift = Drift({name: manifest.policies.get(name) for name in served.policies}, manifest.sampling, metrics)
    tracing = tracing or tracing_of(settings)
    decoder = Decoder(sampler, Calibrator(served.bundle.combination), metrics, drift, tracing)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(_start(engines, on_failure))
        yield
        await starting  # engines half started could not be stopped
        await asyncio.to_thread(engines.stop)
        await asyncio.to_thread(tracing.stop)

    app: FastAPI = FastAPIOffline(
        title="InfAlign",
        summary="Best-of-N and Worst-of-N decoding with calibrated rewards",
        lifespan=lifespan,
    )
    app.state.serving = Serving(Catalogue(served.policies), served.bundle.manifest.sampling, decoder, settings, metrics)
    for router in (decoding.router, openai.router, operations.router):
        app.include_router(router)
    _answer_errors(app)
    app.add_middleware(AnswerUnexpected)
    app.add_middleware(CountRequests, metrics=metrics)
    app.add_middleware(LogRequests, settings=settings, metrics=metrics, tracing=tracing)
    tracing.install(app)
    return app


async def _start(engines: Engines, on_failure: Callable[[BaseException], None]) -> None:
    try:
        await engines.start()
    except Exception as error:
        log.error("the engines did not start: %s", one_line(error, limit=None))
        on_failure(error)
    else:
        log.info("ready, %.1f GiB resident", resident_memory() / 2**30)


class AnswerUnexpected:
    """Answers 500 where the code fails: a handler of ``Exception`` answers outside of all middleware, uncounted."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: AsgiMessage) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception:
            if scope["type"] != "http" or begun:
                raise
            log.exception("unexpected error in %s %s", scope["method"], scope["path"])
            answer = JSONResponse(ServerError("internal error; the server's log has it").envelope, ServerError.status)
            await answer(scope, receive, send)


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


def _answer_errors(app: FastAPI) -> None:
    """Every error leaves as ``{"error": {message, type, param, code}}``."""

    @app.exception_handler(ServerError)
    async def known(request: Request, error: ServerError) -> Response:
        return JSONResponse(error.envelope, error.status, headers=dict(error.headers))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            refused = BadRequest(f"body: not JSON ({first['ctx']['error']}), accepted: a JSON object", "body")
        else:
            why = explain(first, _body_model(request))
            refused = BadRequest(str(why), why.param)
        return JSONResponse(refused.envelope, refused.status)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        param = "body" if error.status_code == BadRequest.status else None
        envelope = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}
        return JSONResponse(envelope, error.status_code, headers=error.headers)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


def _body_model(request: Request) -> type[BaseModel]:
    """The model of the matched route's body, in which the nearest known field is looked up."""
    field = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(field, "field_info", None), "annotation", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else BaseModel
