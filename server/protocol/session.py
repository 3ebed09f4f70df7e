"""Body of the answer of ``/v1/session``: what a caller may do here, and what is served."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from infalign.manifest import Origin, SamplingLaw
from server.access.keys import Role
from server.protocol.answers import Answer, SupportedN


class Figure(BaseModel):
    """A measured figure with its interval."""

    model_config = ConfigDict(frozen=True)

    value: float = Field(allow_inf_nan=False)
    low: float | None = Field(None, allow_inf_nan=False, description="95% interval; left out if it is not known")
    high: float | None = Field(None, allow_inf_nan=False)


class Decoded(BaseModel):
    """What was measured of a policy that is decoded by one procedure."""

    model_config = ConfigDict(frozen=True)

    procedure: str
    win_rate: Figure = Field(description="win rate over the reference, decoded the same way")
    judged_win_rate: Figure | None = Field(None, description="the same by a judge that takes no part in the selection")


class JudgedN(SupportedN):
    """The largest N that a judge supports, with the judge's mean scores of the selected candidate."""

    scores: dict[int, Figure] = Field(description="by N")


class Judge(Answer):
    """How far a judge supports the selection by the reward among candidates of a policy."""

    judge: str = Field(description="its name")
    prompts: int = Field(description="prompts that it was asked about")
    draws: int = Field(description="candidates of each prompt")
    support: dict[str, JudgedN] = Field(description="by best-of-n and worst-of-n")


class Curve(Answer):
    """The highest win rate that theory allows at each KL divergence, for one procedure."""

    procedure: str
    kl: tuple[float, ...] = Field(description="nats")
    win_rate: tuple[float, ...]


class PolicyCard(Answer):
    """How a policy was aligned, and what it reached on test prompts."""

    transformation: str | None = Field(None, description="left out if the policy is the reference itself")
    beta: float | None = Field(None, description="KL penalty")
    kl: Figure | None = Field(None, description="KL divergence from the reference, in nats")
    decoded: list[Decoded] = Field(description="by procedure")
    judge: Judge | None = Field(None, description="left out if the bundle has no record of a judge")
    frontier: list[Curve] = Field(description="of the policy's transformation")


class SessionModel(Answer):
    """A policy that requests may name as their ``model``."""

    id: str
    digest: str = Field(description="hash of its weights")
    procedure: str = Field(description="the procedure, or the mixture of several, that it was aligned for")
    max_n: dict[str, int] = Field(description="largest N, by best-of-n and worst-of-n")
    card: PolicyCard | None = Field(None, description="for callers with the role generate, if the bundle has a record")


class RewardModelCard(Answer):
    """A reward model of the bundle."""

    name: str
    share: float = Field(description="its share of the combined reward")
    origin: Origin | None = Field(None, description="the model on the hub that it was made of")


class BundleCard(Answer):
    """The bundle that is served."""

    name: str
    created: str
    reference: str = Field(description="digest")
    reference_origin: Origin | None = Field(None, description="the model on the hub that it was made of")
    reward_models: list[RewardModelCard]
    sampling: SamplingLaw
    samples: int = Field(description="K, reference rewards of each calibrated prompt")
    prompts: int = Field(description="calibrated prompts")
    has_scorer: bool = Field(description="whether the prefix scorer can be used, so that calibrations can be predicted")


class Story(Answer):
    """A reward among the rewards of the reference for one calibrated prompt, to explain what a quantile is."""

    rewards: list[float] = Field(description="the K rewards of the reference, the lowest first")
    reward: float
    rank: float = Field(description="how many of them are lower; ties count half")
    quantile: float
    quantile_low: float
    quantile_high: float
    prompt: str | None = Field(None, description="for callers with the role admin")
    response: str | None = Field(None, description="for callers with the role admin")

    @property
    def without_text(self) -> "Story":
        """The story for callers that may not read texts of the bundle."""
        return self.model_copy(update={"prompt": None, "response": None})


class SessionAnswer(Answer):
    """Answer of ``GET /v1/session``."""

    object: Literal["session"] = "session"
    caller: str = Field(description="name of the API key; anonymous if the server has no keys")
    roles: list[Role]
    max_n: int = Field(description="largest N of a request")
    max_requests: int = Field(description="requests that the server works on at a time")
    calibration: str = Field(description="hash of everything that rewards and quantiles depend on")
    models: list[SessionModel] = Field(description="the default first")
    bundle: BundleCard | None = Field(None, description="for callers with the role generate")
    story: Story | None = Field(None, description="for callers with the role generate")
    prompts: list[str] | None = Field(
        None, description="some calibrated prompts, for callers with the role admin: they are the operator's data"
    )


class EvaluationFigures(BaseModel):
    """The part that is shown of a bundle's ``evaluation/NAME/figures.json``."""

    model_config = ConfigDict(frozen=True)

    kl: Figure | None = None
    decoded: list[Decoded]
