"""What clients send and get. Unknown fields are errors."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


def _encodable(text: str) -> str:
    """JSON can carry half a surrogate pair, which no tokenizer and no UTF-8 can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text of whole characters (a lone surrogate at {error.start})") from error
    return text


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


class _Sampled(_Request):
    """Fields that every generating request shares; defaults are the bundle's sampling law."""

    model: str | None = Field(None, description="name of the served model; may be left out")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000, description="0 keeps every token")
    max_tokens: int | None = Field(None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=0, le=2**62, description="candidate i is drawn with seed + i")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)

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


class DecodingRequest(_Sampled, _MessagesOrPrompt):
    """Body of ``/v1/best-of-n`` and ``/v1/worst-of-n``."""

    n: int = Field(8, ge=1, description="N, how many candidates are drawn")
    top: int = Field(1, ge=1, description="how many are selected")
    return_candidates: bool = Field(False, description="send all N, not only the selected ones")

    @field_validator("top")
    @classmethod
    def _within_n(cls, top: int, info: ValidationInfo) -> int:
        if top > info.data.get("n", top):
            raise ValueError(f"at most n, which is {info.data['n']}")
        return top


class _OpenAI(_Sampled):
    n: int = Field(1, ge=1, description="how many choices come back, the selected first")
    best_of: int | None = Field(None, ge=1, description="draw this many candidates and return the best n")
    worst_of: int | None = Field(None, ge=1, description="draw this many candidates and return the worst n")
    return_candidates: bool = Field(False, description="send all candidates in the field candidates")
    stream: Literal[False] = Field(False, description="streaming is not supported yet")

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


class ChatRequest(_OpenAI):
    """Body of ``/v1/chat/completions``."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit is not None and info.data.get("max_tokens") is not None:
            raise ValueError("max_tokens or max_completion_tokens, not both")
        return limit


class CompletionRequest(_OpenAI):
    """Body of ``/v1/completions``."""

    prompt: Prompt


class RewardsRequest(_MessagesOrPrompt):
    """Body of ``/v1/rewards``."""

    model: str | None = None
    responses: list[Text] = Field(min_length=1, description="responses to score")


class Scored(_Answer):
    """A reward and where it stands among the reference's."""

    index: int
    reward: float = Field(description="raw; of several reward models their combined reward, 0 to 1")
    rewards: dict[str, float] | None = Field(None, description="of several reward models, each one's raw reward")
    quantile: float = Field(description="share of the reference's rewards below, ties half")
    quantile_low: float = Field(description="95% credible interval of the quantile")
    quantile_high: float


class Candidate(Scored):
    """One of the N responses."""

    text: str
    finish_reason: str
    completion_tokens: int
    seed: int


class CalibrationInfo(_Answer):
    """Whose rewards the quantiles refer to: this prompt's own, or pooled over all calibrated prompts."""

    scope: Literal["prompt", "global"]
    samples: int


class Theory(_Answer):
    """What N draws from the reference would give."""

    expected_quantile: float
    kl_bound: float = Field(description="nats: log N - (N-1)/N")


class Usage(_Answer):
    """Tokens: the prompt once, the completions of all N candidates."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class DecodingAnswer(_Answer):
    """Answer of ``/v1/best-of-n`` and ``/v1/worst-of-n``."""

    id: str
    object: Literal["decoding"] = "decoding"
    created: int
    model: str
    procedure: str
    selected: list[Candidate]
    candidates: list[Candidate] | None = None
    calibration: CalibrationInfo
    theory: Theory
    usage: Usage


class OpenAIAnswer(_Answer):
    """Answer of the OpenAI endpoints; from ``procedure`` on, fields that OpenAI does not have."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage
    procedure: str
    calibration: CalibrationInfo
    candidates: list[Candidate] | None = None


class RewardsAnswer(_Answer):
    """Answer of ``/v1/rewards``."""

    model: str
    rewards: list[Scored]
    calibration: CalibrationInfo
