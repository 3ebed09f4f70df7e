"""Draws candidates in waves until a stopping rule is met: adaptive N.

Whole waves are finished, and all their candidates take part in the selection. So the seed alone determines the answer,
whichever candidate of a wave happens to be the fastest.
"""

import asyncio
from dataclasses import dataclass
from typing import Literal

from infalign.cost import Cost
from infalign.stopping import StoppingRule
from server.access.disclosure import draws_to_show
from server.decoding.candidates import Candidates
from server.decoding.jobs import Job, TokenCost
from server.decoding.rank_laws import RankLaws
from server.decoding.standing import Standing
from server.protocol.answers import Candidate

Reason = Literal["target", "cost", "cap", "greedy", "timeout"]
"""Why draws stopped."""
FIRST_WAVE = 4
"""Size of the first wave if it must tell how many tokens a draw has."""


@dataclass(frozen=True)
class Stop:
    """When and why the draws of one job stopped."""

    reason: Reason
    drawn: int
    """How many candidates were drawn, or at least begun."""
    rule: StoppingRule | None
    """The rule; None if time ran out before a cost per token became a cost per draw, or with greedy sampling."""
    waves: tuple[int, ...] | None = None
    """Sizes of the waves. None with early rejection, where candidates follow each other one by one."""


class Waves:
    """Draws the candidates of one job in waves.

    Args:
        job: What to decode. It has a rule.
        group: Draws the candidates.
        laws: Predicts the ranks of the policy's candidates, for the size of the waves.
    """

    def __init__(self, job: Job, group: Candidates, laws: RankLaws) -> None:
        self._job, self._group, self._laws = job, group, laws
        self._rule = job.rule
        # The least number of candidates that can be shown as the job asks.
        self._least = min(job.draws, job.top if job.sees_all else draws_to_show(job.top))

    async def gather(self, until: float) -> tuple[list[Candidate], Stop]:
        """Draw and score waves until the rule is met, N candidates are drawn, or time runs out.

        Args:
            until: When to give up, as a time of the event loop's clock.

        Returns:
            The candidates by index, and why there are no more.

        Raises:
            TimeoutError: Time ran out before enough candidates were scored.
            ServerError: Too many candidates failed. This is the error of the first.
        """
        job, group, sizes = self._job, self._group, list[int]()
        standing = await group.find_standing(until)
        candidates: list[Candidate] = []
        reason: Reason | None = None
        while reason is None:
            size = min(await self._size(standing), job.draws - group.drawn)
            await group.draw(size, 0 if job.replaces_failures else size, until)
            sizes.append(size)
            candidates = group.locate(standing)
            if isinstance(self._rule, TokenCost) and candidates:
                self._rule = self._rule.per_draw(sum(one.completion_tokens for one in candidates) / len(candidates))
            reason = self._stops(candidates, standing, asyncio.get_running_loop().time() >= until)
        if reason in ("cap", "timeout"):
            self._check(candidates, reason)
        rule = None if isinstance(self._rule, TokenCost) else self._rule
        return candidates, Stop(reason, group.drawn, rule, tuple(sizes))

    async def _size(self, standing: Standing) -> int:
        """Compute the size of the next wave."""
        if self._job.sampling.greedy:
            return self._least
        if not isinstance(self._rule, StoppingRule):
            return max(FIRST_WAVE, self._least)
        law = await self._laws.find(self._job.sampling.policy, standing.calibration.samples)
        return self._rule.waves(standing.calibration.samples, law, self._least)[0]

    def _stops(self, candidates: list[Candidate], standing: Standing, is_late: bool) -> Reason | None:
        """Return why no further wave is to be drawn; None if one is."""
        is_enough = len(candidates) >= self._least
        if is_enough and self._job.sampling.greedy:
            return "greedy"
        rewards = [candidate.reward for candidate in candidates]
        if is_enough and isinstance(self._rule, StoppingRule) and self._rule.reaches(rewards, standing.calibration):
            return reason_of(self._rule)
        is_capped = self._group.drawn >= self._job.draws
        if is_late and not (is_capped and len(candidates) == self._job.draws):
            return "timeout"
        return "cap" if is_capped else None

    def _check(self, candidates: list[Candidate], reason: Reason) -> None:
        """Raise an error if no candidate is good enough, and there are fewer candidates than the job needs."""
        if reason == "timeout" and len(candidates) < self._job.min_candidates:
            raise TimeoutError
        if self._group.errors and len(candidates) < self._job.min_candidates:
            raise self._group.errors[0]
        self._group.check_answers()


def reason_of(rule: StoppingRule) -> Reason:
    """Return why draws stop when a rule is met."""
    return "cost" if isinstance(rule, Cost) else "target"
