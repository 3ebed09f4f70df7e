"""Bodies of requests."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from infalign.controlled import Controlled, ServedProcedure
from infalign.procedures import BestOfN, FixedN, Standard, WorstOfN
from server.protocol.fields import Body, Calibrate, Count, Encodable, Ignored, Text, Unsupported
from server.protocol.messages import ChatFields, Messages, MessagesOrPrompt, Prompt
from server.protocol.schemas import check_schema
from server.protocol.stopping import StoppingFields

DEFAULT_N = 8
"""Number of candidates if a request does not say it."""
CALIBRATE = (
    "if this prompt is not calibrated yet: true calibrates it first, with K draws from the reference; predict lets the "
    "bundle's prefix scorer predict the reference's rewards, without a draw"
)
"""Description of the field ``calibrate``."""
DEFAULT_K = 4
"""Number of continuations of controlled decoding if a request does not say it."""
Stop = Annotated[str, Field(min_length=1, max_length=200), Encodable]
"""A stop string."""


class JsonSchema(Body):
    """A named JSON schema, as OpenAI's clients send it."""

    name: Annotated[str, Field(max_length=64), Encodable]
    description: Text | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(check_schema)] = Field(alias="schema")
    strict: bool = True


class ResponseFormat(Body):
    """The form that the response must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _check_type(cls, schema: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if (schema is not None) != (info.data.get("type") == "json_schema"):
            raise ValueError("a schema with type json_schema, and only with it")
        return schema


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = Field(False, description="send a last chunk with the usage and without choices")
    include_obfuscation: Ignored = None


class SamplingFields(Body):
    """Fields that every generating request has. Their defaults are the bundle's sampling law."""

    model: str | None = Field(None, description="name of the served model; may be left out")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000, description="0 keeps every token")
    max_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=0, le=2**62, description="candidate i is drawn with seed + i")
    min_p: float = Field(0.0, ge=0, le=1, description="drop tokens less likely than this share of the most likely one")
    min_tokens: int = Field(0, ge=0, le=2**31 - 1, description="least number of tokens before an end token")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=2)
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=1024, description="token id -> number that is added to its logit"
    )
    response_format: ResponseFormat | None = None
    timeout: float | None = Field(None, ge=0.1, description="seconds the request may take, at most the server's limit")
    min_candidates: Count | None = Field(
        None, description="answer with at least so many candidates if others fail or time runs out; all N if left out"
    )
    calibrate: Calibrate = Field(False, description=CALIBRATE)
    return_candidates: bool = Field(False, description="return all N candidates, not only the selected ones")
    user: Annotated[str, Field(max_length=200), Encodable] | None = Field(
        None, description="the end user, for the audit log"
    )

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class DecodingRequest(StoppingFields, SamplingFields, MessagesOrPrompt):
    """Body of ``/v1/best-of-n`` and ``/v1/worst-of-n``."""

    DRAWS_FIELD: ClassVar = "n"
    TOP_FIELD: ClassVar = "top"
    n: Count | None = Field(
        None,
        description="N, the number of candidates, at most with a stopping rule; by default the N in the model's name, "
        "or 8",
    )
    top: Count = Field(1, description="how many are selected, at most N")
    logprobs: int | None = Field(None, ge=0, le=20, description="log-probability of each token, and so many others'")
    stream: bool = Field(False, description="send an event whenever a candidate is finished or scored, then the answer")

    def procedure(
        self, kind: type[BestOfN] | type[WorstOfN], named_procedure: ServedProcedure | None
    ) -> BestOfN | WorstOfN:
        """Return the procedure that the request asks for.

        Args:
            kind: The kind of procedure of the endpoint.
            named_procedure: The procedure in the model's name, such as ``demo:best-of-8``, if there is one. Its N is
                the default.
        """
        return kind(self.n or (named_procedure.n if isinstance(named_procedure, kind) else DEFAULT_N))


