"""Scoring services behind HTTP: this project's own protocol, vLLM's endpoints, and OpenRLHF's reward servers."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from infalign.errors import InvalidValue
from infalign.rewards.base import OpenReward, RewardFailed, check_scores, sign_of
from infalign.rewards.records import JudgeReward, ServiceReward
from infalign.rewards.rubric import write_conversation
from infalign.templates import Message

CONNECT_SECONDS = 5.0
"""Longest time that connecting may take."""
CONNECTIONS = 16
"""Requests at a time, where a protocol takes one response per request."""


class Service(OpenReward):
    """A scoring service that is ready to score.

    Args:
        name: Name of the reward, for messages.
        record: Where the service is, and how it is asked.

    Raises:
        InvalidValue: The environment variable of the API key is not set.
    """

    def __init__(self, name: str, record: ServiceReward) -> None:
        self._single = record.protocol in ("classify", "pooling")  # vLLM takes one conversation per request
        self.batch = record.batch
        self._name, self._record = f"the service of the reward {name}", record
        self._client = make_client(record)
        self._threads = ThreadPoolExecutor(CONNECTIONS, "reward-service")

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        """Score a batch of responses (:meth:`infalign.rewards.base.OpenReward.score`)."""
        if self._single:
            scores = list(self._threads.map(self._score_one, prompts, responses))
        else:
            answer = post(self._client, self._record.url, self._request(prompts, responses), self._name)
            scores = self._read(answer)
        return check_scores(self._name, scores, len(responses), sign_of(self._record.higher_is))

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _score_one(self, prompt: Sequence[Message], response: str) -> Any:
        body = {
            "messages": [*prompt, {"role": "assistant", "content": response}],
            "add_generation_prompt": False,
            "use_activation": False,
            **({"model": self._record.model} if self._record.model else {}),
            **({"task": "classify"} if self._record.protocol == "pooling" else {}),
        }
        answer = post(self._client, self._record.url, body, self._name)
        key = "probs" if self._record.protocol == "classify" else "data"
        outputs = _item(_item(_item(answer, "data"), 0), key)
        return _item(outputs, self._record.output) if isinstance(outputs, list) else outputs

    def _request(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> dict[str, Any]:
        texts = [write_conversation(prompt) for prompt in prompts]
        if self._record.protocol == "openrlhf":
            queries = [f"{text}\n\nassistant: {response}" for text, response in zip(texts, responses, strict=True)]
            return {"query": queries, "prompts": texts, "labels": [""] * len(texts)}
        if self._record.protocol == "score":
            model = {"model": self._record.model} if self._record.model else {}
            return {"text_1": texts, "text_2": list(responses), "use_activation": False, **model}
        return {"prompts": [list(prompt) for prompt in prompts], "responses": list(responses)}

    def _read(self, answer: Any) -> Any:
        if self._record.protocol == "score":
            data = _item(answer, "data")
            return [_item(entry, "score") for entry in data] if isinstance(data, list) else None
        return _item(answer, "rewards")


def make_client(record: ServiceReward | JudgeReward) -> httpx.Client:
    """Make the HTTP client of a service or a judge.

    Raises:
        InvalidValue: The environment variable of the API key is not set.
    """
    headers = {}
    if record.key:
        if not (key := os.environ.get(record.key)):
            raise InvalidValue("key", record.key, "an environment variable with the API key; it is not set")
        headers["Authorization"] = f"Bearer {key}"
    timeout = httpx.Timeout(record.seconds, connect=min(CONNECT_SECONDS, record.seconds))
    # Servers close idle connections. Earlier expiry avoids using one that is just being closed.
    limits = httpx.Limits(max_connections=64, keepalive_expiry=2)
    return httpx.Client(headers=headers, timeout=timeout, limits=limits)


def post(client: httpx.Client, url: str, body: dict[str, Any], name: str) -> Any:
    """Post a request and read the answer.

    Args:
        client: The client.
        url: The address.
        body: The request.
        name: What messages call the service.

    Returns:
        The JSON of the answer.

    Raises:
        RewardFailed: The service cannot be reached, is slow, or answers with an error or without JSON.
    """
    try:
        response = client.post(url, json=body)
    except httpx.ConnectError as error:
        raise RewardFailed(f"{name} cannot be reached", is_of_content=False) from error
    except httpx.TimeoutException as error:
        raise RewardFailed(f"{name} gave no answer within {client.timeout.read:g} s", is_of_content=False) from error
    except httpx.HTTPError as error:
        raise RewardFailed(f"{name} broke off ({type(error).__name__})", is_of_content=False) from error
    if response.status_code != httpx.codes.OK:
        raise RewardFailed(f"{name} answered HTTP {response.status_code}")
    try:
        return response.json()
    except ValueError as error:
        raise RewardFailed(f"{name} answered without JSON") from error


def _item(value: Any, key: str | int) -> Any:
    """Look up an item; None if there is none."""
    try:
        return value[key]
    except (KeyError, IndexError, TypeError):
        return None
