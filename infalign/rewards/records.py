"""The records of rewards that are not classifiers, as they stand in ``reward.json`` and in training configs."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel

from infalign.files import REWARD, read_record
from infalign.names import is_http_address
from infalign.rewards.rubric import RUBRIC, SCORES, check_rubric, check_scores


def _check_function(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError("module:function, such as my_rewards:brevity")
    return text


def _check_url(text: str) -> str:
    if not is_http_address(text):
        raise ValueError("an address such as http://host:9000/score")
    return text.rstrip("/")


MOST_SCORES = 128
"""Scores of the reference as a judge, at most: the tokens whose log-probabilities vLLM gives at a time."""
Url = Annotated[str, AfterValidator(_check_url)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    higher_is: Literal["better", "worse"] = Field(
        "better", description="what a high score means; for worse (toxicity, harm) the sign is turned"
    )


class FunctionReward(_Record):
    """A Python function that scores a batch of responses, in a process of its own."""

    kind: Literal["function"] = "function"
    function: Annotated[str, AfterValidator(_check_function)] = Field(
        description="module:function; called with the conversations and the responses, it returns a number for each"
    )
    source: str = Field("", description="SHA-256 of the function's file; filled in by the program")
    batch: int = Field(64, gt=0, description="responses of one call, at most")
    seconds: float = Field(60, gt=0, allow_inf_nan=False, description="longest time of one call")


class _Remote(_Record):
    seconds: float = Field(30, gt=0, allow_inf_nan=False, description="longest time of one request")
    key: str | None = Field(
        None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="environment variable with the API key; none is sent if left out",
    )


class ServiceReward(_Remote):
    """An HTTP service that scores responses."""

    kind: Literal["service"] = "service"
    url: Url = Field(description="address that requests are posted to")
    protocol: Literal["rewards", "classify", "pooling", "score", "openrlhf"] = Field(
        "rewards",
        description="form of requests and answers: rewards is this project's own; classify, pooling and score are "
        "vLLM's; openrlhf that of OpenRLHF's reward servers",
    )
    model: str | None = Field(None, description="model of a vLLM server; its only one if left out")
    output: int = Field(0, ge=0, description="which output of a vLLM classifier is the score, counted from 0")
    batch: int = Field(64, gt=0, description="responses of one request, at most, where the protocol takes several")


class JudgeReward(_Remote):
    """A language model behind an OpenAI-compatible server, which reads a rubric and a response and writes a score.

    The reward is the mean of the scores, weighted by the probabilities of the tokens that write them. It hardly ever
    ties, where the likeliest score alone would.
    """

    kind: Literal["judge"] = "judge"
    url: Url = Field(description="base address, such as http://host:8001/v1")
    model: str = Field(min_length=1, description="the judge's name on that server")
    rubric: Annotated[str, AfterValidator(check_rubric)] = Field(
        RUBRIC, description="what the judge reads, with {conversation} and {response} in it"
    )
    scores: Annotated[dict[str, float], AfterValidator(check_scores)] = Field(
        SCORES, description="what the judge may write, a token each, and what it is worth"
    )
    concurrency: int = Field(16, gt=0, description="requests at a time")


class ReferenceJudgeReward(_Record):
    """The reference as its own judge: it reads a rubric and a response, and writes a score.

    The reward is the mean of the scores, as that of :class:`JudgeReward`. It needs no weights but the reference's.
    """

    kind: Literal["reference_judge"] = "reference_judge"
    rubric: Annotated[str, AfterValidator(check_rubric)] = Field(
        RUBRIC, description="what the judge reads, with {conversation} and {response} in it"
    )
    scores: Annotated[dict[str, float], AfterValidator(check_scores)] = Field(
        SCORES, max_length=MOST_SCORES, description="what the judge may write, a token each, and what it is worth"
    )


ForeignReward = FunctionReward | ServiceReward | JudgeReward
"""A reward that runs code or asks an address which the bundle names."""
Reward = Annotated[ForeignReward | ReferenceJudgeReward, Field(discriminator="kind")]
"""A reward that has no weights of its own."""


class _File(RootModel[Reward]):
    """The content of ``reward.json``."""


def save_reward(reward: "ForeignReward | ReferenceJudgeReward", directory: Path) -> None:
    """Write a reward into its directory, which is made.

    Args:
        reward: The reward.
        directory: The directory that stands for it in a bundle.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / REWARD).write_text(reward.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_reward(directory: Path) -> "ForeignReward | ReferenceJudgeReward | None":
    """Read the reward that :func:`save_reward` wrote.

    Args:
        directory: Directory of a reward in a bundle.

    Returns:
        The reward. None if the directory holds a classifier.

    Raises:
        BundleCorrupt: The file is not a JSON object.
        BundleMismatch: The file describes no reward that this version knows.
    """
    file = directory / REWARD
    return read_record(_File, file).root if file.is_file() else None
