"""Answers for requests at which the application raised an unexpected error."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.observability.failures import report_unexpected


class FailureMiddleware:
    """ASGI middleware that answers 500 when the application raises.

    The HTTP server would log the error with its message, which may quote a prompt. If the answer has already begun, it
    is left unfinished, and the server closes the connection.

    Args:
        app: The application that it wraps.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response_started = False

        async def send_wrapper(message: Message) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_wrapper)
        except Exception as error:
            answer = report_unexpected(error, f"{scope['method']} {scope['path']}")
            if not response_started:
                await answer.response(scope, receive, send)
