"""The models that ``infalign bundle`` and ``infalign train`` name on the command line, and the keys that they set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from infalign.errors import InvalidValue
from infalign.names import model_name
from training.named_policies import LONGEST, choose_padding, local_model, read_positions
from training.named_rewards import make_rewards

F = TypeVar("F", bound=Callable[..., Any])
OPTIONS = (
    click.option(
        "--policy",
        metavar="MODEL",
        help="The model that answers: a directory, a hub id (also ID@REVISION), or a GGUF file.",
    ),
    click.option(
        "--reward",
        "rewards",
        multiple=True,
        metavar="REWARD",
        help="What says how good an answer is: a classifier MODEL (MODEL#LABEL for one of its outputs), "
        "judge:reference, judge:MODEL, judge:URL#MODEL, function:MODULE:FUNCTION, or service:URL; again for more.",
    ),
    click.option("--harm", "harms", multiple=True, metavar="REWARD", help="The same, where a high score means worse."),
    click.option(
        "--rubric",
        type=click.Path(path_type=Path),
        help="File with what judges read, with {conversation} and {response} in it.  [default: one for helpfulness]",
    ),
    click.option(
        "--prompts",
        type=click.Path(path_type=Path),
        help="File of prompts: JSON lines, or a JSON array, of texts or of objects with a `prompt`; also .gz. `bundle` "
        "calibrates six of the project's own if it is left out.",
    ),
    click.option("--samples", type=click.IntRange(1), help="Answers drawn per prompt, K.  [default: 32]"),
    click.option("--max-tokens", type=click.IntRange(1), help="Longest answer.  [default: 128]"),
    click.option(
        "--reasoning-parser",
        metavar="NAME",
        help="vLLM's parser that separates reasoning from answers, such as qwen3; rewards read the answers alone.",
    ),
    click.option(
        "--positions",
        type=click.IntRange(1),
        help=f"Longest prompt and answer together, in tokens.  [default: the policy's own, at most {LONGEST}]",
    ),
    click.option("--engine", type=click.Choice(["vllm", "transformers"]), help="What draws.  [default: vllm]"),
    click.option("--name", help="Model name that the server answers to.  [default: made from the policy's]"),
)
"""The options, which the two commands have in common."""


def model_options(command: F) -> F:
    """Add :data:`OPTIONS` to a click command, which gives them to :class:`NamedModels`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class NamedModels:
    """Models of the command line, and how they are used. What is not given is left to the config."""

    policy: str | None = None
    """A causal LM: a directory, an id on the hub, or a GGUF file."""
    rewards: tuple[str, ...] = ()
    """Rewards, as :func:`training.named_rewards.parse_reward` takes them."""
    harms: tuple[str, ...] = ()
    """The same, where a high score means worse."""
    rubric: Path | None = None
    """File with what judges read."""
    prompts: Path | None = None
    """File of prompts."""
    samples: int | None = None
    """K, responses per prompt."""
    max_tokens: int | None = None
    """Longest response, in tokens."""
    reasoning_parser: str | None = None
    """vLLM's parser that separates reasoning from answers."""
    positions: int | None = None
    """Longest prompt and response together, in tokens."""
    engine: str | None = None
    """Library that draws the rollouts."""
    name: str | None = None
    """Model name under which the policy is served."""

    def keys(self) -> dict[str, Any]:
        """Make the keys of a config that are given. Whole sections are among them.

        Returns:
            Values by dotted keys.

        Raises:
            InvalidValue: A model cannot be read, or an option is given without the one that it belongs to.

        Example:
            >>> NamedModels(rewards=("org/reward",), samples=8).keys()
            {'reward': {'classifiers': [{'higher_is': 'better', 'path': 'org/reward'}]}, 'rollouts.samples': 8}
        """
        keys: dict[str, Any] = {}
        if self.policy:
            from training.hub import pin_model

            path = pin_model(local_model(self.policy, "--policy"), "--policy", "a causal LM")
            base = {"path": path, "positions": self.positions or read_positions(path)} | choose_padding(path)
            keys |= {"name": model_name(self.policy, "policy"), "policy": None, "model": {"base": base}}
        elif self.positions:
            raise InvalidValue("--positions", self.positions, "nothing without --policy; set model.base.positions")
        if self.rewards or self.harms:
            keys["reward"] = make_rewards(self.rewards, self.harms, self.rubric)
        elif self.rubric:
            raise InvalidValue("--rubric", str(self.rubric), "nothing without --reward or --harm")
        if self.prompts:
            keys["data"] = {"prompts": {"paths": [str(self.prompts.absolute())]}}
        given = {
            "policy": self.name,
            "rollouts.samples": self.samples,
            "rollouts.max_tokens": self.max_tokens,
            "rollouts.reasoning_parser": self.reasoning_parser,
            "rollouts.engine": self.engine,
        }
        return keys | {key: value for key, value in given.items() if value is not None}
