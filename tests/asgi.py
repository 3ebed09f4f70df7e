"""One request over ASGI, message by message: for bodies in parts and for clients that go away."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any


class Exchange:
    """Sends a POST in ``parts``; when those are taken, the client stays until it hangs up."""

    def __init__(self, path: str, parts: Sequence[bytes], headers: Mapping[str, str] | None = None, **scope: Any):
        self.parts = list(parts)
        self.taken = 0
        self.sent: list[dict[str, Any]] = []
        self.hung_up = asyncio.Event()
        self.answering = asyncio.Event()
        self.scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [
                (name.lower().encode(), value.encode())
                for name, value in {"host": "127.0.0.1", "content-type": "application/json", **(headers or {})}.items()
            ],
            "server": ("test", 80),
            "client": ("test", 1),
            "scheme": "http",
            "root_path": "",
            **scope,
        }

    async def through(self, app: Any) -> None:
        """Until the application is done with it."""
        await asyncio.wait_for(app(self.scope, self._receive, self._send), 10)

    @property
    def status(self) -> int:
        """Of the answer."""
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        """Of the answer, as far as it came."""
        return b"".join(message.get("body", b"") for message in self.sent)

    async def _receive(self) -> dict[str, Any]:
        if self.taken < len(self.parts):
            self.taken += 1
            more = self.taken < len(self.parts)
            return {"type": "http.request", "body": self.parts[self.taken - 1], "more_body": more}
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.answering.set()


def request(path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None, **scope: Any) -> Exchange:
    """One with a JSON body in one part."""
    return Exchange(path, [json.dumps(body).encode()], headers, **scope)
