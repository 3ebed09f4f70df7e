"""Error handlers. Every error is answered as ``{"error": {message, type, param, code}}``."""

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from infalign.errors import truncate
from server.errors import CLIENT_CLOSED_REQUEST, BadRequest, ServerError
from server.protocol.body_errors import body_error
from server.protocol.content import content_error
from server.routes.disconnects import ClientGone


def install_error_handlers(app: FastAPI) -> None:
    """Install a handler for each error that routes raise."""

    @app.exception_handler(ServerError)
    async def answer_server_error(request: Request, error: ServerError) -> Response:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def answer_invalid_body(request: Request, error: RequestValidationError) -> Response:
        if refusal := content_error(request, error):
            return refusal.response
        return body_error(error.errors(), _body_model(request)).response

    @app.exception_handler(HTTPException)
    async def answer_http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ClientDisconnect):  # the client disconnected while it sent its body
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if refusal := content_error(request, error):
            return refusal.response
        message = f"{request.method} {truncate(request.url.path)}: {error.detail}"
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        param = "body" if error.status_code == BadRequest.status else None
        envelope = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
        return JSONResponse(envelope, error.status_code, headers=error.headers)

    @app.exception_handler(ClientGone)
    async def answer_disconnect(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


def _body_model(request: Request) -> type[BaseModel]:
    """The body's model in the matched route. The nearest known field is looked up in it."""
    field = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(field, "field_info", None), "annotation", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else BaseModel
