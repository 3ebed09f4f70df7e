"""Draws candidates side by side, and rejects those that will hardly be selected: early rejection.

Draws go in rounds. In each, every candidate goes on to its next checkpoint, where the prefix scorer predicts its
quantile. The round ends when all have got there, and their laws are known. Then those that have ended may meet the
stopping rule, others are rejected, and fresh candidates take their places. Candidates do not wait for the end of a
round, but what they draw beyond their checkpoint does not count before its time. So the seed alone determines the
answer, as without early rejection.
"""

import asyncio

import numpy as np

from infalign.procedures import WorstOfN
from infalign.quantile_law import QuantileLaw
from infalign.rejection import Rejection, RejectionRule
from infalign.stopping import StoppingRule
from server.decoding.candidates import Candidates
from server.decoding.draws import Draw
from server.decoding.jobs import CandidateRejected, Job, Rejections, TokenCost
from server.decoding.prefixes import Prefixes
from server.decoding.rank_laws import RankLaws
from server.decoding.standing import Standing
from server.decoding.waves import FIRST_WAVE, Reason, Stop, reason_of
from server.errors import ServerError, Unavailable
from server.observability.failures import report_unexpected
from server.protocol.answers import Candidate

PLACES = 0.5
"""Candidates that are drawn at a time under a stopping rule, as a share of a wave.

With as many as a wave has, more tokens are wasted on those that are aborted in the end than rejection saves.
"""


