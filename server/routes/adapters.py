"""``/v1/adapters``: administrators load and unload policies."""

from fastapi import APIRouter, Request, Response

from server.protocol.answers import AdaptersAnswer
from server.protocol.requests import AdaptersRequest
from server.routes.dependencies import require_role
from server.routes.disconnects import run_while_connected
from server.routes.serving import ServingDep

router = APIRouter(prefix="/v1/adapters", tags=["administration"], dependencies=[require_role("admin")])


@router.post("", summary="Load the adapters of another bundle", status_code=201)
async def load(body: AdaptersRequest, request: Request, serving: ServingDep) -> AdaptersAnswer:
    """Load every policy of a bundle in the operator's folder, or none. The bundle must have the same reference."""
    return AdaptersAnswer(loaded=await run_while_connected(request, serving.adapters.load(body.bundle)))


@router.delete("/{name}", summary="Stop serving a policy", status_code=204, response_class=Response)
async def unload(name: str, serving: ServingDep) -> None:
    """Requests that use the policy are finished first."""
    await serving.adapters.unload(name)
