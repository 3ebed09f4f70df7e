"""The connection to a server: its answers, and errors that say what to do about them."""

import hashlib
import json
import math
from collections.abc import Collection
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from infalign.errors import InvalidValue, one_line
from infalign.names import is_http_address
from workbench.errors import AccessDenied, Busy, RequestFailed, RequestRefused, Unreachable
from workbench.pace import Pace

LONGEST_RETRY_AFTER = 60.0
"""Seconds that a server may ask a client to wait at most."""
CONNECT_SECONDS = 10.0


class ServedPolicy(BaseModel):
    """A policy of a server."""

    id: str
    digest: str
    max_n: dict[str, int]


class Session(BaseModel):
    """What a server says of itself and of the caller."""

    caller: str
    roles: list[str]
    models: list[ServedPolicy]
    max_requests: int
    calibration: str

    def hash_policies(self, names: Collection[str | None]) -> str:
        """Compute 16 hexadecimal digits that depend on some policies, and on what rewards and quantiles depend on.

        Args:
            names: Names of policies, with a procedure or without; None for the default one.
        """
        asked = {name.split(":")[0] if name else self.models[0].id for name in names}
        digests = sorted([policy.id, policy.digest] for policy in self.models if policy.id in asked)
        return hashlib.sha256(json.dumps([self.calibration, *digests]).encode()).hexdigest()[:16]

    def find_policy(self, name: str | None) -> ServedPolicy:
        """Return the policy of a name, or the default one.

        Raises:
            InvalidValue: There is no such policy.
        """
        for policy in self.models:
            if name in (None, policy.id):
                return policy
        raise InvalidValue("--model", name, ", ".join(policy.id for policy in self.models))


class Connection:
    """Sends requests to one server.

    Args:
        url: Address of the server, such as ``http://127.0.0.1:8000``.
        key: API key, if the server has keys.
        pace: Decides when requests are sent.
        timeout: Seconds after which a request without an answer counts as lost.

    Raises:
        InvalidValue: The address is none.
    """

    def __init__(self, url: str, key: str | None, pace: Pace, timeout: float) -> None:
        if not is_http_address(url):
            raise InvalidValue("--url", url, "an address such as http://127.0.0.1:8000")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.pace = pace
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS), limits=limits
        )

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get_session(self) -> Session:
        """Ask the server what it serves and what the caller may do.

        Raises:
            AccessDenied: The key is not accepted.
            RequestFailed: The server did not answer.
            RequestRefused: It is no server of this project.
        """
        try:
            return Session.model_validate(await self._send("GET", "/v1/session"))
        except (RequestRefused, ValidationError) as error:
            message = f"{self.url} is no infalign server of this version: /v1/session answers {one_line(error)}"
            raise RequestRefused("no_session", message) from error

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request when the pace allows it.

        Args:
            path: Path of the endpoint.
            body: The request.

        Returns:
            The answer.

        Raises:
            AccessDenied: The key is not accepted, or may not do this.
            RequestRefused: The server will never accept this request.
            RequestFailed: The request may be sent again.
            ServerGone: The server has not answered for too long.
        """
        async with self.pace.slot():
            return await self._send("POST", path, body)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body)  # escaped, so that text which is no Unicode arrives
        try:
            response = await self._client.request(method, path, content=content)
        except httpx.HTTPError as error:
            reason = one_line(error) if str(error) else type(error).__name__
            raise Unreachable(f"{self.url} does not answer ({reason})") from error
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.is_success and isinstance(answer, dict):
            return answer
        raise make_error(response.status_code, answer, response.headers.get("retry-after"), f"{self.url}{path}")


def make_error(status: int, answer: Any, retry_after: str | None, address: str) -> Exception:
    """Make the error that says what to do about an answer.

    Args:
        status: HTTP status.
        answer: Body of the answer, if it was JSON.
        retry_after: The header of that name.
        address: What was asked, for answers that this project's server does not give.

    Returns:
        The error, for the caller to raise.
    """
    error = answer.get("error") if isinstance(answer, dict) else None
    error = error if isinstance(error, dict) else {}
    message = str(
        error.get("message") or f"{address} answered with status {status}, and not as an infalign server does"
    )
    code = str(error.get("code") or status)
    if status in (401, 403):
        return AccessDenied(message)
    if status == 429:
        return Busy(message, _parse_seconds(retry_after))
    if status in (502, 503) and code != "engine_error":
        return Unreachable(message)
    if status >= 500 or status == 408:
        return RequestFailed(code, message)
    return RequestRefused(code, message)


def _parse_seconds(text: str | None) -> float:
    try:
        seconds = float(text or 1)
    except ValueError:  # a date
        return 1.0
    return min(max(seconds, 0.1), LONGEST_RETRY_AFTER) if math.isfinite(seconds) else 1.0
