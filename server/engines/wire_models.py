"""Answers of vLLM's HTTP API, as far as the server reads them."""

from http import HTTPStatus

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Base of all answers. A value of another type is an error."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Card(Answer):
    """A model that a server lists. ``parent`` is the base model if it is an adapter."""

    id: str
    parent: str | None = None
    max_model_len: int | None = None


class Cards(Answer):
    """The models that a server lists."""

    data: list[Card] = Field(min_length=1)


class Version(Answer):
    """The vLLM version of a server."""

    version: str


class Logprobs(Answer):
    """vLLM writes -9999 for minus infinity, and null for NaN."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None]]


class Choice(Answer):
    """A part of a response. The last part has the finish reason."""

    text: str
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None


class Usage(Answer):
    """How many tokens a response has."""

    completion_tokens: int = Field(ge=0)


class CachedTokens(Answer):
    """How many tokens of a prompt the prefix cache had. vLLM says it with ``--enable-prompt-tokens-details``."""

    cached_tokens: int | None = None


class TotalUsage(Answer):
    """How many tokens a server has read and written."""

    total_tokens: int = Field(ge=0)
    prompt_tokens_details: CachedTokens | None = None


class Scored(Answer):
    """A completion that is not streamed."""

    choices: list[Choice] = Field(min_length=1, max_length=1)
    usage: TotalUsage


class Error(Answer):
    """An error, as vLLM describes it."""

    message: str
    code: int = HTTPStatus.INTERNAL_SERVER_ERROR
    param: str | None = None


class Failure(Answer):
    """The body of an answer that is an error."""

    error: Error


class Chunk(Answer):
    """A part of a streamed answer: new text, the usage at the end, or an error."""

    choices: list[Choice] = Field(default=[], max_length=1)
    usage: Usage | None = None
    error: Error | None = None


class Class(Answer):
    """The outputs of a reward model for one text: its raw logits."""

    probs: list[float] = Field(min_length=1)


class Classes(Answer):
    """Answer of ``/classify``."""

    data: list[Class] = Field(min_length=1, max_length=1)
