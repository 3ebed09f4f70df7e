"""Candidates in the forms of OpenAI's answers: choices, chunks of a stream, and log-probabilities."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.decoding.jobs import CandidateDelta, CandidateFinished, CandidateRejected, CandidateScored, Event
from server.engines import Delta, TokenLogprob
from server.protocol.answers import Candidate

STANDING_FIELDS = {"reward", "rewards", "quantile", "quantile_low", "quantile_high", "seed"}
"""Fields of a choice that OpenAI's API does not have."""
TEXT_FIELDS = {"text", "reasoning", "tool_calls"}
"""Fields of a candidate that show what was drawn."""


@dataclass(frozen=True)
class ChatForm:
    """The form of ``/v1/chat/completions``."""

    object_name: Literal["chat.completion"] = "chat.completion"
    chunk_name: str = "chat.completion.chunk"
    prefix: str = "chatcmpl"

    def choice(self, place: int, candidate: Candidate) -> dict[str, Any]:
        """Return a complete choice."""
        message = {"role": "assistant", **_message_fields(candidate)}
        return {"index": place, "message": message, **_end_fields(candidate, self.logprobs(candidate.logprobs))}

    def delta(self, place: int, new: Delta | None, first: bool = False, offset: int = 0) -> dict[str, Any]:
        """Return the choice of a chunk.

        Args:
            place: The choice's index.
            new: What is new.
            first: Whether this is the first chunk of the choice.
            offset: Characters of the choice's tokens in earlier chunks. This form does not tell it.
        """
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if new is not None:
            if new.text or not (new.reasoning or new.tool_calls):
                delta["content"] = new.text
            if new.reasoning:
                delta["reasoning"] = new.reasoning
            if new.tool_calls:
                delta["tool_calls"] = list(new.tool_calls)
        logprobs = self.logprobs(new.logprobs or None) if new else None
        return {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def logprobs(self, tokens: Sequence[TokenLogprob] | None) -> Any:
        """Return log-probabilities in the form of OpenAI's chat endpoint."""
        if tokens is None:
            return None
        return {
            "content": [
                {
                    **_token(token.token, token.logprob),
                    "top_logprobs": [_token(other, logprob) for other, logprob in token.top],
                }
                for token in tokens
            ]
        }


@dataclass(frozen=True)
class CompletionForm:
    """The form of ``/v1/completions``."""

    object_name: Literal["text_completion"] = "text_completion"
    chunk_name: str = "text_completion"
    prefix: str = "cmpl"

    def choice(self, place: int, candidate: Candidate) -> dict[str, Any]:
        """Return a complete choice."""
        return {
            "index": place,
            "text": candidate.text,
            **_end_fields(candidate, self.logprobs(candidate.logprobs)),
        }

    def delta(self, place: int, new: Delta | None, first: bool = False, offset: int = 0) -> dict[str, Any]:
        """Return the choice of a chunk, as :meth:`ChatForm.delta`."""
        logprobs = self.logprobs(new.logprobs or None, offset) if new else None
        return {"index": place, "text": new.text if new else "", "logprobs": logprobs, "finish_reason": None}

    def logprobs(self, tokens: Sequence[TokenLogprob] | None, offset: int = 0) -> Any:
        """Return log-probabilities in the form of OpenAI's completions endpoint.

        Args:
            tokens: The tokens.
            offset: Characters of the choice before them.
        """
        if tokens is None:
            return None
        offsets = [offset]
        for token in tokens:
            offsets.append(offsets[-1] + len(token.token))
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
            "text_offset": offsets[:-1],
        }


Form = ChatForm | CompletionForm


