"""The command ``infalign bundle``: a bundle of models that already exist, without training."""

import re
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import click

from infalign.errors import InvalidValue, one_line
from infalign.files import hash_file
from infalign.home import bundle_path, home
from infalign.manifest import NAME
from infalign.names import slug

SERVICES = {"service": "rewards"} | {name: name for name in ("classify", "pooling", "score", "openrlhf")}
"""Protocol of a service by the word before its address."""
LONGEST = 8192
"""Tokens of prompt and response together, where the policy could take more and nobody says."""


@click.command(short_help="Make a bundle of models that exist.")
@click.option(
    "--policy", required=True, metavar="MODEL", help="The model that answers: a directory, a hub id, or a GGUF file."
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[NAME=]DIR",
    help="Serve this LoRA adapter on the policy, which is then its reference alone; again for more.",
)
@click.option(
    "--reward",
    "rewards",
    multiple=True,
    metavar="REWARD",
    help="What says how good an answer is: a classifier MODEL (MODEL#LABEL for one of its outputs), judge:MODEL, "
    "judge:URL#MODEL, function:MODULE:FUNCTION, or service:URL; again for more.",
)
@click.option("--harm", "harms", multiple=True, metavar="REWARD", help="The same, where a high score means worse.")
@click.option(
    "--rubric",
    type=click.Path(path_type=Path),
    help="File with what judges read, with {conversation} and {response} in it.  [default: one for helpfulness]",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="File of prompts to calibrate: JSON lines of texts or messages.  [default: six of the project's own]",
)
@click.option("--samples", type=click.IntRange(1), default=32, show_default=True, help="Answers drawn per prompt, K.")
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
    adapters: tuple[str, ...],
    rewards: tuple[str, ...],
    harms: tuple[str, ...],
    rubric: Path | None,
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

    policy_name = name or make_name(policy)
    directories = parse_adapters(adapters)
    policy = local_model(policy, "--policy")
    with as_file(files("training.data").joinpath("general_prompts.jsonl")) as general:
        values: dict[str, Any] = {
            "seed": 0,
            "name": policy_name,
            "data": {"prompts": {"paths": [str((prompts or general).absolute())]}},
            "model": {
                "base": {"path": policy, "positions": positions or read_positions(policy)} | choose_padding(policy)
            },
            "reward": make_rewards(rewards, harms, rubric),
            "rollouts": {"samples": samples, "max_tokens": max_tokens, "engine": engine},
        }
        config = make_config(values, overrides)
        target = output or bundle_path(config.policy_name)
        run(config, target)
    if directories:
        from training.adapters import add_adapters

        add_adapters(target, directories)


def make_name(source: str) -> str:
    """Make the name of a policy from where it comes from.

    Example:
        >>> make_name("org/My Model"), make_name("models/SmolLM2-135M-Instruct.Q4_1.gguf")
        ('My-Model', 'SmolLM2-135M-Instruct.Q4_1')
    """
    return slug(Path(source).name.removesuffix(".gguf"), "policy")


