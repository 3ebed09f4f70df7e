"""What clients send. Unknown fields are errors; a field that is null counts as left out."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from infalign.procedures import BestOfN, FixedN, Standard, WorstOfN
from server.protocol.schemas import check_schema


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, given: Any) -> Any:
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


def _encodable(text: str) -> str:
    """JSON can carry half a surrogate pair, which no tokenizer and no UTF-8 can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text of whole characters (a lone surrogate at {error.start})") from error
    return text


MOST = 2**31 - 1
"""Largest count that any field takes; what this server or its engines take is less, and said where it is known."""
Text = Annotated[str, AfterValidator(_encodable)]


class TextPart(_Request):
    """A part of a message's content; only text is understood."""

    type: Literal["text"]
    text: Text


class Message(_Request):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]

    @property
    def plain(self) -> dict[str, str]:
        """As the chat template wants it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


Messages = Annotated[list[Message], Field(min_length=1, description="the conversation, last turn the user's")]
Prompt = Annotated[Text, Field(min_length=1, description="raw text to continue, no chat template applied")]

Stop = Annotated[Text, Field(min_length=1, max_length=200)]


class JsonSchema(_Request):
    """A named JSON schema, as OpenAI's clients send it."""

    name: Text = Field(max_length=64)
    description: Text | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(check_schema)] = Field(alias="schema")
    strict: bool = True


class ResponseFormat(_Request):
    """The form that a response must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _goes_with_type(cls, schema: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if (schema is not None) != (info.data.get("type") == "json_schema"):
            raise ValueError("a schema with type json_schema, and only with it")
        return schema


class StreamOptions(_Request):
    """How a stream ends."""

    include_usage: bool = Field(False, description="a last chunk without choices says the usage")


class Sampled(_Request):
    """Fields that every generating request shares; defaults are the bundle's sampling law."""

    model: str | None = Field(None, description="name of the served model; may be left out")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000, description="0 keeps every token")
    max_tokens: int | None = Field(None, ge=1, le=MOST)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=0, le=2**62, description="candidate i is drawn with seed + i")
    min_p: float = Field(0.0, ge=0, le=1, description="drop tokens less likely than this share of the likeliest")
    min_tokens: int = Field(0, ge=0, le=MOST, description="no end token before so many")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=2)
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=1024, description="token id -> what is added to its logit"
    )
    response_format: ResponseFormat | None = None
    timeout: float | None = Field(None, ge=0.1, description="seconds it may take; at most the server's own limit")
    min_candidates: int | None = Field(
        None, ge=1, le=MOST, description="answer with so many where others failed or time ran out; all N if left out"
    )
    calibrate: bool = Field(
        False, description="calibrate this prompt first where it is not: K draws from the reference"
    )
    return_candidates: bool = Field(False, description="send all N, not only the selected ones")
    user: Text | None = Field(None, max_length=200, description="who asks, for the audit log")

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class _MessagesOrPrompt(_Request):
    messages: Messages | None = None
    prompt: Prompt | None = Field(None, validate_default=True)

    @field_validator("prompt")
    @classmethod
    def _one_of_both(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        if "messages" in info.data and (info.data["messages"] is None) == (prompt is None):
            raise ValueError("exactly one of messages and prompt")
        return prompt


class DecodingRequest(Sampled, _MessagesOrPrompt):
    """Body of ``/v1/best-of-n`` and ``/v1/worst-of-n``."""

    DRAWS_FIELD: ClassVar = "n"
    TOP_FIELD: ClassVar = "top"
    n: int = Field(8, ge=1, le=MOST, description="N, how many candidates are drawn")
    top: int = Field(1, ge=1, le=MOST, description="how many are selected")
    logprobs: int | None = Field(None, ge=0, le=20, description="log-probability of each token, and so many others'")
    stream: bool = Field(False, description="send events as candidates finish and are scored, then the answer")

    @field_validator("top")
    @classmethod
    def _within_n(cls, top: int, info: ValidationInfo) -> int:
        if top > info.data.get("n", top):
            raise ValueError(f"at most n, which is {info.data['n']}")
        return top


class _OpenAI(Sampled):
    DRAWS_FIELD: ClassVar = "best_of"
    TOP_FIELD: ClassVar = "n"
    n: int = Field(1, ge=1, le=MOST, description="how many choices come back, the selected first")
    best_of: int | None = Field(None, ge=1, le=MOST, description="draw this many candidates and return the best n")
    worst_of: int | None = Field(None, ge=1, le=MOST, description="draw this many candidates and return the worst n")
    stream: bool = Field(False, description="send the answer in chunks as it is made, as server-sent events")
    stream_options: StreamOptions | None = None

    @property
    def drawing(self) -> tuple[str, FixedN, int]:
        """The field that says how many candidates are drawn, by what procedure, and how many."""
        if self.best_of is not None:
            return "best_of", BestOfN(self.best_of), self.best_of
        if self.worst_of is not None:
            return "worst_of", WorstOfN(self.worst_of), self.worst_of
        return "n", Standard(), self.n

    @property
    def top(self) -> int:
        """How many candidates are selected."""
        return self.n

    @field_validator("best_of", "worst_of")
    @classmethod
    def _at_least_n(cls, drawn: int | None, info: ValidationInfo) -> int | None:
        if drawn is not None and drawn < info.data.get("n", 1):
            raise ValueError(f"at least n, which is {info.data['n']}")
        return drawn

    @field_validator("worst_of")
    @classmethod
    def _one_procedure(cls, worst_of: int | None, info: ValidationInfo) -> int | None:
        if worst_of is not None and info.data.get("best_of") is not None:
            raise ValueError("best_of or worst_of, not both")
        return worst_of

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(cls, options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if options is not None and not info.data.get("stream"):
            raise ValueError("nothing without stream")
        return options


class ChatRequest(_OpenAI):
    """Body of ``/v1/chat/completions``."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST, description="the newer name of max_tokens")
    logprobs: bool = Field(False, description="log-probability of each token of the choices")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="and of so many of the likeliest in its place")

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit is not None and info.data.get("max_tokens") is not None:
            raise ValueError("max_tokens or max_completion_tokens, not both")
        return limit

    @field_validator("top_logprobs")
    @classmethod
    def _of_logprobs(cls, top: int | None, info: ValidationInfo) -> int | None:
        if top is not None and not info.data.get("logprobs"):
            raise ValueError("nothing without logprobs: true")
        return top

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to each token are asked for with log-probabilities; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_OpenAI):
    """Body of ``/v1/completions``."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=20, description="log-probability of each token, and so many others'")

    @property
    def alternatives(self) -> int | None:
        """As of :class:`ChatRequest`."""
        return self.logprobs


Drawing = ChatRequest | CompletionRequest | DecodingRequest
"""What draws candidates."""


class CalibrationRequest(_MessagesOrPrompt):
    """Body of ``/v1/calibrations``."""

    model: str | None = None


class AdaptersRequest(_Request):
    """Body of ``POST /v1/adapters``."""

    bundle: Text = Field(description="name of a bundle in the operator's folder")


class RewardsRequest(_MessagesOrPrompt):
    """Body of ``/v1/rewards``."""

    model: str | None = None
    calibrate: bool = Field(False, description="calibrate this prompt first where it is not")
    responses: list[Text] = Field(min_length=1, description="responses to score")
