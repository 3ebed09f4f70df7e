"""What a training run is asked to do: a YAML file, checked key by key."""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from infalign.errors import InvalidValue
from infalign.procedures import parse_procedure
from infalign.transforms import check_transformation
from infalign.validation import explain

SHIPPED = Path(__file__).parent / "configs"


def _written(parse: Any) -> AfterValidator:
    return AfterValidator(lambda text: str(parse(text)))


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Section):
    """The generated help desk."""

    held_out: int = Field(gt=0, description="prompts kept for validation, never trained on")
    answers: int = Field(gt=0, description="written answers per training prompt (twice as many for risky ones)")
    pairs: int = Field(gt=0, description="comparisons per training prompt for the reward model")


class Model(_Section):
    """A Llama made from scratch; heads are 32 wide, the smallest that vLLM's CPU attention takes."""

    vocabulary: int = Field(ge=300, description="tokens of the byte-level BPE trained on the data")
    hidden: int = Field(gt=0, multiple_of=32)
    layers: int = Field(gt=0)
    positions: int = Field(gt=0, description="longest sequence, prompt and response together")


class Optimiser(_Section):
    """One supervised stage: one pass over its data."""

    learning_rate: float = Field(gt=0)
    batch: int = Field(gt=0)


class Rollouts(_Section):
    """The reference's responses that calibration is made from."""

    samples: int = Field(gt=0, description="K, responses per prompt")
    max_tokens: int = Field(gt=0, description="length limit of a response")


class Ctrl(_Section):
    """Optimisation of E[Φ(C)] − β KL by RLOO."""

    target_kl: float = Field(gt=0, le=10, description="nats from the reference that the measured KL is steered to")
    learning_rate: float = Field(gt=0)
    prompts: int = Field(gt=0, description="prompts per step")
    generations: int = Field(ge=2, description="responses per prompt and step")
    steps: int = Field(gt=0)


class Config(_Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the bundle and of the served model")
    seed: int = Field(ge=0)
    procedure: Annotated[str, _written(parse_procedure)]
    transformation: Annotated[str, _written(check_transformation)]
    data: Data
    model: Model
    sft: Optimiser
    reward: Optimiser
    rollouts: Rollouts
    ctrl: Ctrl


def load_config(name_or_path: str, overrides: tuple[str, ...] = ()) -> Config:
    """A shipped config by name (``demo``) or any YAML file, with ``key=value`` overrides such as ``ctrl.target_kl=1``.

    Raises:
        InvalidValue: no such config, an unknown key (the nearest known one is named) or a bad value.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = SHIPPED / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise InvalidValue("CONFIG", name_or_path, f"a YAML file, or a shipped config: {known}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InvalidValue("CONFIG", name_or_path, f"YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InvalidValue("CONFIG", name_or_path, "a YAML mapping")
    for override in overrides:
        _override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise explain(error.errors()[0], Config) from error


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise InvalidValue("--set", override, "key=value, such as ctrl.target_kl=1")
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InvalidValue("--set", override, f"a key below a section; {section} is a value")
    values[leaf] = yaml.safe_load(text)
