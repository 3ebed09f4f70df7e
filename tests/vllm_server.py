"""A stand-in for a vLLM server: its protocol over real HTTP on loopback, with faults on demand."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TRIAL = [0]
WORDS = ("answer", " of", " {seed}")
Fault = Callable[[Request], Awaitable[Response]]


class VllmServer:
    """Answers a prompt with the seed, in one chunk a word, and scores tokens with their last, halved.

    Args:
        models: what it serves, the first as base and the others as adapters on it.
        max_model_len: context of the base.
    """

    def __init__(self, *models: str, max_model_len: int = 128) -> None:
        self.models, self.max_model_len = models, max_model_len
        self.healthy = True
        self.fault: Fault | None = None
        """What is answered in place of a completion or a score."""
        self.spare_trials = False
        """Whether trials are answered as they should be, whatever the fault."""
        self.outputs = 1
        """How many outputs a classifier has. Each is one more than that before it."""
        self.pause = 0.0
        """Seconds before each chunk."""
        self.asked: list[dict[str, Any]] = []
        """Completions and scores asked for, trials left out."""
        self.trials = 0
        self.running = 0
        """Requests that have neither been answered nor given up by the client."""
        self._socket = _bind(0)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: uvicorn.Server | None = None

    def __enter__(self) -> "VllmServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve, again if it was stopped."""
        if self._socket.fileno() < 0:
            self._socket = _bind(self.port)
        work = Route("/v1/completions", self._complete, methods=["POST"])
        routes = [
            work,
            Route("/classify", self._classify, methods=["POST"]),
            Route("/health", self._health),
            Route("/version", lambda _: JSONResponse({"version": "0.31.0"})),
            Route("/v1/models", self._models),
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """Close the port and every connection, answered or not."""
        if self._server:
            self._server.force_exit = self._server.should_exit = True
            self._thread.join(300)
            assert not self._thread.is_alive()
        self._server = None
        self._socket.close()

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self.healthy else 503)

    async def _models(self, request: Request) -> Response:
        base, *adapters = self.models
        cards: list[dict[str, Any]] = [{"id": base, "parent": None, "max_model_len": self.max_model_len}]
        cards += [{"id": name, "parent": base, "max_model_len": None} for name in adapters]
        return JSONResponse({"object": "list", "data": cards})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self._note(body, body["prompt"])
        if self.fault and not (self.spare_trials and body["prompt"] == TRIAL):
            return await self._watched(self.fault(request))
        if body["model"] not in self.models:
            return JSONResponse({"error": {"message": "no such model", "code": 404}}, 404)
        if tokens := body.get("logprob_token_ids"):
            return JSONResponse(self._next_logprobs(body["prompt"], tokens))
        return sse(self._chunks(body))

    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.running += 1
        try:
            for word in WORDS:
                await asyncio.sleep(self.pause)
                yield part(word.format(seed=body["seed"]), logprobs=body["logprobs"])
            yield part("", "stop", logprobs=body["logprobs"])
            yield {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(WORDS), "total_tokens": 4}}
        finally:
            self.running -= 1

    @staticmethod
    def _next_logprobs(prompt: list[int], tokens: list[int]) -> dict[str, Any]:
        """A completion of one token; the first token that is asked for is impossible, and others are below zero."""
        top = {f"token_id:{token}": -9999.0 if token == tokens[0] else -token / 2 for token in tokens}
        logprobs = {"text_offset": [0], "tokens": ["token_id:3"], "token_logprobs": [-0.1], "top_logprobs": [top]}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1, "total_tokens": len(prompt) + 1}
        details = {"prompt_tokens_details": {"cached_tokens": 2}}
        choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": logprobs}
        return {"id": "cmpl-1", "choices": [choice], "usage": usage | details}

    async def _classify(self, request: Request) -> Response:
        body = await request.json()
        self._note(body, body["input"])
        if self.fault and not (self.spare_trials and body["input"] == TRIAL):
            return await self._watched(self.fault(request))
        logit = self.logit(body["input"])
        probs = [logit + place if body["use_activation"] is False else 1.0 for place in range(self.outputs)]
        return JSONResponse({"data": [{"index": 0, "label": "LABEL_0", "probs": probs, "num_classes": self.outputs}]})

    @staticmethod
    def logit(tokens: list[int]) -> float:
        """What the model says of tokens."""
        return tokens[-1] / 2

    def _note(self, body: dict[str, Any], tokens: list[int]) -> None:
        if tokens == TRIAL:
            self.trials += 1
        else:
            self.asked.append(body)

    async def _watched(self, answer: Awaitable[Response]) -> Response:
        self.running += 1
        try:
            return await answer
        finally:
            self.running -= 1


def _bind(port: int) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", port))
    return found


def part(text: object, finish_reason: str | None = None, logprobs: int | None = None) -> dict[str, Any]:
    """One chunk of a completion; each token has the logit bias of its length, its rivals are ``a`` and ``b``."""
    choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None}
    if logprobs is not None:
        tokens = [text] if text else []
        choice["logprobs"] = {
            "text_offset": [0 for _ in tokens],
            "tokens": tokens,
            "token_logprobs": [-3.0 for _ in tokens],
            "top_logprobs": [dict([(token, -3.0), ("a", -0.5), ("b", -1.5)][: 1 + logprobs]) for token in tokens],
        }
    return {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice]}


def sse(chunks: AsyncIterator[dict[str, Any]] | list[dict[str, Any]], end: str = "[DONE]") -> Response:
    """Chunks as vLLM streams them."""

    async def lines() -> AsyncIterator[str]:
        if isinstance(chunks, list):
            for chunk in chunks:
                yield f"data: {json.dumps(chunk)}\n\n"
        else:
            async for chunk in chunks:
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        if end:
            yield f"data: {end}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


def always(make: Callable[[], Response]) -> Fault:
    """The same answer to everything."""

    async def answer(request: Request) -> Response:
        return make()

    return answer


def refusing(status: int, message: str = "what a pity") -> Fault:
    """An error in vLLM's envelope."""
    return always(lambda: JSONResponse({"error": {"message": message, "type": "X", "code": status}}, status))


async def hanging(request: Request) -> Response:
    """No answer for as long as somebody waits for one."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.01)
    return Response()
