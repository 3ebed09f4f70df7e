"""Reads rewards as the command line names them: ``MODEL``, ``judge:MODEL``, ``function:MODULE:FUNCTION`` and others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue, one_line
from training.named_policies import local_model

SERVICES = {"service": "rewards"} | {name: name for name in ("classify", "pooling", "score", "openrlhf")}
"""Protocol of a service by the word before its address."""
REFERENCE_JUDGE = "judge:reference"
"""The policy's reference as the judge of its answers, on the command line."""


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
        kinds = ("judges", "reference_judges", "remote_judges")
        judges = [judge for kind in kinds for judge in section.get(kind, [])]
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
        >>> parse_reward("--reward", "judge:reference"), parse_reward("--reward", "judge:./reference")
        (('reference_judges', {}), ('judges', {'path': './reference'}))
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
    if text == REFERENCE_JUDGE:
        return "reference_judges", {}
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
