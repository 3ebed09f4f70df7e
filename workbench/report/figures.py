"""The figures of a report, as they are written to JSON."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infalign import estimators


class Model(BaseModel):
    """Base class of figures. Numbers that are not known are null."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class Figure(Model):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: "estimators.Estimate") -> "Figure":
        """Make a figure of an estimate."""
        return cls(value=estimate.value, low=estimate.low, high=estimate.high)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class WorstPoint(Model):
    """The worst of n samples, on average over prompts."""

    n: int
    reward: Figure
    quantile: Figure
    theory: float = Field(
        description="mean quantile of the worst of n draws from the reference, estimated from K rewards"
    )


class HitPoint(Model):
    """The probability that at least one of k samples is a hit, on average over prompts."""

    k: int
    rate: Figure
    corrected: Figure | None = Field(
        None, description="for a detector with errors, what the rate would be without them"
    )


class ForecastPoint(Model):
    """What the beta-binomial says of k samples."""

    k: int
    forecast: Figure
    measured: Figure | None = Field(None, description="in a back-test, what all samples say")


class TagRow(Model):
    """The hits of prompts with the same value of a tag."""

    tag: str
    value: str
    prompts: int
    samples: int
    first: Figure = Field(description="hit@1")
    last: Figure = Field(description="hit@k for the largest k of the curve")


class PromptRow(Model):
    """A prompt with many hits."""

    prompt_id: str
    prompt: str
    hits: int
    samples: int
    rate: Figure = Field(description="hit@1, with Wilson's interval")
    worst_reward: float
    worst_quantile: float


class Agreement(Model):
    """How a criterion agrees with the labels of humans."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    sensitivity: Figure
    specificity: Figure


class Hits(Model):
    """What the samples say of one criterion."""

    criterion: str
    hits: int
    samples: int
    prompts_hit: int = Field(description="prompts with at least one hit")
    curve: list[HitPoint]
    forecast: list[ForecastPoint]
    back_test: list[ForecastPoint] = Field(description="forecasts from the first samples, beside what all samples say")
    back_test_holds: bool | None = Field(None, description="whether the intervals of the back-test overlap everywhere")
    back_test_samples: int | None = Field(None, description="samples of each prompt that the back-test is fitted to")
    correction: str = Field(description="how the detector's errors were corrected for, or that they were not")
    agreement: Agreement | None = None
    tags: list[TagRow]
    prompts: list[PromptRow]


class Shown(Model):
    """A sample that the page shows."""

    sample: str
    prompt: str
    augmented: str | None
    text: str
    reward: float
    quantile: Figure
    hits: list[str] = Field(description="criteria that it meets")


class Difference(Model):
    """A paired comparison at one n: the other campaign minus this one, on the same prompts."""

    n: int
    reward: Figure
    quantile: Figure
    hits: dict[str, Figure] = Field(description="difference of hit@n by criterion")


class Comparison(Model):
    """Two campaigns on the same prompts."""

    other: str
    settings: dict[str, Any]
    prompts: int = Field(description="prompts that both have")
    only_one: int = Field(description="prompts that only one has")
    differences: list[Difference]
    notes: list[str]


class Report(Model):
    """Everything that a report says."""

    campaign: str
    settings: dict[str, Any]
    prompts: int
    samples: int
    tokens: int
    scopes: dict[str, int] = Field(description="samples by what their quantiles refer to")
    missing: dict[str, int] = Field(description="samples that could not be had, by the server's code")
    left_out: int = Field(description="prompts with too few samples, which no figure contains")
    least: int = Field(description="samples of the prompt with fewest; curves end there")
    worst: list[WorstPoint]
    hits: list[Hits]
    shown: list[Shown]
    comparison: Comparison | None = None
    notes: list[str]
    version: str
