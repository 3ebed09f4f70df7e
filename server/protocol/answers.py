"""What clients get."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from server.engines import TokenLogprob

GREEDY = "true if the sampling (temperature 0, top_k 1 or min_p 1) makes all candidates the same; else left out"


class _Answer(BaseModel):
    # JSON has no NaN and no infinity: where a number is one, there is no answer.
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ErrorInfo(_Answer):
    """Why there is no answer."""

    message: str
    type: str
    param: str | None = Field(description="the field that is not accepted, where it is one")
    code: str | None


class ErrorAnswer(_Answer):
    """The envelope of every error."""

    error: ErrorInfo


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
    unread_tokens: int | None = Field(
        None, description="tokens at its end that the reward models did not read, where it did not fit their context"
    )
    logprobs: tuple[TokenLogprob, ...] | None = Field(None, description="of each token, where asked for")

    @field_validator("logprobs")
    @classmethod
    def _finite(cls, tokens: tuple[TokenLogprob, ...] | None) -> tuple[TokenLogprob, ...] | None:
        """As of every other number. One sum tells, which is quicker than to look at each."""
        if not math.isfinite(sum(token.logprob + sum(one for _, one in token.top) for token in tokens or ())):
            raise ValueError("finite log-probabilities")
        return tokens


class CalibrationInfo(_Answer):
    """Whose rewards the quantiles refer to: this prompt's own, or pooled over all calibrated prompts."""

    scope: Literal["prompt", "global"]
    samples: int


class Theory(_Answer):
    """What so many independent draws from the reference would give."""

    n: int = Field(description="the candidates that there are, fewer than N if some are missing; 1 if greedy")
    expected_quantile: float
    kl_bound: float = Field(description="nats: log n - (n-1)/n")


class Usage(_Answer):
    """Tokens: the prompt once, the completions of all N candidates."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Missing(_Answer):
    """Candidates that there are none of, where the client allowed fewer than N."""

    asked: int = Field(description="N")
    reasons: dict[str, int] = Field(description="error code -> candidates that it cost")


class DecodingAnswer(_Answer):
    """Answer of ``/v1/best-of-n`` and ``/v1/worst-of-n``."""

    id: str
    object: Literal["decoding"] = "decoding"
    created: int
    model: str
    procedure: str
    selected: list[Candidate]
    candidates: list[Candidate] | None = None
    missing: Missing | None = None
    greedy: bool | None = Field(None, description=GREEDY)
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
    missing: Missing | None = None
    greedy: bool | None = Field(None, description=GREEDY)


class ModelCard(_Answer):
    """A name that requests may have as their ``model``."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "infalign"


class ModelsAnswer(_Answer):
    """Answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class AdaptersAnswer(_Answer):
    """Answer of ``POST /v1/adapters``."""

    loaded: list[str] = Field(description="names of the policies that are served now too")


class CalibrationAnswer(_Answer):
    """Answer of ``/v1/calibrations``."""

    object: Literal["calibration"] = "calibration"
    model: str
    prompt_key: str = Field(description="what the prompt is known by in calibrations")
    scope: Literal["prompt", "global"]
    samples: int = Field(description="K, reference rewards of this prompt")
    cached: bool = Field(description="nothing was drawn: the bundle or an earlier request had calibrated it")
    reference_rewards: dict[str, dict[str, float]] = Field(
        description="by reward model, raw reference rewards at the 5th, 25th, 50th, 75th and 95th percentile"
    )


class RewardsAnswer(_Answer):
    """Answer of ``/v1/rewards``."""

    model: str
    rewards: list[Scored]
    calibration: CalibrationInfo
