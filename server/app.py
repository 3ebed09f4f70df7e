"""The ASGI application: it connects settings, engines and bundle with the routes and the middleware."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TextIO

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from infalign.bundle import Bundle
from infalign.home import home
from infalign.manifest import ScorerRecord
from infalign.rewards import OpenReward, ReferenceJudge
from server.access.callers import Keyring
from server.access.limits import Limits
from server.decoding.adapters import Adapters
from server.decoding.admission import Admission
from server.decoding.calibrator import Calibrator, calibration_digest
from server.decoding.catalogue import Catalogue
from server.decoding.decoder import Decoder
from server.decoding.drift import Drift
from server.decoding.engine_client import EngineClient
from server.decoding.external_rewards import external_rewards
from server.decoding.judged import Judged
from server.decoding.prefixes import Prefixes
from server.decoding.rank_laws import RankLaws
from server.decoding.reference_judges import reference_judgments
from server.decoding.regret import Regret
from server.decoding.store import Store
from server.engines import Engines
from server.engines.supervisor import Supervisor
from server.engines.turns import TurnParsers
from server.middleware.audit import AuditLog, AuditMiddleware
from server.middleware.authentication import AuthenticationMiddleware
from server.middleware.body import BodyLimitMiddleware
from server.middleware.counts import RequestCountMiddleware
from server.middleware.failures import FailureMiddleware
from server.middleware.headers import SecurityHeadersMiddleware
from server.middleware.hosts import LocalHostMiddleware
from server.middleware.paths import PathMiddleware
from server.middleware.request_log import RequestLogMiddleware
from server.observability.metrics import Metrics
from server.observability.tracing import Tracing, create_tracing
from server.protocol.answers import ErrorAnswer
from server.routes import adapters, budgets, calibrations, controlled, decoding, openai, operations, session
from server.routes.errors import install_error_handlers
from server.routes.pages import add_playground
from server.routes.results import WARNING
from server.routes.serving import Serving
from server.routes.story import tell_story
from server.settings import Settings

log = logging.getLogger("infalign.server")


BLOCK_CHECKPOINTS = 4
"""Checkpoints of the prefix scorer in a block of controlled decoding, unless a request says it."""


@dataclass(frozen=True)
class ServedBundle:
    """A bundle with the tokenizers of its models and the names under which clients reach its policies."""

    bundle: Bundle
    tokenizers: tuple[Any, Mapping[str, Any]]
    """The policies' tokenizer, then the reward models' tokenizers by model name, in the order of their calibrations."""
    policies: Mapping[str, str]
    """Maps the name of each policy to the procedure it was aligned for. The first policy is the default."""
    rewards: Mapping[str, OpenReward] = field(default_factory=dict)
    """Rewards that no engine computes, by name."""
    judges: Mapping[str, ReferenceJudge] = field(default_factory=dict)
    """The reference as a judge, by the name of the reward. The tokenizers have theirs among the reward models'."""
    runs_scorer: bool = True
    """Whether the engines run the bundle's prefix scorer, if it has one."""

    @property
    def scorer(self) -> ScorerRecord | None:
        """The record of the prefix scorer, if there is one that can be used."""
        return self.bundle.scorer if self.runs_scorer else None

    @property
    def block(self) -> int | None:
        """Tokens of a block of controlled decoding, if there is a prefix scorer."""
        return None if self.scorer is None else BLOCK_CHECKPOINTS * self.scorer.checkpoint


