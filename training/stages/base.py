"""The base class of stages, and the results of earlier stages."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from training.config import Config


@dataclass
class Artifacts:
    """What the stages of a run have made."""

    directories: dict[str, Path] = field(default_factory=dict)
    """Directories of the stages by their names."""

    @property
    def data(self) -> Path:
        """Directory of the stage ``data``: prompts, answers, comparisons and the tokenizer."""
        return self.directories["data"]

    @property
    def reference(self) -> Path:
        """Directory of the reference model."""
        return self.directories["sft"] / "model"

    @property
    def reward(self) -> Path:
        """Directory of the reward model, or of several."""
        return self.directories["reward"] / "model"

    @property
    def rollouts(self) -> Path:
        """Directory of the stage ``rollouts``: scored responses of the reference to every prompt."""
        return self.directories["rollouts"]

    @property
    def calibration(self) -> Path:
        """Directory of the stage ``calibrate``: the calibration tables."""
        return self.directories["calibrate"]

    @property
    def scorer(self) -> Path:
        """Directory of the prefix scorer: a classifier, and how it was made."""
        return self.directories["scorer"] / "model"

    @property
    def policy(self) -> Path:
        """Directory of the policy: a model, or an adapter on the reference."""
        return self.directories["ctrl"] / "model"

    @property
    def evaluation(self) -> Path:
        """Directory of the stage ``evaluate``: draws and figures of policy and reference on test prompts."""
        return self.directories["evaluate"]

    @property
    def judged(self) -> Path:
        """Directory of the stage ``judge``: the largest N that the judge supports."""
        return self.directories["judge"]


class Stage(ABC):
    """One step of a run. It leaves a directory, and it is not repeated while what it is made from stays the same.

    Example:
        A stage that counts prompts, by a function ``count(directory, *, data)`` in ``training/counts.py``::

            class CountPrompts(Stage):
                name = "count"
                build = "training.counts:count"
                purpose = "counts the prompts"

                def inputs(self, config, artifacts):
                    return {"data": artifacts.data}
    """

    name: ClassVar[str]
    """Name of the stage, and start of the name of its directory."""
    build: ClassVar[str]
    """Function that does the work, written ``module:function``; called with a directory and the inputs by name."""
    purpose: ClassVar[str]
    """What the stage is for, in a few words."""
    resumes: ClassVar[bool] = False
    """Whether the function continues what a killed run has left in the directory."""

    @abstractmethod
    def inputs(self, config: Config, artifacts: Artifacts) -> Mapping[str, Any]:
        """Return everything that the stage is made from, by the names of the function's parameters.

        Args:
            config: Config of the run.
            artifacts: What earlier stages have made.
        """

    def is_part_of(self, config: Config) -> bool:
        """Say whether a run has the stage."""
        return True

    def is_parallel(self, config: Config) -> bool:
        """Say whether all processes of a run take part. Otherwise the first one builds and the others wait."""
        return False

    def libraries(self, config: Config) -> Sequence[str]:
        """Return the libraries of :data:`training.runner.OPTIONAL_LIBRARIES` that the stage uses."""
        return ()
