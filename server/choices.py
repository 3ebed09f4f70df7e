"""Candidates in the forms of OpenAI's answers: choices, the chunks of a stream, log-probabilities."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.decoder import Event, Finished, Grown, Judged
from server.engines import TokenLogprob
from server.protocol.answers import Candidate

STANDING = {"reward", "rewards", "quantile", "quantile_low", "quantile_high", "seed"}
"""Fields of a choice that OpenAI does not have."""


@dataclass(frozen=True)
class Chat:
    """``/v1/chat/completions``."""

    whole: Literal["chat.completion"] = "chat.completion"
    part: str = "chat.completion.chunk"
    prefix: str = "chatcmpl"

    def choice(self, place: int, candidate: Candidate) -> dict[str, Any]:
        """A whole choice."""
        message = {"role": "assistant", "content": candidate.text}
        return {"index": place, "message": message, **_ending(candidate, self.logprobs(candidate.logprobs))}

    def delta(self, place: int, text: str | None, logprobs: Any = None, first: bool = False) -> dict[str, Any]:
        """What a choice gains."""
        gained: dict[str, Any] = {"role": "assistant"} if first else {}
        if text is not None:
            gained["content"] = text
        return {"index": place, "delta": gained, "logprobs": logprobs, "finish_reason": None}

    def logprobs(self, tokens: Sequence[TokenLogprob] | None) -> Any:
        """OpenAI's form, newer."""
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
class Text:
    """``/v1/completions``."""

    whole: Literal["text_completion"] = "text_completion"
    part: str = "text_completion"
    prefix: str = "cmpl"

    def choice(self, place: int, candidate: Candidate) -> dict[str, Any]:
        """A whole choice."""
        return {
            "index": place,
            "text": candidate.text,
            **_ending(candidate, self.logprobs(candidate.logprobs)),
        }

    def delta(self, place: int, text: str | None, logprobs: Any = None, first: bool = False) -> dict[str, Any]:
        """What a choice gains."""
        return {"index": place, "text": text or "", "logprobs": logprobs, "finish_reason": None}

    def logprobs(self, tokens: Sequence[TokenLogprob] | None) -> Any:
        """OpenAI's form, older; offsets count from the start of ``tokens``."""
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


Form = Chat | Text


@dataclass
class Chunks:
    """The chunks of one stream.

    Under standard decoding (``live``) text is sent as it grows. Otherwise candidates are told of in the side field
    ``candidate`` of chunks that add nothing to any choice, and the selected ones follow when all are ranked.
    """

    form: Form
    head: dict[str, Any]
    """Fields of every chunk."""
    live: bool
    show_standing: bool
    """Tell the reward and seed of every candidate."""
    show_text: bool
    """Tell the text of every candidate."""

    def __post_init__(self) -> None:
        self._begun: set[int] = set()

    def of(self, event: Event) -> Iterator[dict[str, Any]]:
        """Those that tell of an event."""
        if isinstance(event, Grown):
            if self.live:
                logprobs = self.form.logprobs(event.delta.logprobs or None)
                yield self._chunk(self._delta(event.index, event.delta.text, logprobs))
        elif not self.live:
            yield self._chunk(self._delta(0, None), candidate=told(event, self.show_standing, self.show_text))

    def end(self, selected: Iterable[Candidate]) -> Iterator[dict[str, Any]]:
        """The selected candidates, and what is known at the end."""
        for place, candidate in enumerate(selected):
            if not self.live:
                yield self._chunk(self._delta(place, candidate.text, self.form.logprobs(candidate.logprobs)))
            place = candidate.index if self.live else place
            yield self._chunk(self._delta(place, None) | _ending(candidate, None))

    def _delta(self, place: int, text: str | None, logprobs: Any = None) -> dict[str, Any]:
        first = place not in self._begun
        self._begun.add(place)
        return self.form.delta(place, text, logprobs, first)

    def _chunk(self, choice: dict[str, Any], **side: Any) -> dict[str, Any]:
        return {**self.head, "object": self.form.part, "choices": [choice], **side}


def told(event: Finished | Judged, show_standing: bool, show_text: bool) -> dict[str, Any]:
    """What clients are told of a candidate that is finished or scored."""
    if isinstance(event, Finished):
        done = event.completion
        shown: dict[str, Any] = {
            "event": "finished",
            "index": event.index,
            "finish_reason": done.finish_reason,
            "completion_tokens": done.tokens,
        }
        return shown | ({"text": done.text} if show_text else {})
    fields = {"index", "finish_reason", "completion_tokens"}
    fields |= (STANDING if show_standing else set()) | ({"text"} if show_text else set())
    return {"event": "scored", **event.candidate.model_dump(include=fields, exclude_none=True)}


def choices(form: Form, candidates: Iterable[Candidate]) -> list[dict[str, Any]]:
    """Whole choices, in this order."""
    return [form.choice(place, candidate) for place, candidate in enumerate(candidates)]


def _ending(candidate: Candidate, logprobs: Any) -> dict[str, Any]:
    return {
        "logprobs": logprobs,
        "finish_reason": candidate.finish_reason,
        **candidate.model_dump(include=STANDING, exclude_none=True),
    }


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
