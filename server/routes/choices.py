"""Candidates in the forms of OpenAI's answers: choices, chunks of a stream, and log-probabilities."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.decoding.jobs import CandidateDelta, CandidateFinished, CandidateScored, Event
from server.engines import TokenLogprob
from server.protocol.answers import Candidate

STANDING_FIELDS = {"reward", "rewards", "quantile", "quantile_low", "quantile_high", "seed"}
"""Fields of a choice that OpenAI's API does not have."""


@dataclass(frozen=True)
class ChatForm:
    """The form of ``/v1/chat/completions``."""

    object_name: Literal["chat.completion"] = "chat.completion"
    chunk_name: str = "chat.completion.chunk"
    prefix: str = "chatcmpl"

    def choice(self, place: int, candidate: Candidate) -> dict[str, Any]:
        """Return a complete choice."""
        message = {"role": "assistant", "content": candidate.text}
        return {"index": place, "message": message, **_end_fields(candidate, self.logprobs(candidate.logprobs))}

    def delta(self, place: int, text: str | None, logprobs: Any = None, first: bool = False) -> dict[str, Any]:
        """Return the choice of a chunk.

        Args:
            place: The choice's index.
            text: New text.
            logprobs: Log-probabilities of the new text, in OpenAI's form.
            first: Whether this is the first chunk of the choice.
        """
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if text is not None:
            delta["content"] = text
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

    def delta(self, place: int, text: str | None, logprobs: Any = None, first: bool = False) -> dict[str, Any]:
        """Return the choice of a chunk, as :meth:`ChatForm.delta`."""
        return {"index": place, "text": text or "", "logprobs": logprobs, "finish_reason": None}

    def logprobs(self, tokens: Sequence[TokenLogprob] | None) -> Any:
        """Return log-probabilities in the form of OpenAI's completions endpoint.

        Offsets count from the start of ``tokens``.
        """
        if tokens is None:
            return None
        offsets = [0]
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

    Under standard decoding (``live``), text is sent as it grows. Otherwise the chunks during decoding add nothing to
    any choice. They tell what happens to each candidate in the extra field ``candidate``. The selected candidates
    follow when all are ranked.
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
        self._open_choices: set[int] = set()

    def from_event(self, event: Event) -> Iterator[dict[str, Any]]:
        """Return the chunks for an event."""
        if isinstance(event, CandidateDelta):
            if self.live:
                logprobs = self.form.logprobs(event.delta.logprobs or None)
                yield self._chunk(self._delta(event.index, event.delta.text, logprobs))
        elif not self.live:
            yield self._chunk(self._delta(0, None), candidate=describe_event(event, self.show_standing, self.show_text))

    def end(self, selected: Iterable[Candidate]) -> Iterator[dict[str, Any]]:
        """Return the chunks for the selected candidates, and for the end of each choice."""
        for place, candidate in enumerate(selected):
            if not self.live:
                yield self._chunk(self._delta(place, candidate.text, self.form.logprobs(candidate.logprobs)))
            place = candidate.index if self.live else place
            yield self._chunk(self._delta(place, None) | _end_fields(candidate, None))

    def _delta(self, place: int, text: str | None, logprobs: Any = None) -> dict[str, Any]:
        first = place not in self._open_choices
        self._open_choices.add(place)
        return self.form.delta(place, text, logprobs, first)

    def _chunk(self, choice: dict[str, Any], **side: Any) -> dict[str, Any]:
        return {**self.head, "object": self.form.chunk_name, "choices": [choice], **side}


def describe_event(event: CandidateFinished | CandidateScored, show_standing: bool, show_text: bool) -> dict[str, Any]:
    """Describe what happened to a candidate, for clients.

    Args:
        event: The event.
        show_standing: Whether to include the reward, quantile and seed.
        show_text: Whether to include the text.
    """
    if isinstance(event, CandidateFinished):
        completion = event.completion
        event_fields: dict[str, Any] = {
            "event": "finished",
            "index": event.index,
            "finish_reason": completion.finish_reason,
            "completion_tokens": completion.tokens,
        }
        return event_fields | ({"text": completion.text} if show_text else {})
    fields = {"index", "finish_reason", "completion_tokens"}
    fields |= (STANDING_FIELDS if show_standing else set()) | ({"text"} if show_text else set())
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


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
