"""Controlled decoding: an answer grows by blocks, each the best of K by the prefix scorer.

Source: blockwise best-of-K of Mudgal et al., Controlled Decoding, arXiv 2310.17022.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from infalign.controlled import Controlled
from infalign.quantile_law import QuantileLaw
from server.concurrency import gather_all
from server.decoding.detokenizer import Detokenizer
from server.decoding.engine_client import EngineClient, translate_errors
from server.decoding.prefixes import Prefixes
from server.decoding.rank_laws import RankLaws
from server.decoding.reader import Prompt
from server.decoding.standing import Standing
from server.engines import Completion, Delta, RequestFailed, Sampling, TokenLogprob
from server.engines.base import FinishReason
from server.engines.turns import Turn
from server.observability.account import engine_call
from server.observability.tracing import Tracing


@dataclass(frozen=True)
class Draft:
    """An answer as far as it is drawn."""

    text: Detokenizer
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    """Why the answer has ended; None while it goes on."""

    @property
    def sure_text(self) -> str:
        """The text that no further token changes."""
        return self.text.text if self.finish_reason else self.text.settled


class Promise(NamedTuple):
    """What a continuation promises. Promises are compared by the quantile first."""

    quantile: float
    """The quantile of a finished answer, or the expected quantile of the best of K answers that begin so."""
    reward: float = -math.inf
    """The reward of a finished answer. Rewards above all of the reference's have the same quantile."""


NO_PROMISE = Promise(0.0)
"""Of a continuation that is compared with no other."""


class Blocks:
    """Draws the answers of one job block by block.

    Args:
        procedure: K, and the tokens of a block.
        prompt: The prompt. Its turns have one part, the answer.
        lookup: Finds the prompt's calibration while blocks are drawn.
        client: Draws and scores.
        prefixes: Predicts what becomes of an unfinished answer.
        laws: Predicts the ranks of the policy's answers. The scorer has learned from the reference's.
        tracing: Gets a span for each block.
    """

    def __init__(
        self,
        procedure: Controlled,
        prompt: Prompt,
        lookup: "asyncio.Task[Standing]",
        client: EngineClient,
        prefixes: Prefixes,
        laws: RankLaws,
        tracing: Tracing,
    ) -> None:
        self._procedure, self._prompt, self._lookup = procedure, prompt, lookup
        self._client, self._prefixes, self._laws, self._tracing = client, prefixes, laws, tracing
        self.drawn_tokens = 0
        """Tokens of all continuations, also of those that were not selected."""

    async def draw(self, sampling: Sampling, listen: Callable[[Delta], None] | None = None) -> Turn:
        """Draw one answer.

        Args:
            sampling: How it is drawn. Option k of block b has the seed ``block_seed(sampling.seed, b, k)``.
            listen: Called with the new text of each block, as soon as it is selected.

        Raises:
            BadRequest: The engine does not accept the sampling.
            EngineError: An engine is alive but failed at a continuation. There is no answer by fewer than K.
            Unavailable: The engines are not up, or have died.
        """
        text = Detokenizer(self._client.reader.policy, self._prompt.tokens, sampling.stop, sampling.min_tokens)
        draft, block = Draft(text, logprobs=None if sampling.logprobs is None else ()), 0
        with self._client.metrics.generation_seconds.time():
            while draft.finish_reason is None:
                new = await self._grow(draft, sampling, block)
                delta = _difference(draft, new)
                if listen and (delta.text or delta.logprobs):
                    listen(delta)
                draft, block = new, block + 1
        answer = draft.sure_text
        return Turn(Completion(answer, len(draft.tokens), draft.finish_reason, draft.logprobs), answer, answer)

    async def _grow(self, draft: Draft, sampling: Sampling, block: int) -> Draft:
        """Continue an answer by the best of K blocks; the first of equals."""
        size = 1 if sampling.greedy else self._procedure.k  # greedy continuations are all the same
        with self._tracing.span("block", {"infalign.block": block, "infalign.options": size}) as span:
            work = [self._try(draft, sampling, block, option, size > 1) for option in range(size)]
            options = await gather_all(work)
            best = max(range(size), key=lambda option: options[option][1])
            selected, promise = options[best]
            span.set({"infalign.option": best, "infalign.promised_quantile": promise.quantile if size > 1 else None})
        return selected

    async def _try(
        self, draft: Draft, sampling: Sampling, block: int, option: int, is_compared: bool
    ) -> tuple[Draft, Promise]:
        """Draw one continuation, and compute what it promises."""
        left = sampling.max_tokens - len(draft.tokens)
        size = min(self._procedure.block, left)
        block_sampling = replace(
            sampling,
            seed=block_seed(sampling.seed, block, option),
            max_tokens=size,
            min_tokens=min(size, max(0, sampling.min_tokens - len(draft.tokens))),
            stop=(),  # they may span blocks
        )
        tokens, completion = await self._continue(draft, block_sampling)
        self.drawn_tokens += len(tokens)
        new = _append(draft, tokens, completion, is_last=size == left)
        return new, await self._value(new, sampling.policy) if is_compared else NO_PROMISE

    async def _continue(self, draft: Draft, sampling: Sampling) -> tuple[list[int], Completion]:
        tokens: list[int] = []

        def keep(delta: Delta) -> None:
            tokens.extend(delta.token_ids)

        async def generate() -> Completion:
            completion = await self._client.engines.generate([*self._prompt.tokens, *draft.tokens], sampling, keep)
            if len(tokens) != completion.tokens or not tokens:
                raise RequestFailed(f"a continuation of {completion.tokens} tokens, of which {len(tokens)} are known")
            return completion

        with engine_call():
            return tokens, await translate_errors(generate(), sampling)

    async def _value(self, draft: Draft, policy: str | None) -> Promise:
        """Return what a continuation promises."""
        standing = await asyncio.shield(self._lookup)
        if draft.finish_reason is None:
            law = await self._prefixes.law(self._prompt, list(draft.tokens))
            if (ranks := await self._laws.find(policy, standing.calibration.samples)) is not None:
                law = law.tilt(QuantileLaw.of_ranks(ranks, law.bins))
            # What follows is selected from K as well.
            answers = QuantileLaw(np.broadcast_to(law.probabilities, (self._procedure.k, law.bins)))
            return Promise(float(answers.expected_best()))
        scores = await self._client.score_candidate(self._prompt.conversation, draft.text.text)
        scored = standing.locate([scores.rewards])[0]
        if standing.calibration.scope == "prompt":
            return Promise(scored.quantile, scored.reward)
        # Among the answers to other prompts, all quantiles of a hard prompt are low. The scorer's are its own.
        outputs = await self._prefixes.read(self._prompt.tokens)
        return Promise(float(self._prefixes.scorer.predicted_quantile(outputs, scored.reward)), scored.reward)


