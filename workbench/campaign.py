"""A campaign: many samples of each prompt, asked for until they are stored or given up."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from workbench.criteria import Criterion
from workbench.errors import Busy, RequestFailed, RequestRefused, Unreachable
from workbench.prompts import Prompt
from workbench.retries import back_off
from workbench.runner import Task
from workbench.sources import Source
from workbench.store import Failure, Store
from workbench.tally import Tally

LEAST_PER_ROUND = 16
"""Samples of a prompt after which it is seen whether its interval is narrow enough."""
LEFT_OUT = RequestFailed("candidate_failed", "the server answered without these candidates")


@dataclass(frozen=True)
class Target:
    """How many samples there shall be of each prompt."""

    n: int
    """So many; with a width, at most so many."""
    width: float | None = None
    """Until the 95% interval of the prompt's share of hits is this narrow."""
    criterion: Criterion | None = None
    """What a hit is, if there is a width."""


class Campaign:
    """Gets the samples that a store does not have yet.

    Args:
        source: Where samples come from.
        store: Where samples are stored.
        target: How many samples there shall be.
        max_n: Largest N of a request that the server takes.
        retries: How often a request that failed is sent again.
        report: Called with the number of samples that were stored or given up.
    """

    def __init__(
        self, source: Source, store: Store, target: Target, max_n: int, retries: int, report: Callable[[int], object]
    ) -> None:
        self.source, self.store, self.target = source, store, target
        self.retries, self.report = retries, report
        self._size = min(source.per_request, max_n)
        self._given_up: defaultdict[str, set[int]] = defaultdict(set)
        self._refused: dict[str, tuple[str, str]] = {}
        """Code and message of the refusal, by prompt."""
        for failure in store.failures:
            self._given_up[failure.prompt_id].update(failure.indices)
            if source.repeats_prompt:
                self._refused[failure.prompt_id] = (failure.code, failure.message)
        self._tally = Tally(store, target.criterion) if target.width and target.criterion else None

    def tasks(self, prompts: Sequence[Prompt], count: Callable[[Prompt], int]) -> Iterator[Task]:
        """List what is to be done, for :func:`workbench.runner.run_tasks`.

        Args:
            prompts: The prompts.
            count: Most samples of a prompt.
        """
        for prompt in prompts:
            if self._tally is not None:
                yield partial(self._narrow, prompt, self._tally)
            else:
                for indices in self._missing(prompt, count(prompt), self._size):
                    yield partial(self._get, prompt, indices)

    def _missing(self, prompt: Prompt, count: int, size: int) -> Iterator[range]:
        done = self.store.done(prompt.id) | self._given_up[prompt.id]
        for run in split_runs([index for index in range(count) if index not in done]):
            yield from split_range(run, size)

    async def _narrow(self, prompt: Prompt, tally: Tally) -> None:
        """Get samples of a prompt, round by round, until its interval is narrow enough."""
        for indices in list(self._missing(prompt, self.target.n, LEAST_PER_ROUND)):
            if tally.width(prompt.id) <= (self.target.width or 0):
                self.report(len(indices))
                continue
            for part in split_range(indices, self._size):
                await self._get(prompt, part)

    async def _get(self, prompt: Prompt, indices: range) -> None:
        """Ask for samples, again and again if need be, and store them or why they are missing.

        Raises:
            WorkbenchError: The campaign cannot go on.
            DiskFull: Samples cannot be stored.
        """
        missing, failures = list(indices), 0
        while missing and prompt.id not in self._refused:
            run, error = split_runs(missing)[0], LEFT_OUT
            try:
                samples = await self.source.ask(prompt, run)
            except (Busy, Unreachable):
                continue  # the pace waits, and gives up at some time
            except RequestRefused as refusal:
                if self.source.repeats_prompt:  # other requests for the prompt would be refused too
                    self._refused[prompt.id] = (refusal.code, str(refusal))
                self._give_up(prompt, missing, refusal.code, str(refusal), failures + 1, permanent=True)
                return
            except RequestFailed as failure:
                samples, error = [], failure
            self.store.add(samples)
            if self._tally is not None:
                self._tally.add(samples)
            self.report(len(samples))
            missing = sorted(set(missing) - {sample.index for sample in samples})
            if len(samples) < len(run):
                failures += 1
                if failures > self.retries:
                    self._give_up(prompt, missing, error.code, str(error), failures, permanent=False)
                    return
                await back_off(failures)
        if missing:  # the prompt was refused meanwhile, or in an earlier run
            self._give_up(prompt, missing, *self._refused[prompt.id], attempts=0, permanent=True)

    def _give_up(
        self, prompt: Prompt, indices: Sequence[int], code: str, message: str, attempts: int, permanent: bool
    ) -> None:
        self.store.add_failure(
            Failure(
                prompt_id=prompt.id,
                prompt=prompt.text,
                indices=list(indices),
                code=code,
                message=message,
                attempts=attempts,
                permanent=permanent,
            )
        )
        self.report(len(indices))


def split_range(run: range, size: int) -> Iterator[range]:
    """Split a run of indices into parts of at most ``size``.

    Examples:
        >>> list(split_range(range(3, 8), 2))
        [range(3, 5), range(5, 7), range(7, 8)]
    """
    return (run[start : start + size] for start in range(0, len(run), size))


def split_runs(indices: Sequence[int]) -> list[range]:
    """Split sorted indices into runs without gaps.

    Examples:
        >>> split_runs([0, 1, 4])
        [range(0, 2), range(4, 5)]
    """
    runs: list[range] = []
    for index in indices:
        if runs and runs[-1].stop == index:
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs
