"""Translation between the engine protocol and vLLM's Python API."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import cache
from typing import Any

from server.engines.base import (
    Completion,
    Delta,
    EnginesDown,
    NextToken,
    RequestFailed,
    Sampling,
    TokenLogprob,
    check_finish_reason,
    check_logprob,
)

OnOutput = Callable[[], None]
"""Called at every output of the engine."""

BACKEND = "xgrammar"
"""The backend with which vLLM forces responses to follow a schema."""


def sampling_params(sampling: Sampling, streaming: bool) -> Any:
    """Translate ``sampling`` to vLLM's ``SamplingParams``.

    Args:
        sampling: How the candidate is drawn.
        streaming: Whether outputs come in parts, or once at the end.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    structure = sampling.structure
    make_params = _params_without_check() if structure and structure.schema is not None else SamplingParams
    return make_params(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        seed=sampling.seed,
        stop=list(sampling.stop),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        logprobs=sampling.logprobs,
        skip_special_tokens=sampling.skip_special_tokens,
        flat_logprobs=sampling.logprobs is not None,  # a million small objects would block the event loop
        structured_outputs=structure
        and StructuredOutputsParams(json=structure.schema, json_object=True if structure.schema is None else None),
        output_kind=RequestOutputKind.DELTA if streaming else RequestOutputKind.FINAL_ONLY,
    )


@cache
def _params_without_check() -> Any:
    """Sampling parameters for a schema that has been checked already.

    vLLM would compile the schema again for every candidate, on the event loop.
    """
    from vllm.sampling_params import SamplingParams

    class UncheckedParams(SamplingParams):  # type: ignore[misc]
        def _validate_structured_outputs(self, *_: Any) -> None:
            self.structured_outputs._backend = BACKEND

    return UncheckedParams


async def read_final(outputs: AsyncGenerator[Any, None], sampling: Sampling, on_output: OnOutput) -> Completion:
    """Read the completion from a generation that has one output.

    Args:
        outputs: vLLM's outputs.
        sampling: How the candidate is drawn.
        on_output: Called at every output.

    Raises:
        EnginesDown: The engine aborted the request.
        RequestFailed: The response did not end properly.
    """
    response = (await _last(outputs, on_output)).outputs[0]
    end = check_finish_reason(response.finish_reason)
    return Completion(response.text, len(response.token_ids), end, _logprobs(response, sampling))


async def read_stream(
    outputs: AsyncGenerator[Any, None], sampling: Sampling, on_output: OnOutput, listen: Callable[[Delta], None]
) -> Completion:
    """Read the completion from a generation whose outputs come in parts.

    Args:
        outputs: vLLM's outputs.
        sampling: How the candidate is drawn.
        on_output: Called at every output.
        listen: Called with the new text of each part.

    Raises:
        EnginesDown: The engine aborted the request.
        RequestFailed: The response did not end properly.
    """
    text, tokens, reason = "", 0, None
    logprobs: tuple[TokenLogprob, ...] = ()
    async for output in _iterate(outputs, on_output):
        response = output.outputs[0]
        new_logprobs = _logprobs(response, sampling) or ()
        listen(Delta(response.text, new_logprobs, tuple(response.token_ids)))
        text, tokens, logprobs = text + response.text, tokens + len(response.token_ids), logprobs + new_logprobs
        reason = response.finish_reason or reason
    return Completion(text, tokens, check_finish_reason(reason), None if sampling.logprobs is None else logprobs)


async def read_outputs(outputs: AsyncGenerator[Any, None], on_output: OnOutput) -> list[float]:
    """Read the outputs of a reward model for one text.

    Args:
        outputs: vLLM's outputs.
        on_output: Called at every output.

    Returns:
        The raw outputs, at least one.

    Raises:
        EnginesDown: The engine aborted the request.
    """
    values: list[float] = (await _last(outputs, on_output)).outputs.data.tolist()
    if not values:  # vLLM ends a request that it aborts with an empty output
        raise EnginesDown("a score was given up: the engine is being stopped")
    return values


def next_token_params(tokens: Sequence[int]) -> Any:
    """Return vLLM's ``SamplingParams`` for one token, with the log-probabilities of ``tokens``.

    They are those of the whole vocabulary's softmax, whichever tokens are the likeliest. What is drawn is of no
    interest, so the likeliest token is.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=0,
        max_tokens=1,
        logprob_token_ids=list(tokens),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


async def read_next_token(outputs: AsyncGenerator[Any, None], tokens: Sequence[int], on_output: OnOutput) -> NextToken:
    """Read the log-probabilities of a generation with :func:`next_token_params`.

    Args:
        outputs: vLLM's outputs.
        tokens: The tokens that were asked for.
        on_output: Called at every output.

    Raises:
        EnginesDown: The engine aborted the request.
        RequestFailed: The token was not drawn, or its log-probabilities are missing.
    """
    output = await _last(outputs, on_output)
    response = output.outputs[0]
    check_finish_reason(response.finish_reason)
    logprobs = response.logprobs[0] if response.logprobs else {}
    if not all(token in logprobs for token in tokens):
        raise RequestFailed("an answer without the log-probabilities asked for")
    values = tuple(float(logprobs[token].logprob) for token in tokens)
    return NextToken(values, len(output.prompt_token_ids) + len(response.token_ids), output.num_cached_tokens or 0)


async def _last(outputs: AsyncGenerator[Any, None], on_output: OnOutput) -> Any:
    """Return the final output."""
    final = None
    async for output in _iterate(outputs, on_output):
        final = output
    return final


async def _iterate(outputs: AsyncGenerator[Any, None], on_output: OnOutput) -> AsyncIterator[Any]:
    """Yield the outputs. Leaving early closes the generator, which aborts the request in the engine."""
    async with aclosing(outputs):
        async for output in outputs:
            on_output()
            yield output


def _logprobs(response: Any, sampling: Sampling) -> tuple[TokenLogprob, ...] | None:
    """The log-probabilities of an output's tokens. vLLM lists the drawn token first, then the most likely ones."""
    if sampling.logprobs is None:
        return None
    entries = []
    for token, alternatives in zip(response.token_ids, response.logprobs or (), strict=True):
        likeliest = sorted(alternatives.values(), key=lambda entry: entry.rank)[: sampling.logprobs]
        top = tuple((entry.decoded_token or "", check_logprob(entry.logprob)) for entry in likeliest)
        entries.append(
            TokenLogprob(alternatives[token].decoded_token or "", check_logprob(alternatives[token].logprob), top)
        )
    return tuple(entries)
