"""The command ``infalign bundle``: a bundle of models that already exist, without training."""

import re
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import click

from infalign.errors import InvalidValue, one_line
from infalign.home import bundle_path

LONGEST = 8192
"""Tokens of prompt and response together, where the policy could take more and nobody says."""


@click.command(short_help="Make a bundle of models that exist.")
@click.option("--policy", required=True, metavar="MODEL", help="The model that answers: a directory, or a hub id.")
@click.option(
    "--reward",
    "rewards",
    multiple=True,
    metavar="MODEL",
    help="A sequence classifier whose output says how good an answer is; again for more.",
)
@click.option(
    "--harm", "harms", multiple=True, metavar="MODEL", help="A classifier whose output says how bad an answer is."
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="File of prompts to calibrate: JSON lines of texts or messages.  [default: six of the project's own]",
)
@click.option("--samples", type=click.IntRange(1), default=64, show_default=True, help="Answers drawn per prompt, K.")
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest answer.")
@click.option(
    "--positions",
    type=click.IntRange(1),
    help=f"Longest prompt and answer together, in tokens.  [default: the policy's own, at most {LONGEST}]",
)
@click.option(
    "--engine", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True, help="What draws."
)
@click.option("--name", help="Model name that the server answers to.  [default: the last part of the policy's]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A key of the training config, such as seed=1."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Bundle directory.  [default: $INFALIGN_HOME/bundles/NAME]"
)
def bundle(
    policy: str,
    rewards: tuple[str, ...],
    harms: tuple[str, ...],
    prompts: Path | None,
    samples: int,
    max_tokens: int,
    positions: int | None,
    engine: str,
    name: str | None,
    overrides: tuple[str, ...],
    output: Path | None,
) -> None:
    """Make a bundle of a policy and its rewards, which `infalign serve` serves. Nothing is trained.

    The policy answers each of the prompts K times, and the rewards score the answers. The server calibrates any other
    prompt when it is asked to. What is already done is reused; a run that was killed goes on where it stopped.
    """
    if not rewards and not harms:
        raise InvalidValue("--reward", "none", "at least one --reward or --harm")
    from training.cli import run
    from training.configs import make_config

    with as_file(files("training.data").joinpath("general_prompts.jsonl")) as general:
        values: dict[str, Any] = {
            "seed": 0,
            "name": name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(policy).name).lstrip("._-") or "policy",
            "data": {"prompts": {"paths": [str((prompts or general).absolute())]}},
            "model": {"base": {"path": policy, "positions": positions or read_positions(policy)}},
            "reward": {
                "classifiers": [
                    {"path": path, "higher_is": sign}
                    for sign, paths in (("better", rewards), ("worse", harms))
                    for path in paths
                ]
            },
            "rollouts": {"samples": samples, "max_tokens": max_tokens, "engine": engine},
        }
        config = make_config(values, overrides)
        run(config, output or bundle_path(config.policy_name))


def read_positions(policy: str) -> int:
    """Read how many tokens a policy can take.

    Args:
        policy: Directory of a causal LM, or its id on the hub.

    Returns:
        The number of tokens, at most :data:`LONGEST`.

    Raises:
        InvalidValue: There is no such model.
    """
    from transformers import AutoConfig

    from training.hub import check_model

    check_model(policy, "--policy", "a causal LM")
    try:
        config = AutoConfig.from_pretrained(policy, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidValue("--policy", policy, f"a causal LM, by directory or hub id ({one_line(error)})") from error
    return int(min(LONGEST, getattr(config.get_text_config(), "max_position_embeddings", LONGEST)))