def local_model(source: str, key: str) -> str:
    """Convert a GGUF file to a directory that is kept below ``$INFALIGN_HOME``.

    Args:
        source: A GGUF file; or a directory or hub id, which is returned as it is.
        key: Name of the setting that error messages blame.

    Raises:
        InvalidValue: The file cannot be converted.
    """
    file = Path(source)
    if file.suffix != ".gguf" or file.is_dir():
        return source
    if not file.is_file():
        raise InvalidValue(key, source, "a GGUF file that exists")
    target = home() / "models" / f"{make_name(source)}-{hash_file(file)[:8]}"
    if not target.exists():
        import transformers

        from training.gguf import convert

        transformers.utils.logging.disable_progress_bar()
        print(f"{source}: converted once, into {target}", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        convert(file, target, key)
    return str(target)


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
        name = name if separator else make_name(text)
        if not (directory / "adapter_config.json").is_file():
            raise InvalidValue("--adapter", text, "the directory of a LoRA adapter, with adapter_config.json")
        if name in adapters or not re.fullmatch(NAME, name):
            raise InvalidValue("--adapter", text, "NAME=DIR, with a name of letters, digits, . _ - for each adapter")
        adapters[name] = directory
    return adapters


def make_rewards(rewards: Sequence[str], harms: Sequence[str], rubric: Path | None = None) -> dict[str, Any]:
    """Make the section ``reward`` of a config from the command line.

    Args:
        rewards: Rewards as ``--reward`` takes them.
        harms: The same, where a high score means worse.
        rubric: File with the rubric of the judges.

    Raises:
        InvalidValue: A reward cannot be read, or there is a rubric and no judge.

    Example:
        >>> make_rewards(["org/reward"], ["function:my_rewards:rudeness"])["functions"]
        [{'higher_is': 'worse', 'function': 'my_rewards:rudeness'}]
    """
    section: dict[str, list[dict[str, Any]]] = {}
    for flag, sign, texts in (("--reward", "better", rewards), ("--harm", "worse", harms)):
        for text in texts:
            kind, values = parse_reward(flag, text)
            section.setdefault(kind, []).append({"higher_is": sign} | values)
    if rubric:
        judges = [*section.get("judges", []), *section.get("remote_judges", [])]
        if not judges:
            raise InvalidValue("--rubric", str(rubric), "a rubric only where a reward is a judge: --reward judge:MODEL")
        for judge in judges:
            judge["rubric"] = _read_rubric(rubric)
    return section


def parse_reward(flag: str, text: str) -> tuple[str, dict[str, Any]]:
    """Parse a reward of the command line.

    Args:
        flag: Name of the option, for messages.
        text: Its value.

    Returns:
        The key of its list in the section ``reward``, and its entry.

    Raises:
        InvalidValue: The text names a judge's server without the judge, or nothing.

    Example:
        >>> parse_reward("--reward", "judge:http://host:8001/v1#qwen")
        ('remote_judges', {'url': 'http://host:8001/v1', 'model': 'qwen'})
        >>> parse_reward("--harm", "org/toxicity#toxic")
        ('classifiers', {'path': 'org/toxicity', 'label': 'toxic'})
    """
    scheme, _, rest = text.partition(":")
    source, _, fragment = rest.partition("#")
    if not (rest if scheme in (*SERVICES, "judge", "function") else text):
        raise InvalidValue(flag, text, "a reward, such as a model's directory, judge:MODEL or function:MODULE:FUNCTION")
    if scheme == "judge" and source.startswith(("http://", "https://")):
        if not fragment:
            raise InvalidValue(flag, text, "judge:URL#MODEL, with the name of the judge on that server")
        return "remote_judges", {"url": source, "model": fragment}
    if scheme == "judge":
        return "judges", {"path": local_model(rest, flag)}
    if scheme == "function":
        return "functions", {"function": rest}
    if scheme in SERVICES:
        model = {"model": fragment} if fragment else {}
        return "services", {"url": source, "protocol": SERVICES[scheme]} | model
    path, separator, label = text.partition("#")
    return "classifiers", {"path": path} | ({"label": label} if separator else {})


def _read_rubric(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue("--rubric", str(file), f"a text file in UTF-8 ({one_line(error)})") from error


def choose_padding(policy: str) -> dict[str, str]:
    """Choose a padding token for a policy whose tokenizer has none, or pads with the token that ends a turn.

    Args:
        policy: Directory of a causal LM, or its id on the hub.

    Returns:
        The key ``pad_token`` of ``model.base`` with a special token that has no other use; nothing if the tokenizer's
        own will do, or if there is no such token.
    """
    from training.tokenizer import read_tokenizer, unused_tokens

    tokenizer = read_tokenizer(policy, "--policy", "a causal LM")
    if tokenizer.pad_token not in (None, tokenizer.eos_token):
        return {}
    unused = unused_tokens(tokenizer)
    return {"pad_token": unused[0]} if unused else {}


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
