"""FastAPI dependencies: the caller, and a check of the caller's role."""

from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from server.access.callers import Caller
from server.access.keys import Role
from server.errors import Unauthorized
from server.middleware.probe_calls import BODIES, describe_call

BEARER = HTTPBearer(auto_error=False, scheme_name="key", description="A key that `infalign key` made.")
"""Security scheme of the OpenAPI schema."""


def read_caller(request: Request) -> Caller:
    """Return the caller that the middleware has authenticated.

    Raises:
        Unauthorized: The request was not authenticated, because its path is not under /v1.
    """
    caller: Caller | None = request.scope.get("caller")
    if caller is None:
        raise Unauthorized(f"Authorization: {request.url.path} was not authenticated", "Authorization")
    return caller


# Dependencies are coroutines, because FastAPI runs other functions in a thread, which takes longer than they do.
async def get_caller(request: Request, _: Annotated[Any, Depends(BEARER)] = None) -> Caller:
    """Dependency that provides the caller. It also adds the security scheme to the OpenAPI schema.

    Raises:
        Unauthorized: The request was not authenticated, because its path is not under /v1.
    """
    return read_caller(request)


CallerDep = Annotated[Caller, Depends(get_caller)]


def require_role(role: Role) -> Any:
    """Return a dependency that checks that the caller has ``role`` or the role ``admin``."""

    async def check(request: Request, caller: CallerDep) -> None:
        if request.scope["path"] in BODIES and not caller.has_role(role):
            catalogue = request.app.state.serving.catalogue
            request.scope["audit"].call = describe_call(request.scope, catalogue, await request.body())
        caller.require(role, request.url.path)

    return Depends(check)
