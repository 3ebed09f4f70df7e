"""Judges behind an OpenAI-compatible server."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from infalign.rewards.base import OpenReward, RewardFailed, check_scores, sign_of
from infalign.rewards.records import JudgeReward
from infalign.rewards.rubric import expected_score_of_tokens, fill_rubric
from infalign.rewards.service import make_client, post
from infalign.templates import Message

CACHE = 8192
"""Texts whose scores are remembered."""
ALTERNATIVES = 20
"""Likeliest tokens that are asked for, the most that OpenAI's API gives."""


class Judge(OpenReward):
    """A judge that is ready to score.

    Args:
        name: Name of the reward, for messages.
        record: Where the judge is, its rubric and its scores.

    Raises:
        InvalidValue: The environment variable of the API key is not set.
    """

    def __init__(self, name: str, record: JudgeReward) -> None:
        self.batch = 4 * record.concurrency
        self._name, self._record = f"the judge of the reward {name}", record
        self._client = make_client(record)
        self._threads = ThreadPoolExecutor(record.concurrency, "reward-judge")
        self._cache: OrderedDict[str, float] = OrderedDict()
        self._lock = Lock()

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        """Score a batch of responses (:meth:`infalign.rewards.base.OpenReward.score`). Equal texts are judged once."""
        texts = [fill_rubric(self._record.rubric, *pair) for pair in zip(prompts, responses, strict=True)]
        fresh = [text for text in dict.fromkeys(texts) if text not in self._cache]
        scores = {text: self._cache[text] for text in texts if text in self._cache}
        scores |= zip(fresh, self._threads.map(self._ask, fresh), strict=True)
        with self._lock:
            self._cache |= scores
            while len(self._cache) > CACHE:
                self._cache.popitem(last=False)
        return check_scores(self._name, [scores[text] for text in texts], len(texts), sign_of(self._record.higher_is))

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _ask(self, text: str) -> float:
        body = {
            "model": self._record.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": ALTERNATIVES,
        }
        answer = post(self._client, f"{self._record.url}/chat/completions", body, self._name)
        try:
            entry = answer["choices"][0]["logprobs"]["content"][0]
            logprobs = {str(token["token"]): float(token["logprob"]) for token in (entry, *entry["top_logprobs"])}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RewardFailed(f"{self._name} answered without log-probabilities of its tokens") from error
        with self._lock:
            self.tokens += _read_count(answer, "usage", "total_tokens")
            self.cached_tokens += _read_count(answer, "usage", "prompt_tokens_details", "cached_tokens")
        score = expected_score_of_tokens(logprobs, self._record.scores)
        if score is None:
            likeliest = max(logprobs, key=lambda token: logprobs[token])
            raise RewardFailed(
                f"{self._name} writes none of its scores {', '.join(self._record.scores)}, but {likeliest!r}"
            )
        return score


def _read_count(answer: Any, *keys: str) -> int:
    """Read a number of tokens from an answer; 0 if it is not there."""
    for key in keys:
        answer = answer.get(key) if isinstance(answer, Mapping) else None
    return answer if isinstance(answer, int) else 0
