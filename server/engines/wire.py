"""The HTTP API of vLLM 0.31, as far as the server uses it: requests, and the answers that are accepted."""

import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar

import httpx
from httpx_sse import EventSource, SSEError
from pydantic import ValidationError

from infalign.errors import one_line
from server.engines.base import (
    LOWEST_LOGPROB,
    Completion,
    Delta,
    NextToken,
    Refused,
    RequestFailed,
    Sampling,
    TokenLogprob,
    check_finish_reason,
    check_logprob,
)
from server.engines.refusal import refusal
from server.engines.wire_models import Answer, Choice, Chunk, Classes, Error, Failure, Scored

REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""Statuses that say the request is at fault. Any other error is the server's fault."""
SILENT_INTERVAL = 16
"""How many tokens come in one message if nobody listens. Fewer messages are less work."""
END_OF_STREAM = "[DONE]"
ModelT = TypeVar("ModelT", bound=Answer)


class BadAnswer(Exception):
    """A server did not answer as vLLM does. The message says what it did instead."""


async def get(client: httpx.AsyncClient, path: str, model: type[ModelT]) -> ModelT:
    """Send a GET request.

    Args:
        client: The connection to the server.
        path: The path.
        model: The model of the answer.

    Raises:
        BadAnswer: The answer is an error or does not have the expected form.
        httpx.HTTPError: There is no connection, or it is lost.
    """
    answer = await client.get(path)
    _check(answer.status_code, answer.content)
    return _parse(model, answer.content)


async def check_health(client: httpx.AsyncClient) -> None:
    """Check that a server reports its engine as healthy.

    Raises:
        BadAnswer: It does not.
        httpx.HTTPError: There is no connection, or it is lost.
    """
    answer = await client.get("/health")
    _check(answer.status_code, answer.content)


async def score(client: httpx.AsyncClient, model: str, tokens: list[int]) -> list[float]:
    """Get the raw outputs of a reward model or of the prefix scorer.

    Args:
        client: The connection to the server.
        model: The model's name on the server.
        tokens: Token ids of the conversation with its response.

    Raises:
        BadAnswer: The server answers something else.
        RequestFailed: The server failed at this request.
        httpx.HTTPError: There is no connection, or it is lost.
    """
    # By default vLLM applies a sigmoid. It saturates, and saturated rewards tie.
    request = {"model": model, "input": tokens, "use_activation": False}
    answer = await client.post("/classify", json=request)
    try:
        _check(answer.status_code, answer.content)
    except Refused as error:
        # The client is not at fault. vLLM also answers 400 if the logit is not a number.
        raise RequestFailed(str(error)) from error
    return _parse(Classes, answer.content).data[0].probs


async def next_logprobs(client: httpx.AsyncClient, model: str, prompt: list[int], tokens: Sequence[int]) -> NextToken:
    """Get the log-probabilities of some tokens as the next one.

    Args:
        client: The connection to the server.
        model: The model's name on the server.
        prompt: Token ids of the text.
        tokens: The tokens.

    Raises:
        BadAnswer: The server answers something else.
        RequestFailed: The server failed at this request.
        httpx.HTTPError: There is no connection, or it is lost.
    """
    request = {
        "model": model,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 0,  # only that there are any; logprob_token_ids says which
        "logprob_token_ids": list(tokens),
        "return_tokens_as_token_ids": True,
    }
    answer = await client.post("/v1/completions", json=request)
    try:
        _check(answer.status_code, answer.content)
    except Refused as error:
        raise RequestFailed(str(error)) from error  # the client is not at fault
    scored = _parse(Scored, answer.content)
    logprobs = scored.choices[0].logprobs
    by_token = logprobs.top_logprobs[0] if logprobs and logprobs.top_logprobs else {}
    values = [by_token.get(f"token_id:{token}") for token in tokens]
    if missing := [token for token, value in zip(tokens, values, strict=True) if value is None]:
        raise BadAnswer(f"an answer without the log-probability of token {missing[0]}, as vLLM before 0.31 gives it")
    finite = tuple(-math.inf if value is None or value <= LOWEST_LOGPROB else value for value in values)
    details = scored.usage.prompt_tokens_details
    return NextToken(finite, scored.usage.total_tokens, details.cached_tokens or 0 if details else 0)


