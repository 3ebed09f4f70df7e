"""What is said to a vLLM server over HTTP, and what is accepted as its answer (vLLM 0.31)."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar

import httpx
from httpx_sse import EventSource, SSEError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infalign.errors import one_line
from server.engines.base import (
    Completion,
    Delta,
    Refused,
    RequestFailed,
    Sampling,
    TokenLogprob,
    finite_logprob,
    proper_end,
)
from server.engines.refusal import refusal

REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""What a server answers where the request is at fault; any other error is the server's."""
UNHEARD_TOKENS = 16
"""Tokens that come together where nobody listens: fewer messages to write and read."""
DONE = "[DONE]"
ModelT = TypeVar("ModelT", bound="_Answer")


class Failed(Exception):
    """A server did not answer as it should; the text says what it did instead."""


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Card(_Answer):
    """A model that a server names; ``parent`` is what an adapter sits on."""

    id: str
    parent: str | None = None
    max_model_len: int | None = None


class Cards(_Answer):
    """The models of a server."""

    data: list[Card] = Field(min_length=1)


class Version(_Answer):
    """Version of a server's vLLM."""

    version: str


class _Logprobs(_Answer):
    """VLLM writes -9999 for minus infinity, and null for what is not a number."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None]]


class _Choice(_Answer):
    text: str
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(_Answer):
    completion_tokens: int = Field(ge=0)


class _Error(_Answer):
    message: str
    code: int = HTTPStatus.INTERNAL_SERVER_ERROR
    param: str | None = None


class _Failure(_Answer):
    error: _Error


class _Chunk(_Answer):
    choices: list[_Choice] = Field(default=[], max_length=1)
    usage: _Usage | None = None
    error: _Error | None = None


class _Class(_Answer):
    probs: list[float] = Field(min_length=1, max_length=1)


class _Classes(_Answer):
    data: list[_Class] = Field(min_length=1, max_length=1)


async def get(client: httpx.AsyncClient, path: str, model: type[ModelT]) -> ModelT:
    """What a server answers to GET. Raises Failed, httpx.HTTPError."""
    answer = await client.get(path)
    _check(answer.status_code, answer.content)
    return _parse(model, answer.content)


async def health(client: httpx.AsyncClient) -> None:
    """Raises Failed or httpx.HTTPError unless the server says that its engine lives."""
    answer = await client.get("/health")
    _check(answer.status_code, answer.content)


async def score(client: httpx.AsyncClient, model: str, tokens: list[int]) -> float:
    """The raw logit of a reward model. Raises Failed, RequestFailed, httpx.HTTPError."""
    # The default applies a sigmoid, which saturates and makes ties.
    asked = {"model": model, "input": tokens, "use_activation": False}
    answer = await client.post("/classify", json=asked)
    try:
        _check(answer.status_code, answer.content)
    except Refused as error:
        # The client has no part in it: 400 is also what vLLM answers where the logit is not a number.
        raise RequestFailed(str(error)) from error
    return _parse(_Classes, answer.content).data[0].probs[0]


async def complete(
    client: httpx.AsyncClient,
    model: str,
    prompt: list[int],
    sampling: Sampling,
    listen: Callable[[Delta], None] | None,
    heard: Callable[[], None],
) -> Completion:
    """One response, streamed: closing the connection aborts it. ``heard`` is told of every part.

    Raises:
        Failed: the server answers something else, or breaks off.
        Refused: the server does not accept the sampling.
        RequestFailed: the server failed at this response.
        EnginesDown: the server gave the response up.
        httpx.HTTPError: there is no connection, or it is lost.
    """
    text, tokens, reason = "", None, None
    logprobs: tuple[TokenLogprob, ...] = ()
    asked = {"model": model, "prompt": prompt, **_params(sampling, listen is not None)}
    try:
        async with client.stream("POST", "/v1/completions", json=asked) as answer, aclosing(_chunks(answer)) as chunks:
            async for chunk in chunks:
                heard()
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
                for choice in chunk.choices:
                    gained = _logprobs(choice, sampling)
                    if listen and (choice.text or gained):
                        listen(Delta(choice.text, gained))
                    text, logprobs, reason = text + choice.text, logprobs + gained, choice.finish_reason or reason
    except Refused as error:
        raise refusal(str(error), error.field, sampling) from error
    if reason is None:
        # VLLM leaves out the end of a draw that failed before its first token.
        raise RequestFailed("an answer without finish_reason", internal=True)
    end = proper_end(reason)
    if tokens is None:
        raise Failed("an answer without usage")
    return Completion(text, tokens, end, None if sampling.logprobs is None else logprobs)


async def _chunks(answer: httpx.Response) -> AsyncGenerator[_Chunk, None]:
    """The parts of a streamed answer, up to its end."""
    if answer.status_code != HTTPStatus.OK:
        _check(answer.status_code, await answer.aread())
    try:
        async with aclosing(EventSource(answer).aiter_sse()) as events:
            async for event in events:
                if event.data == DONE:
                    return
                chunk = _parse(_Chunk, event.data)
                if chunk.error:
                    # What is found wrong after the status line has gone, sampling that the engine refuses among it.
                    _blame(chunk.error.code, chunk.error)
                yield chunk
    except SSEError as error:
        raise Failed(one_line(error)) from error
    raise Failed(f"an answer that breaks off, without {DONE}")


def _params(sampling: Sampling, streaming: bool) -> dict[str, Any]:
    """VLLM's form of ``sampling``: all of it, since what is left out is taken from the model's own defaults."""
    asked: dict[str, Any] = {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "max_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "logprobs": sampling.logprobs,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stream_interval": 1 if streaming else UNHEARD_TOKENS,
    }
    if sampling.logit_bias:
        asked["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if structure := sampling.structure:
        asked["response_format"] = (
            {"type": "json_object"}
            if structure.schema is None
            else {"type": "json_schema", "json_schema": {"name": "response", "schema": structure.schema}}
        )
    return asked


def _logprobs(choice: _Choice, sampling: Sampling) -> tuple[TokenLogprob, ...]:
    """Of the tokens of a part; vLLM lists the drawn token first, then the likeliest, which may lack it."""
    if sampling.logprobs is None:
        return ()
    if choice.logprobs is None:
        raise Failed("an answer without the logprobs asked for")
    found = choice.logprobs
    if not len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs):
        raise Failed("logprobs of different lengths")
    return tuple(
        TokenLogprob(token, finite_logprob(logprob), _likeliest(top, sampling.logprobs))
        for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True)
    )


def _likeliest(top: Mapping[str, float | None], count: int) -> tuple[tuple[str, float], ...]:
    finite = [(token, finite_logprob(logprob)) for token, logprob in top.items()]
    return tuple(sorted(finite, key=lambda entry: -entry[1])[:count])


def _check(status: int, body: bytes) -> None:
    """Raise Refused, RequestFailed or Failed unless all is well."""
    if status != HTTPStatus.OK:
        _blame(status, _error(body))


def _blame(status: int, error: _Error) -> NoReturn:
    """Raise what an error of a server means; a refusal names the parameter in vLLM's words."""
    text = " ".join(error.message.split())[:300]
    if status in REFUSED:
        raise Refused(text, error.param)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        # Of this request alone, or of the engine: vLLM answers both so.
        raise RequestFailed(f"{status} {text}", internal=True)
    raise Failed(f"{status} {text}")


def _error(body: bytes) -> _Error:
    """What an error's body says, in vLLM's envelope or not."""
    try:
        return _Failure.model_validate_json(body).error
    except ValidationError:
        return _Error(message=body.decode(errors="replace") or "without a word")


def _parse(model: type[ModelT], body: bytes | str) -> ModelT:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise Failed(f"an answer that is not vLLM's ({where}: {first['msg']})") from error
