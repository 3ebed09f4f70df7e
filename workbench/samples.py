"""Samples: what a campaign stores of each response."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Sample(BaseModel):
    """One response to one prompt. Each field is a column of the Parquet files of a campaign."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_id: str = Field(description="16 hexadecimal digits that depend on the prompt alone")
    index: int = Field(description="number of the sample among those of its prompt, from 0")
    prompt: str = Field(description="text of the prompt; messages as JSON if it is a conversation")
    augmented: str | None = Field(None, description="what was sent in place of the prompt's last text, if augmented")
    text: str = Field(description="the response")
    reward: float = Field(description="what the server's reward model gives the response")
    quantile: float = Field(description="calibrated reward, 0 to 1: the share of the reference's responses below it")
    quantile_low: float = Field(description="lower end of the quantile's 95% interval")
    quantile_high: float = Field(description="upper end of the quantile's 95% interval")
    scope: str = Field(
        description="prompt, predicted or global: whether quantiles refer to this prompt, or only to all prompts"
    )
    anchors: int = Field(description="K, the number of the reference's rewards behind the quantile")
    finish_reason: str | None = Field(None, description="stop, length or tool_calls; missing for a given response")
    completion_tokens: int | None = Field(None, description="length of the response; missing for a given response")
    seed: int | None = Field(None, description="seed that the response was drawn with; missing for a given response")
    model: str = Field(description="name of the model on the server")
    bundle: str = Field(description="hash of the weights, a hyphen, and hash of what rewards and quantiles depend on")
    augmentation: str | None = Field(None, description="augmentations of the prompt, as given on the command line")
    tags: str = Field("{}", description="the other columns of the prompt's row, as a JSON object of texts")

    @property
    def id(self) -> str:
        """Name of the sample within a campaign: prompt and index."""
        return f"{self.prompt_id}-{self.index}"


def make_schema() -> Any:
    """Return the schema of the Parquet files, of type :class:`pyarrow.Schema`. It has a description of each column."""
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    fields = []
    for name, field in Sample.model_fields.items():
        base = str(getattr(field.annotation, "__name__", field.annotation)).removesuffix(" | None")
        nullable = not field.is_required() and field.default is None
        fields.append(pa.field(name, types[base], nullable, {"description": str(field.description)}))
    return pa.schema(fields)