async def complete(
    client: httpx.AsyncClient,
    model: str,
    prompt: list[int],
    sampling: Sampling,
    listen: Callable[[Delta], None] | None,
    on_output: Callable[[], None],
) -> Completion:
    """Draw one response. It is streamed, so that closing the connection aborts it.

    Args:
        client: The connection to the server.
        model: The model's name on the server.
        prompt: Token ids of the prompt.
        sampling: How the response is drawn.
        listen: Called with the new text as the response grows.
        on_output: Called at every part of the answer.

    Raises:
        BadAnswer: The server answers something else, or the answer breaks off.
        Refused: The server does not accept the sampling.
        RequestFailed: The server failed at this response.
        EnginesDown: The server aborted the request.
        httpx.HTTPError: There is no connection, or it is lost.
    """
    text, tokens, reason = "", None, None
    logprobs: tuple[TokenLogprob, ...] = ()
    request = {"model": model, "prompt": prompt, **_params(sampling, listen is not None)}
    try:
        async with (
            client.stream("POST", "/v1/completions", json=request) as answer,
            aclosing(_chunks(answer)) as chunks,
        ):
            async for chunk in chunks:
                on_output()
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
                for choice in chunk.choices:
                    new_logprobs = _logprobs(choice, sampling)
                    if listen and (choice.text or new_logprobs or choice.token_ids):
                        listen(Delta(choice.text, new_logprobs, tuple(choice.token_ids or ())))
                    text, logprobs, reason = text + choice.text, logprobs + new_logprobs, choice.finish_reason or reason
    except Refused as error:
        raise refusal(str(error), error.field, sampling) from error
    if reason is None:
        # vLLM sends no finish reason for a response that failed before its first token.
        raise RequestFailed("an answer without finish_reason", internal=True)
    end = check_finish_reason(reason)
    if tokens is None:
        raise BadAnswer("an answer without usage")
    return Completion(text, tokens, end, None if sampling.logprobs is None else logprobs)


async def _chunks(answer: httpx.Response) -> AsyncGenerator[Chunk, None]:
    """Yield the parts of a streamed answer."""
    if answer.status_code != HTTPStatus.OK:
        _check(answer.status_code, await answer.aread())
    try:
        async with aclosing(EventSource(answer).aiter_sse()) as events:
            async for event in events:
                if event.data == END_OF_STREAM:
                    return
                chunk = _parse(Chunk, event.data)
                if chunk.error:
                    # An error after the status line, such as sampling parameters that the engine refuses.
                    _raise_error(chunk.error.code, chunk.error)
                yield chunk
    except SSEError as error:
        raise BadAnswer(one_line(error)) from error
    raise BadAnswer(f"an answer that breaks off, without {END_OF_STREAM}")


def _params(sampling: Sampling, streaming: bool) -> dict[str, Any]:
    """Translate ``sampling`` to vLLM's parameters. vLLM would take missing ones from the model's own defaults."""
    request: dict[str, Any] = {
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
        "stream_interval": 1 if streaming else SILENT_INTERVAL,
        "return_token_ids": streaming,
        "skip_special_tokens": sampling.skip_special_tokens,
    }
    if sampling.logit_bias:
        request["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if structure := sampling.structure:
        request["response_format"] = (
            {"type": "json_object"}
            if structure.schema is None
            else {"type": "json_schema", "json_schema": {"name": "response", "schema": structure.schema}}
        )
    return request


def _logprobs(choice: Choice, sampling: Sampling) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of a part's tokens. vLLM lists the most likely tokens, which may not include the drawn one."""
    if sampling.logprobs is None:
        return ()
    if choice.logprobs is None:
        raise BadAnswer("an answer without the logprobs asked for")
    logprobs = choice.logprobs
    if not len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs):
        raise BadAnswer("logprobs of different lengths")
    return tuple(
        TokenLogprob(token, check_logprob(logprob), _likeliest(top, sampling.logprobs))
        for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    )


def _likeliest(top: Mapping[str, float | None], count: int) -> tuple[tuple[str, float], ...]:
    finite = [(token, check_logprob(logprob)) for token, logprob in top.items()]
    return tuple(sorted(finite, key=lambda entry: -entry[1])[:count])


def _check(status: int, body: bytes) -> None:
    """Raise the error that a status other than 200 means."""
    if status != HTTPStatus.OK:
        _raise_error(status, _error(body))


def _raise_error(status: int, error: Error) -> NoReturn:
    """Raise the error that a server's error means. A refusal names the parameter as vLLM does."""
    text = " ".join(error.message.split())[:300]
    if status in REFUSED:
        raise Refused(text, error.param)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        # vLLM gives the same answer whether only this request failed or the whole engine.
        raise RequestFailed(f"{status} {text}", internal=True)
    raise BadAnswer(f"{status} {text}")


def _error(body: bytes) -> Error:
    """Read an error's body, in vLLM's envelope or not."""
    try:
        return Failure.model_validate_json(body).error
    except ValidationError:
        return Error(message=body.decode(errors="replace") or "without a word")


def _parse(model: type[ModelT], body: bytes | str) -> ModelT:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise BadAnswer(f"an answer that is not vLLM's ({where}: {first['msg']})") from error
