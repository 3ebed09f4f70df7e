"""The section ``data``: where prompts, answers and comparisons come from."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from training.config.section import Section
from training.identity import CONTENTS

FILES = ("transcripts", "preferences", "pools", "prompts")
"""Keys of ``data`` whose rows are read from files or from the hub, rather than generated."""
HELD_OUT_TEXT = "prompts that no stage trains on; a third of them is for validation, the rest for the test"


class HelpDesk(Section):
    """The help desk, a small world of questions and answers that the project generates itself."""

    held_out: int = Field(ge=2, description=HELD_OUT_TEXT)
    answers: int = Field(
        gt=0, description="written answers per training prompt; prompts with a risky request get twice as many"
    )
    pairs: int = Field(gt=0, description="comparisons (a better and a worse answer) per prompt, for the reward model")


class Files(Section):
    """Rows that already exist, in files or on the Hugging Face hub."""

    paths: Annotated[tuple[str, ...], CONTENTS] = Field(
        (),
        description="files with a JSON object per line or with one JSON array; a name that ends in .gz means gzip; "
        "--data on the command line replaces them",
    )
    hub: Annotated[str | None, CONTENTS] = Field(
        None, description="id of a dataset on the hub, or a folder of one, in place of paths: Anthropic/hh-rlhf"
    )
    subset: str | None = Field(None, description="data_dir of the hub's dataset, such as harmless-base")
    split: str = Field("train", description="split of the hub's dataset")
    held_out: int = Field(ge=2, description=HELD_OUT_TEXT)
    limit: int | None = Field(None, gt=0, description="rows that are used at most; all rows if left out")

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        if bool(self.paths) == bool(self.hub):
            raise ValueError("give paths (or --data), or hub: exactly one of the two")
        return self


class Pools(Files):
    """Rows with a prompt and a pool of responses, each of which has a score."""

    pairs: int = Field(
        gt=0, description="comparisons per prompt, drawn at random among responses with different scores"
    )
    answers: int = Field(1, gt=0, description="responses per prompt, the best ones, that the reference learns to write")


class Prompts(Files):
    """Rows with a prompt alone."""

    held_out: int | None = Field(  # type: ignore[assignment]  # the other kinds of files require it
        None, ge=0, description=f"{HELD_OUT_TEXT}; if left out, a quarter, at most 300, or none of fewer than 8"
    )


class Data(Section):
    """Where the data comes from. Exactly one key is given."""

    helpdesk: HelpDesk | None = Field(None, description="the help desk that the project generates")
    transcripts: Files | None = Field(
        None, description="rows as in HH-RLHF: two whole transcripts, one chosen and one rejected"
    )
    preferences: Files | None = Field(
        None, description="rows in one of TRL's preference formats, each side as text or as messages"
    )
    pools: Pools | None = Field(None, description="rows with a prompt and a pool of scored responses")
    prompts: Prompts | None = Field(
        None, description="rows with a prompt alone; they cannot train a reference or a reward model"
    )

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        names = [name for name in type(self).model_fields if getattr(self, name)]
        if len(names) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}; got {names or 'none'}")
        return self

    @property
    def source(self) -> str:
        """The key that is given, such as ``helpdesk``."""
        return next(name for name in type(self).model_fields if getattr(self, name))

    @property
    def files(self) -> Files:
        """The section of the files. There is none where the data is generated."""
        return getattr(self, self.source)  # type: ignore[no-any-return]
