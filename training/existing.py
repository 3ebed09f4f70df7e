"""The command ``infalign bundle``: a bundle of models that already exist, without training."""

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import click

from infalign.errors import InvalidValue
from infalign.home import bundle_path
from infalign.manifest import NAME
from infalign.names import model_name
from training.named_models import NamedModels, model_options


@click.command(short_help="Make a bundle of models that exist.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[NAME=]DIR",
    help="Serve this LoRA adapter on the policy, which is then its reference alone; again for more.",
)
@model_options
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A key of the training config, such as seed=1."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Bundle directory.  [default: $INFALIGN_HOME/bundles/NAME]"
)
def bundle(adapters: tuple[str, ...], overrides: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Make a bundle of a policy and its rewards, which `infalign serve` serves. Nothing is trained.

    The policy answers each of the prompts K times, and the rewards score the answers. The server calibrates any other
    prompt when it is asked to. What is already done is reused; a run that was killed goes on where it stopped.
    """
    models = NamedModels(**options)
    if not models.policy:
        raise InvalidValue("--policy", "none", "the model that answers: a directory, a hub id, or a GGUF file")
    if not models.rewards and not models.harms:
        raise InvalidValue("--reward", "none", "at least one --reward or --harm")
    from training.cli import run
    from training.configs import ADAPTER, make_config, read_config

    directories = parse_adapters(adapters)
    values = read_config(ADAPTER)
    for key in ("procedure", "transformation", "ctrl"):
        del values[key]
    with as_file(files("training.data").joinpath("general_prompts.jsonl")) as general:
        models = replace(models, prompts=models.prompts or general)
        config = make_config(values, overrides, keys=models.keys())
        target = output or bundle_path(config.policy_name)
        run(config, target)
    if directories:
        from training.adapters import add_adapters

        add_adapters(target, directories)


def parse_adapters(texts: Sequence[str]) -> dict[str, Path]:
    """Parse the adapters of the command line.

    Args:
        texts: Directories, each after a name and an equals sign or alone.

    Returns:
        The directories by name.

    Raises:
        InvalidValue: A directory holds no adapter, or two have the same name.

    Example:
        >>> parse_adapters([])
        {}
    """
    adapters: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        directory = Path(path if separator else text)
        name = name if separator else model_name(text, "policy")
        if not (directory / "adapter_config.json").is_file():
            raise InvalidValue("--adapter", text, "the directory of a LoRA adapter, with adapter_config.json")
        if name in adapters or not re.fullmatch(NAME, name):
            raise InvalidValue("--adapter", text, "NAME=DIR, with a name of letters, digits, . _ - for each adapter")
        adapters[name] = directory
    return adapters