@dataclass
class Chunks:
    """Creates the chunks of one stream.

    Under standard and controlled decoding (``live``), text is sent as it grows. Otherwise the chunks during decoding
    add nothing to any choice. They tell what happens to each candidate in the extra field ``candidate``. The selected
    candidates follow when all are ranked.
    """

    form: Form
    head: dict[str, Any]
    """Fields that every chunk has."""
    live: bool
    """Whether text is sent as it grows."""
    show_standing: bool
    """Whether to send the reward, quantile and seed of every candidate."""
    show_text: bool
    """Whether to send the text of every candidate."""

    def __post_init__(self) -> None:
        self._sent: dict[int, int] = {}
        """Characters of its tokens that were sent, by choice."""

    def from_event(self, event: Event) -> Iterator[dict[str, Any]]:
        """Return the chunks for an event."""
        if isinstance(event, CandidateDelta):
            if self.live:
                yield self._chunk(self._delta(event.index, event.delta))
        elif not self.live:
            yield self._chunk(self._delta(0, None), candidate=describe_event(event, self.show_standing, self.show_text))

    def end(self, selected: Iterable[Candidate]) -> Iterator[dict[str, Any]]:
        """Return the chunks for the selected candidates, and for the end of each choice."""
        for place, candidate in enumerate(selected):
            if not self.live:
                yield self._chunk(self._delta(place, _whole_delta(candidate)))
            place = candidate.index if self.live else place
            yield self._chunk(self._delta(place, None) | _end_fields(candidate, None))

    def _delta(self, place: int, new: Delta | None) -> dict[str, Any]:
        first, offset = place not in self._sent, self._sent.get(place, 0)
        self._sent[place] = offset + sum(len(token.token) for token in (new.logprobs if new else ()))
        return self.form.delta(place, new, first, offset)

    def _chunk(self, choice: dict[str, Any], **side: Any) -> dict[str, Any]:
        return {**self.head, "object": self.form.chunk_name, "choices": [choice], **side}


def describe_event(
    event: CandidateFinished | CandidateScored | CandidateRejected, show_standing: bool, show_text: bool
) -> dict[str, Any]:
    """Describe what happened to a candidate, for clients.

    Args:
        event: The event.
        show_standing: Whether to include the reward, quantile and seed.
        show_text: Whether to include the text.
    """
    if isinstance(event, CandidateRejected):
        return {"event": "rejected", "index": event.index, "completion_tokens": event.tokens}
    if isinstance(event, CandidateFinished):
        event_fields: dict[str, Any] = {
            "event": "finished",
            "index": event.index,
            "finish_reason": event.turn.finish_reason,
            "completion_tokens": event.turn.completion.tokens,
        }
        return event_fields | ({"text": event.turn.answer} if show_text else {})
    fields = {"index", "finish_reason", "completion_tokens"}
    fields |= (STANDING_FIELDS if show_standing else set()) | (TEXT_FIELDS if show_text else set())
    return {"event": "scored", **event.candidate.model_dump(include=fields, exclude_none=True)}


def make_choices(form: Form, candidates: Iterable[Candidate]) -> list[dict[str, Any]]:
    """Return complete choices, in the order of ``candidates``."""
    return [form.choice(place, candidate) for place, candidate in enumerate(candidates)]


def _end_fields(candidate: Candidate, logprobs: Any) -> dict[str, Any]:
    return {
        "logprobs": logprobs,
        "finish_reason": candidate.finish_reason,
        **candidate.model_dump(include=STANDING_FIELDS, exclude_none=True),
    }


def _message_fields(candidate: Candidate) -> dict[str, Any]:
    """Return the content, reasoning and calls of a message. The content is null if there are only calls."""
    fields: dict[str, Any] = {"content": None if candidate.tool_calls and not candidate.text else candidate.text}
    return fields | candidate.model_dump(include={"reasoning", "tool_calls"}, exclude_none=True)


def _whole_delta(candidate: Candidate) -> Delta:
    """A whole candidate as one part of a stream."""
    calls = ({"index": i, **call.model_dump()} for i, call in enumerate(candidate.tool_calls or ()))
    return Delta(candidate.text, candidate.logprobs or (), reasoning=candidate.reasoning or "", tool_calls=tuple(calls))


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
