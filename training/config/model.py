"""The section ``model``: what the reference, the model that the policy is aligned from, starts from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from training.config.section import Section
from training.identity import CONTENTS

POSITIONS_TEXT = "tokens of the longest sequence, prompt and response together"


class Scratch(Section):
    """A Llama with random weights. Its attention heads are 32 wide, the smallest that vLLM's CPU attention takes."""

    vocabulary: int = Field(ge=300, description="tokens of the vocabulary (byte-level BPE, trained on the data)")
    hidden: int = Field(gt=0, multiple_of=32, description="width of the hidden state; the demo has 128")
    layers: int = Field(gt=0, description="transformer layers; the demo has 2")
    positions: int = Field(gt=0, description=POSITIONS_TEXT)


class Base(Section):
    """A causal LM that already exists."""

    path: Annotated[str, CONTENTS] = Field(description="directory of the model, or its id on the hub, also ID@REVISION")
    positions: int = Field(gt=0, description=f"{POSITIONS_TEXT}; at most what the model was made for")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of the weights, as loaded and as saved; bfloat16 only where adapters are trained"
    )
    chat_template: Annotated[str | None, CONTENTS] = Field(
        None, description="file with a Jinja chat template, for a tokenizer that has none or a wrong one"
    )
    pad_token: str | None = Field(
        None, description="a token of the vocabulary to pad with, for a tokenizer that pads with its end token"
    )
    end_token: str | None = Field(
        None, description="the token that ends a turn, for a tokenizer that names another one"
    )


class Model(Section):
    """What the reference starts from. Exactly one key is given."""

    scratch: Scratch | None = Field(None, description="a Llama with random weights")
    base: Base | None = Field(None, description="a causal LM that already exists")

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        if bool(self.scratch) == bool(self.base):
            raise ValueError("give scratch, or base: exactly one of the two")
        return self

    @property
    def origin(self) -> Scratch | Base:
        """The section that is given."""
        return next(section for section in (self.scratch, self.base) if section)

    @property
    def positions(self) -> int:
        """Tokens of the longest sequence, prompt and response together."""
        return self.origin.positions


class Lora(Section):
    """LoRA (low-rank adaptation): small adapters on every linear layer are trained instead of the layer's weights."""

    rank: int = Field(gt=0, description="rank of each adapter's update; 8 to 64 is usual")
    alpha: int = Field(gt=0, description="scale: the update is multiplied by alpha / rank; twice the rank is usual")
