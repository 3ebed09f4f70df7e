"""``/health``, ``/ready`` and ``/metrics``, for operators."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.engines import EnginesDown
from server.errors import Unavailable
from server.routes.serving import ServingDep

router = APIRouter(tags=["operations"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Answer as long as the process is alive."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(serving: ServingDep) -> dict[str, Any]:
    """Answer 200 when the bundle is loaded and the engines are up. Answer 503 before, and after one has died.

    An engine that is started when it is needed does not count.
    """
    try:
        await serving.decoder.client.engines.check()
    except EnginesDown as error:
        raise Unavailable("the engines are not up") from error
    return {"status": "ready", "models": list(serving.catalogue.policies)}


@router.get("/metrics", response_class=Response)
async def metrics(serving: ServingDep) -> Response:
    """Return the metrics in Prometheus' text format."""
    try:
        await serving.decoder.client.engines.check()
        serving.metrics.up.set(1)
    except EnginesDown:
        serving.metrics.up.set(0)
    await serving.decoder.drift.refresh()
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE_LATEST)