def block_seed(seed: int, block: int, option: int) -> int:
    """Compute the seed of one continuation.

    Args:
        seed: Seed of the answer.
        block: Number of the block, from 0.
        option: Number of the continuation, from 0.

    Returns:
        The first 62 bits of NumPy's ``SeedSequence`` of the three numbers.

    Example:
        >>> block_seed(7, 0, 0) == block_seed(7, 0, 0) != block_seed(7, 0, 1)
        True
    """
    return int(np.random.SeedSequence((seed, block, option)).generate_state(1, np.uint64)[0] >> 2)


def _append(draft: Draft, tokens: list[int], completion: Completion, is_last: bool) -> Draft:
    """Return the answer with its next block. A stop string ends it at the token that completes the string."""
    text, finish_reason = draft.text.copy(), completion.finish_reason if is_last else None
    readable = tokens
    if completion.finish_reason == "stop":
        finish_reason, readable = "stop", tokens[:-1]  # an end token has no text
    for number, token in enumerate(readable, 1):
        if text.add(token):
            finish_reason, tokens = "stop", tokens[:number]
            break
    logprobs = None if draft.logprobs is None else draft.logprobs + (completion.logprobs or ())[: len(tokens)]
    return Draft(text, (*draft.tokens, *tokens), logprobs, finish_reason)


def _difference(draft: Draft, new: Draft) -> Delta:
    """Return what a block adds to an answer."""
    return Delta(
        new.sure_text[len(draft.sure_text) :],
        (new.logprobs or ())[len(draft.logprobs or ()) :],
        new.tokens[len(draft.tokens) :],
    )
