"""The reference as a judge: its engine reads a rubric with a response, and gives the probability of each score."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from infalign.bundle import Bundle
from infalign.errors import RewardMismatch
from infalign.rewards import ReferenceJudge, RewardFailed
from server.concurrency import Shared
from server.decoding.tried_reward import TriedReward
from server.engines.base import Engines, EnginesDown, RequestFailed
from server.engines.trial import RewardTrial, fitting_examples, reward_trials
from server.observability.metrics import Metrics

CACHE = 8192
"""Texts whose rewards are remembered."""


class ReferenceJudgment(TriedReward[Sequence[int]]):
    """One reward that the reference gives as a judge.

    Equal texts are judged once. The text of a response begins with the rubric and the conversation, which the engine's
    prefix cache keeps for the other responses.

    Args:
        name: Name of the reward.
        judge: Which tokens write scores, and what they are worth.
        engines: The engines, which have the reference.
        trial: The examples with their rewards.
        metrics: Counts failures and tokens.
    """

    def __init__(
        self, name: str, judge: ReferenceJudge, engines: Engines, trial: RewardTrial, metrics: Metrics
    ) -> None:
        super().__init__(name, trial)
        self._judge, self._engines = judge, engines
        self._failures, self._tokens = metrics.reward_failures.labels(name), metrics.judge_tokens.labels(name)
        self._cached_tokens = metrics.judge_cached_tokens.labels(name)
        self._cache: OrderedDict[tuple[int, ...], float] = OrderedDict()
        self._running = Shared[float]()

    def examples(self) -> dict[int, Sequence[int]]:
        try:
            places = fitting_examples([self.trial], self._engines.context - 1)
        except RewardMismatch as error:
            raise RequestFailed(str(error), internal=True) from error
        return {place: self.trial.tokens[place] for place in places}

    async def _score(self, text: Sequence[int]) -> float:
        key = tuple(text)
        if key not in self._cache:
            self._cache[key] = await self._running.get(key, lambda: self._ask(list(text)))
            while len(self._cache) > CACHE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    async def _ask(self, text: list[int]) -> float:
        try:
            answer = await self._engines.next_logprobs(text, self._judge.tokens)
            self._tokens.inc(answer.tokens)
            self._cached_tokens.inc(answer.cached_tokens)
            return self._judge.score(answer.logprobs)
        except EnginesDown:
            self.is_tried = False
            raise
        except RewardFailed as error:
            self._failures.inc()
            raise RequestFailed(f"the reward {self.name}: {error}") from error
        except RequestFailed:
            self._failures.inc()
            raise


def reference_judgments(
    bundle: Bundle, judges: Mapping[str, ReferenceJudge], engines: Engines, metrics: Metrics
) -> dict[str, ReferenceJudgment]:
    """Create the rewards of a bundle that its reference gives as a judge.

    Args:
        bundle: The bundle, with the examples that they must reproduce.
        judges: The judges, by the name of the reward.
        engines: The engines, which have the reference.
        metrics: Counts failures and tokens.
    """
    trials = reward_trials(bundle, {name: judge.tokenizer for name, judge in judges.items()})
    return {name: ReferenceJudgment(name, judge, engines, trials[name], metrics) for name, judge in judges.items()}
