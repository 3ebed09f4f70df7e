"""The base class of every section of a config."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Part of a config. It cannot be changed once it is read, and it refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