def create_app(
    settings: Settings,
    engines: Engines,
    served_bundle: ServedBundle,
    on_failure: Callable[[BaseException], None] = lambda _: None,
    tracing: Tracing | None = None,
    console: TextIO | None = None,
) -> FastAPI:
    """Create the ASGI application.

    The application starts ``engines`` in the background and stops them when it shuts down.

    Args:
        settings: The operator's settings.
        engines: The engines that generate and score. They are not started yet.
        served_bundle: The bundle to serve.
        on_failure: Called with the error when the engines do not start or have died for good. If it does nothing, the
            server keeps running but never becomes ready.
        tracing: Where traces go. By default the settings decide.
        console: Where the audit log is written if the settings name no file for it. Defaults to stderr.

    Returns:
        The application.

    Raises:
        BadKeysFile: The keys file cannot be read or is not valid.
        InvalidValue: The audit log cannot be written, or N is to be limited where no policy has a judge's record. Or a
            parser of turns does not exist, does not fit the policy or is not the bundle's.
    """
    metrics = Metrics()
    calibrated = served_bundle.bundle.calibration.reasoning_parser
    settings = settings.adopt_parser(calibrated)
    parsers = TurnParsers(served_bundle.tokenizers[0], settings.reasoning_parser, settings.tool_parser, calibrated)
    rewards = external_rewards(served_bundle.bundle, served_bundle.rewards, metrics)
    judgments = reference_judgments(served_bundle.bundle, served_bundle.judges, engines, metrics)
    client = EngineClient(engines, served_bundle.tokenizers, metrics, parsers, rewards, judgments)
    calibrator = _create_calibrator(settings, served_bundle.bundle, client)
    manifest = served_bundle.bundle.manifest
    records = {name: manifest.policies.get(name) for name in served_bundle.policies}
    laws, judged = RankLaws(records), Judged(records, settings.limit_n, metrics)
    drift = Drift(served_bundle.policies, laws, manifest.sampling, metrics)
    tracing = tracing or create_tracing(settings)
    catalogue = Catalogue(served_bundle.policies, served_bundle.block)
    admission = Admission(settings.max_requests, metrics)
    regret = Regret(client, metrics, settings.regret_share, catalogue.use, lambda: admission.is_busy)
    scorer = served_bundle.scorer
    prefixes = Prefixes(engines, scorer, metrics) if scorer else None
    decoder = Decoder(client, calibrator, metrics, drift, laws, regret, tracing, prefixes)
    keyring, audit_log = Keyring(settings.keys), AuditLog(settings.audit_log, console)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        supervisor = Supervisor(engines, metrics, settings.on_engine_failure == "restart", on_failure)
        watch_task = asyncio.create_task(supervisor.run())
        yield
        watch_task.cancel()
        await asyncio.gather(watch_task, return_exceptions=True)
        await regret.close()
        await asyncio.to_thread(engines.stop)
        await calibrator.close()
        client.close()
        audit_log.close()
        await asyncio.to_thread(tracing.stop)

    app: FastAPI = FastAPIOffline(
        title="InfAlign",
        version=version("infalign"),
        summary="Best-of-N and Worst-of-N decoding with calibrated rewards",
        lifespan=lifespan,
        redirect_slashes=False,
        responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}},
    )
    app.state.keyring = keyring
    app.state.serving = Serving(
        catalogue,
        served_bundle.bundle.manifest.sampling,
        decoder,
        admission,
        Adapters(served_bundle.bundle, settings.bundles, catalogue, engines, drift, judged),
        judged,
        settings,
        metrics,
        tell_story(served_bundle.bundle, served_bundle.tokenizers[0]),
    )
    for routes in (decoding, controlled, calibrations, budgets, openai, adapters, session, operations):
        app.include_router(routes.router)
    add_playground(app)
    _add_head_routes(app)
    install_error_handlers(app)
    # Each middleware wraps those added before it, so the last one sees a request first.
    app.add_middleware(BodyLimitMiddleware, settings=settings, metrics=metrics)
    app.add_middleware(
        AuthenticationMiddleware,
        keyring=keyring,
        limits=Limits(metrics),
        catalogue=catalogue,
        settings=settings,
        metrics=metrics,
    )
    app.add_middleware(AuditMiddleware, audit_log=audit_log)
    app.add_middleware(FailureMiddleware)
    if settings.cors_origins:
        # Outside of AuthenticationMiddleware, because a browser sends a preflight request without the key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),  # clients send their own headers; only the key grants anything
            expose_headers=("X-Request-Id", "Retry-After", WARNING),
        )
    if settings.keys is None:
        app.add_middleware(LocalHostMiddleware, host=settings.host, metrics=metrics)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(RequestCountMiddleware, metrics=metrics)
    app.add_middleware(RequestLogMiddleware, settings=settings, metrics=metrics, tracing=tracing)
    app.add_middleware(PathMiddleware)
    tracing.install(app)
    return app


def _create_calibrator(settings: Settings, bundle: Bundle, client: EngineClient) -> Calibrator:
    record, path = bundle.calibration, settings.calibration_store or home() / "calibrations.sqlite"
    shape = bundle.combination.models, record.samples
    store = Store(path, settings.calibration_store_mib << 20, calibration_digest(record), shape, client.metrics)
    return Calibrator(bundle, client, store, settings.calibration_concurrency)


def _add_head_routes(app: FastAPI) -> None:
    """Answer HEAD wherever there is GET, with the same status and headers. The HTTP server leaves the body out."""
    for route in [route for route in app.routes if isinstance(route, APIRoute) and route.methods == {"GET"}]:
        app.add_api_route(
            route.path,
            route.endpoint,
            methods=["HEAD"],
            response_class=route.response_class,
            dependencies=route.dependencies,
            include_in_schema=False,
        )
