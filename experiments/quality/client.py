"""Sends requests, and measures what comes back."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import connect_sse

from infalign.templates import Message

SECONDS = 600.0
"""The longest time that a request may take."""


@dataclass(frozen=True)
class Answer:
    """What a request gave, and what it cost."""

    text: str
    reward: float
    tokens: int
    """Tokens of all candidates."""
    seconds: float
    first_seconds: float
    """Seconds until the first event of the stream."""
    stopping: dict[str, Any] | None


class Client:
    """A client of one server.

    Args:
        url: Address of the server.
        transport: Carries the requests; the network if left out.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._client = httpx.Client(base_url=url, timeout=SECONDS, transport=transport)

    def decode(self, path: str, prompt: Sequence[Message], fields: dict[str, Any]) -> Answer:
        """Decode a prompt as a stream, so that the time of its first event is known.

        Args:
            path: Path of the endpoint.
            prompt: The messages.
            fields: The other fields of the request.

        Raises:
            RuntimeError: The server answered with an error.
        """
        start = time.perf_counter()
        first_seconds = None
        answer: dict[str, Any] | None = None
        for event, data in self._stream(path, {"messages": prompt, "stream": True, **fields}):
            first_seconds = first_seconds or time.perf_counter() - start
            if event == "error":
                raise RuntimeError(f"{path}: {data}")
            if event == "answer":
                answer = data
        if answer is None or first_seconds is None:
            raise RuntimeError(f"{path}: a stream without an answer")
        seconds = time.perf_counter() - start
        selected = answer["selected"][0]
        return Answer(
            selected["text"],
            selected["reward"],
            answer["usage"]["completion_tokens"],
            seconds,
            first_seconds,
            answer.get("stopping"),
        )

    def draw(self, prompt: Sequence[Message], n: int, seed: int) -> list[dict[str, Any]]:
        """Draw candidates, and return all of them in the order of their indexes.

        Args:
            prompt: The messages.
            n: Number of candidates.
            seed: Seed of the first.

        Raises:
            RuntimeError: The server answered with an error.
        """
        body = {"messages": prompt, "n": n, "seed": seed, "return_candidates": True}
        candidates: list[dict[str, Any]] = self._post("/v1/best-of-n", body)["candidates"]
        return candidates

    def calibrate(self, prompt: Sequence[Message]) -> None:
        """Calibrate a prompt, so that its quantiles are its own.

        Raises:
            RuntimeError: The server answered with an error.
        """
        self._post("/v1/calibrations", {"messages": prompt})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._client.post(path, json=body)
        if answer.is_error:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")
        content: dict[str, Any] = answer.json()
        return content

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        with connect_sse(self._client, "POST", path, json=body) as source:
            if source.response.is_error:
                raise RuntimeError(f"{path}: {source.response.status_code} {source.response.read().decode()}")
            for event in source.iter_sse():
                yield event.event, json.loads(event.data)
