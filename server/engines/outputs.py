"""What vLLM in process is asked for, and what comes of it."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from server.engines.base import (
    Completion,
    Delta,
    EnginesDown,
    Sampling,
    TokenLogprob,
    finite_logprob,
    finite_reward,
    proper_end,
)

Heard = Callable[[], None]


def params(sampling: Sampling, streaming: bool) -> Any:
    """VLLM's form of ``sampling``."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    structure = sampling.structure
    return SamplingParams(
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
        structured_outputs=structure
        and StructuredOutputsParams(json=structure.schema, json_object=True if structure.schema is None else None),
        output_kind=RequestOutputKind.DELTA if streaming else RequestOutputKind.FINAL_ONLY,
    )


async def whole(outputs: AsyncGenerator[Any, None], sampling: Sampling, heard: Heard) -> Completion:
    """The completion of the one output that comes; ``heard`` is told of every output."""
    drawn = (await _last(outputs, heard)).outputs[0]
    end = proper_end(drawn.finish_reason)
    return Completion(drawn.text, len(drawn.token_ids), end, _logprobs(drawn, sampling))


async def listened(
    outputs: AsyncGenerator[Any, None], sampling: Sampling, heard: Heard, listen: Callable[[Delta], None]
) -> Completion:
    """The completion of outputs that come in parts, of each of which ``listen`` is told."""
    text, tokens, reason = "", 0, None
    logprobs: tuple[TokenLogprob, ...] = ()
    async for output in _guarded(outputs, heard):
        drawn = output.outputs[0]
        gained = _logprobs(drawn, sampling) or ()
        if drawn.text or gained:
            listen(Delta(drawn.text, gained))
        text, tokens, logprobs = text + drawn.text, tokens + len(drawn.token_ids), logprobs + gained
        reason = drawn.finish_reason or reason
    return Completion(text, tokens, proper_end(reason), None if sampling.logprobs is None else logprobs)


async def reward(outputs: AsyncGenerator[Any, None], heard: Heard) -> float:
    """The raw reward of the one output that comes."""
    values = (await _last(outputs, heard)).outputs.data.tolist()
    if not values:  # how vLLM ends a request that it aborts
        raise EnginesDown("a score was given up: the engine is being stopped")
    return finite_reward(float(values[0]))


async def _last(outputs: AsyncGenerator[Any, None], heard: Heard) -> Any:
    """The final output."""
    newest = None
    async for output in _guarded(outputs, heard):
        newest = output
    return newest


async def _guarded(outputs: AsyncGenerator[Any, None], heard: Heard) -> AsyncIterator[Any]:
    """The outputs; leaving early closes the generator, which aborts the request in the engine."""
    async with aclosing(outputs):
        async for output in outputs:
            heard()
            yield output


def _logprobs(drawn: Any, sampling: Sampling) -> tuple[TokenLogprob, ...] | None:
    """Of the tokens of an output; vLLM lists the drawn token first, then the likeliest."""
    if sampling.logprobs is None:
        return None
    found = []
    for token, at_place in zip(drawn.token_ids, drawn.logprobs or (), strict=True):
        likeliest = sorted(at_place.values(), key=lambda entry: entry.rank)[: sampling.logprobs]
        top = tuple((entry.decoded_token or "", finite_logprob(entry.logprob)) for entry in likeliest)
        found.append(TokenLogprob(at_place[token].decoded_token or "", finite_logprob(at_place[token].logprob), top))
    return tuple(found)
