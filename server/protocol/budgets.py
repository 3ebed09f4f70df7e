"""Bodies of ``/v1/budgets``."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from server.protocol.answers import Answer
from server.protocol.fields import Count, Encodable
from server.protocol.messages import ChatFields, Messages, check_last_turn

RawText = Annotated[str, Field(min_length=1), Encodable]
MAX_PROMPTS = 1024
"""The most prompts and conversations of a request."""


class BudgetsRequest(ChatFields):
    """Body of ``/v1/budgets``. The fields that say how messages become a prompt hold for all conversations."""

    model: str | None = Field(None, description="name of the served model; may be left out")
    prompts: list[RawText] = Field([], description="raw texts to continue, no chat template applied")
    conversations: list[Messages] = Field(
        [],
        validate_default=True,
        description=f"the messages of each conversation; with the prompts, 1 to {MAX_PROMPTS} of them",
    )
    total: Count = Field(description="draws for all prompts and conversations together")
    least: Count = Field(1, description="the fewest draws of each")
    most: Count | None = Field(
        None, description="the most draws of each; by default, and at most, the server's limit of N"
    )

    @field_validator("conversations")
    @classmethod
    def _check_number(cls, conversations: list[Messages], info: ValidationInfo) -> list[Messages]:
        number = len(info.data.get("prompts", [None])) + len(conversations)
        if not 1 <= number <= MAX_PROMPTS:
            raise ValueError(f"1 to {MAX_PROMPTS} prompts and conversations together, not {number}")
        for messages in conversations if "continue_final_message" in info.data else ():
            check_last_turn(messages, info.data["continue_final_message"])
        return conversations


class Budget(Answer):
    """The draws of one prompt, and what they are worth by the prediction."""

    n: int = Field(description="how many candidates to draw")
    expected_reward: float = Field(description="expected reward of the best of n responses of the reference")
    gain: float = Field(description="how much more that is than the expected reward of one response")


class BudgetsAnswer(Answer):
    """Answer of ``/v1/budgets``."""

    object: Literal["budgets"] = "budgets"
    model: str
    prompts: list[Budget] = Field(description="in the order of the request")
    conversations: list[Budget]
    total: int = Field(description="draws of all together; below the request's if each has the most")
    expected_reward: float = Field(description="mean over all prompts and conversations")
    even_reward: float = Field(description="the same if the draws were split evenly")