class Rounds:
    """Draws the candidates of one job in rounds.

    Args:
        job: What to decode. It selects one candidate.
        group: Draws and scores single candidates.
        prefixes: Reads the beginnings of candidates.
        laws: Predicts the ranks of the policy's candidates. The scorer's predictions are for those of the reference.
    """

    def __init__(self, job: Job, group: Candidates, prefixes: Prefixes, laws: RankLaws) -> None:
        self._job, self._group, self._prefixes, self._laws = job, group, prefixes, laws
        self._rule = job.rule
        self._rejection: RejectionRule = Rejection(0.0)
        self._is_calibrated = False
        self._changed = asyncio.Event()
        self._running: list[Draw] = []
        self._candidates: list[Candidate] = []
        self._draws: list[Draw] = []
        self._rejected: dict[int, int] = {}
        self._aborted: dict[int, int] = {}
        self._unread: set[int] = set()
        self._scorer_is_down = False

    async def gather(self, until: float) -> tuple[list[Candidate], Stop | None, Rejections]:
        """Draw and score candidates until the rule is met, all are drawn, or time runs out.

        Args:
            until: When to give up, as a time of the event loop's clock.

        Returns:
            The candidates that have ended by index, why there are no more if the job has a rule, and what was left.

        Raises:
            TimeoutError: Time ran out before enough candidates were scored.
            ServerError: Too many candidates failed. This is the error of the first.
        """
        standing = await self._group.find_standing(until)
        await self._price_draws(standing, until)
        places = await self._set_rule(standing)
        reason: Reason | None = None
        try:
            async with asyncio.timeout_at(until):
                while (reason := self._end(standing)) is None:
                    self._begin_round(places)
                    await self._wait()
                    self._take_ended(standing)
                    if self._running and self._end(standing) is None:
                        self._reject()
            self._aborted = {draw.index: draw.tokens for draw in self._running}
        except TimeoutError:
            self._take_late(standing)
            reason = self._end(standing) or "timeout"
        finally:
            left = [draw for draw in self._running if draw.index not in self._aborted]
            self._group.abandon(sum(not draw.is_complete for draw in left))
            for draw in self._draws:
                draw.cancel()
            await asyncio.gather(*(draw.join() for draw in self._draws))
        self._check(reason)
        rule = self._rule if isinstance(self._rule, StoppingRule) else None
        stop = Stop(reason, self._group.drawn, rule) if self._job.rule else None
        return self._candidates, stop, Rejections(self._rejected, self._aborted, len(self._unread))

    async def _price_draws(self, standing: Standing, until: float) -> None:
        """Draw a first wave to the end, if the rule must know how many tokens a draw has."""
        group, job = self._group, self._job
        clock = asyncio.get_running_loop()
        while isinstance(self._rule, TokenCost) and group.drawn < job.draws and clock.time() < until:
            size = min(FIRST_WAVE, job.draws - group.drawn)
            await group.draw(size, 0 if job.replaces_failures else size, until)
            if candidates := group.locate(standing):
                tokens = sum(candidate.completion_tokens for candidate in candidates)
                self._rule = self._rule.per_draw(tokens / len(candidates))
                self._candidates = candidates

    async def _set_rule(self, standing: Standing) -> int:
        """Set the rule that rejects candidates. Returns how many candidates are drawn at a time."""
        record, self._is_calibrated = self._prefixes.record, standing.calibration.scope != "global"
        samples = standing.calibration.samples
        law = await self._laws.find(self._job.sampling.policy, samples)
        if not isinstance(self._rule, StoppingRule):
            self._rejection = record.rejection_for(self._job.procedure, law)
            return self._job.draws
        self._rejection = record.rejection_under(self._rule, samples, law)
        wave = self._rule.waves(samples, law)[0]
        is_reachable = self._rule.rank_threshold(samples) <= samples
        return max(1, round(wave * PLACES)) if is_reachable else wave

    def _end(self, standing: Standing) -> Reason | None:
        """Return why nothing more is to be drawn; None if something is."""
        rewards = [candidate.reward for candidate in self._candidates]
        if rewards and isinstance(self._rule, StoppingRule) and self._rule.reaches(rewards, standing.calibration):
            return reason_of(self._rule)
        return "cap" if not self._running and self._group.drawn >= self._job.draws else None

    def _begin_round(self, places: int) -> None:
        """Begin fresh candidates in the places that are free, and let all go on to their next checkpoint."""
        free = min(places - len(self._running), self._job.draws - self._group.drawn)
        step = self._prefixes.record.checkpoint
        fresh = [Draw(index, step, self._group, self._read, self._changed.set) for index in self._group.begin(free)]
        self._draws += fresh
        self._running += fresh
        # The last one of all is never rejected, so nothing need be read. Nor if nothing is ever rejected.
        is_last = len(self._running) == 1 and not (self._candidates and self._is_calibrated)
        if self._job.rule is None and (is_last or self._rejection == Rejection(0.0)):
            for draw in self._running:
                draw.begin_last_round()
            return
        for draw in self._running:
            draw.begin_round()

    async def _wait(self) -> None:
        """Wait until every candidate has got as far as the round goes. Drop those that fail."""
        while True:
            self._changed.clear()
            for draw in list(self._running):
                if failure := draw.failure:
                    self._running.remove(draw)
                    self._group.abandon(1)
                    self._group.add_failure(failure)
                    self._check_failures()
            if all(draw.is_ready for draw in self._running):
                return
            await self._changed.wait()

    def _take_ended(self, standing: Standing) -> None:
        """Take the candidates that have ended in this round."""
        if ended := [draw for draw in self._running if draw.has_ended]:
            for draw in ended:
                self._take(draw, standing)
            self._candidates = self._group.locate(standing)

    def _take_late(self, standing: Standing) -> None:
        """Take every candidate that is scored, also those ahead of their round. Time has run out for the others."""
        for draw in list(self._running):
            if draw.is_complete:
                self._take(draw, standing)
            else:
                self._group.add_failure(TimeoutError())
        self._candidates = self._group.locate(standing)

    def _take(self, draw: Draw, standing: Standing) -> None:
        self._running.remove(draw)
        self._group.add(draw.index, *draw.result)
        self._group.tell(draw.index, *draw.result, standing)

    def _reject(self) -> None:
        """Reject candidates at the checkpoints of their round. One that could not be read is kept."""
        laws = [draw.law for draw in self._running]
        uniform = QuantileLaw.uniform(self._prefixes.scorer.bins)
        law = QuantileLaw(np.stack([(law or uniform).probabilities for law in laws]))
        # The scorer's quantiles are those of the prompt itself. Pooled ones cannot be compared with them.
        quantiles = [candidate.quantile for candidate in self._candidates] if self._is_calibrated else []
        if isinstance(self._job.procedure, WorstOfN):
            law, quantiles = law.mirror, [1 - quantile for quantile in quantiles]
        fresh = self._job.draws - self._group.drawn
        decisions = self._rejection.reject(law, max(quantiles, default=0.0), fresh=fresh)
        for draw, known, rejected in zip(list(self._running), laws, decisions, strict=True):
            if rejected and known:
                draw.cancel()
                self._running.remove(draw)
                self._rejected[draw.index] = draw.tokens
                self._group.notify(CandidateRejected(draw.index, draw.tokens))

    async def _read(self, index: int, tokens: list[int]) -> QuantileLaw | None:
        """Read the beginning of a candidate. A failure of the scorer rejects nobody, and fails no request."""
        if not self._scorer_is_down:
            try:
                return await self._prefixes.law(self._group.prompt, tokens)
            except ServerError as error:
                self._scorer_is_down |= isinstance(error, Unavailable)
            except Exception as error:
                report_unexpected(error, "the prefix scorer")
                self._scorer_is_down = True
        self._unread.add(index)
        return None

    def _check_failures(self) -> None:
        """Raise an error if there cannot be enough candidates any more."""
        missing = len(self._group.errors)
        can_be_replaced = self._job.rule and self._job.replaces_failures
        if not can_be_replaced and missing > self._job.draws - self._job.min_candidates:
            raise self._group.errors[0]

    def _check(self, reason: Reason) -> None:
        """Raise an error if none is good enough, and there are fewer than the job needs. Rejected ones count."""
        if reason in ("target", "cost"):
            return
        count = len(self._candidates) + len(self._rejected)
        errors = self._group.errors
        if errors and (not self._candidates or count < self._job.min_candidates):
            raise TimeoutError if reason == "timeout" else errors[0]
        self._group.check_answers(len(self._rejected))
