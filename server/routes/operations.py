"""``/health``, ``/ready`` and ``/metrics``, for those who run the server."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.engines import EnginesDown
from server.errors import Unavailable
from server.routes.common import Server

router = APIRouter(tags=["operations"])


@router.get("/health")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(server: Server) -> dict[str, Any]:
    """Bundle loaded and both engines up; 503 until then, and after an engine has died."""
    try:
        await server.decoder.sampler.engines.check()
    except EnginesDown as error:
        raise Unavailable("the engines are not up") from error
    return {"status": "ready", "models": list(server.catalogue.policies)}


@router.get("/metrics", response_class=Response)
async def metrics(server: Server) -> Response:
    """Prometheus text format."""
    try:
        await server.decoder.sampler.engines.check()
        server.metrics.up.set(1)
    except EnginesDown:
        server.metrics.up.set(0)
    await server.decoder.drift.refresh()
    return Response(server.metrics.render(), media_type=CONTENT_TYPE_LATEST)
