"""``/v1/adapters``: an administrator loads and unloads policies."""

from fastapi import APIRouter, Request, Response

from server.auth import needs
from server.protocol.answers import AdaptersAnswer
from server.protocol.requests import AdaptersRequest
from server.routes.common import Server, while_connected

router = APIRouter(prefix="/v1/adapters", tags=["administration"], dependencies=[needs("admin")])


@router.post("", summary="Serve the adapters of another bundle too", status_code=201)
async def load(body: AdaptersRequest, request: Request, server: Server) -> AdaptersAnswer:
    """Load every policy of a bundle in the operator's folder, or none; it must sit on the same reference."""
    return AdaptersAnswer(loaded=await while_connected(request, server.adapters.load(body.bundle)))


@router.delete("/{name}", summary="Serve a policy no more", status_code=204, response_class=Response)
async def unload(name: str, server: Server) -> None:
    """Requests that it is answering are finished first."""
    await server.adapters.unload(name)