class ControlledRequest(SamplingFields, MessagesOrPrompt):
    """Body of ``/v1/controlled``."""

    DRAWS_FIELD: ClassVar = "n"
    TOP_FIELD: ClassVar = "n"
    k: Count | None = Field(
        None,
        description="K, the number of continuations that each block is selected from; by default the K in the model's "
        "name, or 4",
    )
    block: Count | None = Field(
        None,
        description="tokens of a block; by default those in the model's name, or four checkpoints of the prefix "
        "scorer, as in the names that are listed",
    )
    n: Count = Field(1, description="how many answers are drawn, each for itself")
    logprobs: int | None = Field(None, ge=0, le=20, description="log-probability of each token, and so many others'")
    stream: bool = Field(False, description="send the text of each block as soon as it is selected, then the answer")

    @property
    def top(self) -> int:
        """How many answers are returned: all."""
        return self.n

    def procedure(self, named_procedure: ServedProcedure | None, block: int | None) -> Controlled:
        """Return the procedure that the request asks for.

        Args:
            named_procedure: The procedure in the model's name, such as ``demo:controlled-4x16``, if there is one. Its
                numbers are the defaults.
            block: Tokens of a block if neither says it. None if there is no prefix scorer.
        """
        named = named_procedure if isinstance(named_procedure, Controlled) else Controlled(DEFAULT_K, block or 1)
        return Controlled(self.k or named.k, self.block or named.block)


class _OpenAI(StoppingFields, SamplingFields):
    DRAWS_FIELD: ClassVar = "best_of"
    TOP_FIELD: ClassVar = "n"
    n: Count = Field(1, description="how many choices are returned, the selected first; at most as many as are drawn")
    best_of: Count | None = Field(None, description="draw this many candidates and return the best n")
    worst_of: Count | None = Field(None, description="draw this many candidates and return the worst n")
    stream: bool = Field(False, description="send the answer in chunks, as server-sent events")
    stream_options: StreamOptions | None = None
    metadata: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None

    @property
    def drawing(self) -> tuple[str, FixedN, int]:
        """The field that sets the number of candidates, the procedure, and the number of candidates."""
        if self.best_of is not None:
            return "best_of", BestOfN(self.best_of), self.best_of
        if self.worst_of is not None:
            return "worst_of", WorstOfN(self.worst_of), self.worst_of
        return "n", Standard(), self.n

    @property
    def top(self) -> int:
        """How many candidates are selected."""
        return self.n

    @field_validator("worst_of")
    @classmethod
    def _check_procedure(cls, worst_of: int | None, info: ValidationInfo) -> int | None:
        if worst_of is not None and info.data.get("best_of") is not None:
            raise ValueError("best_of or worst_of, not both")
        return worst_of

    @field_validator("stream_options")
    @classmethod
    def _check_stream_options(cls, options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if options is not None and options.include_usage and not info.data.get("stream"):
            raise ValueError("include_usage only with stream: true")
        return options


class ChatRequest(ChatFields, _OpenAI):
    """Body of ``/v1/chat/completions``."""

    messages: Messages
    max_completion_tokens: Count | None = Field(None, description="the newer name of max_tokens")
    logprobs: bool = Field(False, description="log-probability of each token of the choices")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="also the log-probabilities of so many most likely tokens"
    )
    modalities: list[Literal["text"]] | None = Field(None, exclude=True, description="accepted and ignored")
    functions: Unsupported = None
    function_call: Literal["none", "auto"] | None = Field(None, exclude=True, description="accepted and ignored")

    @field_validator("max_completion_tokens")
    @classmethod
    def _check_limit(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit is not None and info.data.get("max_tokens", limit) not in (None, limit):
            raise ValueError(f"the same as max_tokens, which is {info.data['max_tokens']}, or only one of the two")
        return limit

    @field_validator("top_logprobs")
    @classmethod
    def _check_top_logprobs(cls, top: int | None, info: ValidationInfo) -> int | None:
        if top and not info.data.get("logprobs"):
            raise ValueError("nothing without logprobs: true")
        return top

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to each token are reported with log-probabilities; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_OpenAI):
    """Body of ``/v1/completions``."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=20, description="log-probability of each token, and so many others'")
    echo: Literal[False] = Field(False, description="the prompt is not repeated")
    suffix: Unsupported = None

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to each token are reported with log-probabilities; None for no log-probabilities."""
        return self.logprobs


GenerationRequest = ChatRequest | CompletionRequest | DecodingRequest | ControlledRequest
"""A request that draws candidates."""


class CalibrationRequest(MessagesOrPrompt):
    """Body of ``/v1/calibrations``."""

    model: str | None = None


class AdaptersRequest(Body):
    """Body of ``POST /v1/adapters``."""

    bundle: Annotated[str, Field(max_length=255), Encodable] = Field(
        description="name of a bundle in the operator's folder"
    )


class RewardsRequest(MessagesOrPrompt):
    """Body of ``/v1/rewards``."""

    model: str | None = None
    calibrate: Calibrate = Field(False, description=CALIBRATE)
    responses: list[Text] = Field(min_length=1, max_length=4096, description="responses to score")
