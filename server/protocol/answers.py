"""Bodies of answers."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from infalign.calibration import Scope
from server.engines import TokenLogprob

GREEDY = "true if temperature 0, top_k 1 or min_p 1 makes all candidates the same; otherwise left out"
"""Description of the field ``greedy``."""


class Answer(BaseModel):
    """Base class of answers."""

    # JSON has no NaN and no infinity, so an answer with such a number is an error.
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ErrorInfo(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="the field that is not accepted, if there is one")
    code: str | None


class ErrorAnswer(Answer):
    """The body of every error."""

    error: ErrorInfo


class Scored(Answer):
    """A reward, and its quantile among the reference's rewards."""

    index: int
    reward: float = Field(description="raw reward; with several reward models, their combined reward from 0 to 1")
    rewards: dict[str, float] | None = Field(None, description="with several reward models, the raw reward of each")
    quantile: float = Field(description="share of the reference's rewards that are lower; ties count half")
    quantile_low: float = Field(description="95% credible interval of the quantile")
    quantile_high: float


class FunctionCall(Answer):
    """The function that is called."""

    name: str
    arguments: str = Field(description="JSON as the policy wrote it, which may not be valid")


class ToolCall(Answer):
    """A call that an answer makes."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Candidate(Scored):
    """One of the N responses drawn for a request."""

    text: str = Field(description="the answer, without reasoning and without calls")
    reasoning: str | None = Field(None, description="reasoning before the answer, on a server with --reasoning-parser")
    tool_calls: list[ToolCall] | None = None
    finish_reason: str = Field(description="stop, length, or tool_calls")
    completion_tokens: int
    seed: int
    unread_tokens: int | None = Field(
        None, description="tokens at the end that the reward models did not read, because they exceed their context"
    )
    logprobs: tuple[TokenLogprob, ...] | None = Field(None, description="log-probability of each token, if requested")

    @field_validator("logprobs")
    @classmethod
    def _check_finite(cls, tokens: tuple[TokenLogprob, ...] | None) -> tuple[TokenLogprob, ...] | None:
        """Refuse log-probabilities that are not finite. One sum over all is quicker than a check of each."""
        if not math.isfinite(sum(token.logprob + sum(one for _, one in token.top) for token in tokens or ())):
            raise ValueError("finite log-probabilities")
        return tokens


class CalibrationInfo(Answer):
    """The reference rewards behind the quantiles: of this prompt, predicted for it, or of all calibrated prompts."""

    scope: Scope
    samples: int = Field(description="number of rewards; of predicted ones, how many drawn ones they are worth")


class Theory(Answer):
    """What n independent draws from the reference would give."""

    n: int = Field(description="number of candidates that were scored or rejected; 1 if greedy")
    expected_quantile: float
    kl_bound: float = Field(description="nats: log n - (n-1)/n")


class Control(Answer):
    """How an answer grew, if it was drawn by controlled decoding."""

    k: int = Field(description="continuations that each block was selected from; 1 if greedy")
    block: int = Field(description="tokens of a block")
    blocks: int = Field(description="number of blocks of all answers")
    drawn_tokens: int = Field(description="tokens of all continuations")
    discarded_tokens: int = Field(description="tokens of these that are in no answer")
    kl_bound: float = Field(
        description="nats: blocks of an answer x (log k - (k-1)/k). Its mean over answers bounds the KL divergence "
        "from the model that was decoded"
    )


class Usage(Answer):
    """Token counts: the prompt once, and everything that was drawn, also what was rejected or discarded."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Missing(Answer):
    """Candidates that failed or ran out of time, if the request accepts fewer than N."""

    asked: int = Field(description="N")
    reasons: dict[str, int] = Field(description="error code -> number of candidates that failed with it")


class Stopping(Answer):
    """When draws stopped, and why, if the request has a stopping rule."""

    reason: Literal["target", "cost", "cap", "greedy", "timeout"] = Field(
        description="target, cost: a candidate is good enough; cap: N are drawn; greedy: all would be the same; "
        "timeout: time ran out"
    )
    drawn: int = Field(description="candidates that were drawn, including those that failed")
    asked: int = Field(description="N, the most that could be drawn")
    waves: int | None = Field(
        None, description="number of waves, one after another; left out with early rejection, which has none"
    )
    threshold: float | None = Field(
        None, description="estimated quantile at which draws stop; left out if no quantile here is good enough"
    )
    miss_probability: float | None = Field(
        None, description="probability that the true quantile of the first selected candidate misses the target"
    )
    basis: Literal["prompt", "predicted", "pooled"] | None = Field(
        None,
        description="where miss_probability comes from: the prompt's own reference rewards, those that are predicted "
        "for it, or how the quantiles of other prompts differ from their pooled ones",
    )


class EarlyRejection(Answer):
    """What was not drawn to the end, if the request has ``early_rejection``."""

    rejected: int = Field(description="candidates that were rejected, because they would hardly have been selected")
    aborted: int | None = Field(
        None, description="with a stopping rule, candidates that were still drawn when it was met"
    )
    tokens: int = Field(description="tokens of these candidates, which usage counts")
    unread: int | None = Field(
        None,
        description="candidates that the prefix scorer failed to read, so that they could not be rejected; left out "
        "if there is none",
    )


class AnswerWarning(Answer):
    """Something about the request that its caller should know. The answer is valid."""

    code: Literal["n_beyond_judge"] = Field(
        description="n_beyond_judge: N is larger than a judge of the reward model supports"
    )
    param: str = Field(description="the field that it is about")
    message: str


class DecodingAnswer(Answer):
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
    warnings: list[AnswerWarning] | None = Field(None, description="left out if there is none")
    calibration: CalibrationInfo
    stopping: Stopping | None = None
    rejection: EarlyRejection | None = None
    theory: Theory
    usage: Usage


class ControlledAnswer(Answer):
    """Answer of ``/v1/controlled``."""

    id: str
    object: Literal["decoding"] = "decoding"
    created: int
    model: str
    procedure: str
    selected: list[Candidate] = Field(description="the answers, in the order they were drawn")
    candidates: list[Candidate] | None = None
    missing: Missing | None = None
    greedy: bool | None = Field(None, description=GREEDY)
    calibration: CalibrationInfo
    controlled: Control
    usage: Usage


class OpenAIAnswer(Answer):
    """Answer of the OpenAI endpoints. The fields from ``procedure`` on are extensions."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage
    procedure: str
    calibration: CalibrationInfo
    stopping: Stopping | None = None
    controlled: Control | None = None
    rejection: EarlyRejection | None = None
    candidates: list[Candidate] | None = None
    missing: Missing | None = None
    greedy: bool | None = Field(None, description=GREEDY)
    warnings: list[AnswerWarning] | None = Field(None, description="left out if there is none")


class SupportedN(Answer):
    """The largest N up to which a judge supports the selection by the reward."""

    n: int
    falls: bool = Field(
        description="true if the judge's score is known to get worse beyond n; false if nothing is known beyond n"
    )
    peak: int = Field(description="the N with the best mean score, as far as the judge was asked")


class ModelCard(Answer):
    """A name that requests may use as their ``model``."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "infalign"
    supported_n: dict[str, SupportedN] | None = Field(
        None, description="by best-of-n and worst-of-n; left out if the bundle has no record of a judge"
    )


class ModelsAnswer(Answer):
    """Answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class AdaptersAnswer(Answer):
    """Answer of ``POST /v1/adapters``."""

    loaded: list[str] = Field(description="names of the policies that are served in addition now")


class CalibrationAnswer(Answer):
    """Answer of ``/v1/calibrations``."""

    object: Literal["calibration"] = "calibration"
    model: str
    prompt_key: str = Field(description="hash that identifies the prompt in calibrations")
    scope: Scope
    samples: int = Field(description="K, the number of reference rewards of this prompt")
    cached: bool = Field(
        description="true if nothing was drawn: the bundle or an earlier request had calibrated the prompt"
    )
    reference_rewards: dict[str, dict[str, float]] = Field(
        description="by reward model, raw reference rewards at the 5th, 25th, 50th, 75th and 95th percentile"
    )


class RewardsAnswer(Answer):
    """Answer of ``/v1/rewards``."""

    model: str
    rewards: list[Scored]
    calibration: CalibrationInfo
