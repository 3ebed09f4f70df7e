"""Rehearsals: stored responses that are drawn again, in rounds, as a server would draw them.

The responses, their lengths and the laws at every checkpoint are known. So a rehearsal says at once, for any rule, how
good the selected response is and how many tokens are drawn.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.quantile_law import QuantileLaw
from infalign.rejection import RejectionRule


@dataclass(frozen=True)
class Run:
    """What a rehearsal did to every group of candidates.

    Args:
        selected: (...,) number of the selected candidate.
        quantile: (...,) its quantile.
        tokens: (...,) tokens drawn, over all candidates.
        started: (...,) candidates that were started.
        rounds: (...,) rounds until the end.
    """

    selected: NDArray[np.int_]
    quantile: Floats
    tokens: NDArray[np.int_]
    started: NDArray[np.int_]
    rounds: NDArray[np.int_]


@dataclass(frozen=True)
class Rehearsal:
    """Stored responses to prompts, with their laws at every checkpoint.

    Quantiles and laws are counted so that 1 is best for the procedure; :attr:`mirror` is for worst-of-n.

    Args:
        quantiles: (..., n) final quantiles, such as (P, K) for K responses to each of P prompts.
        lengths: (..., n) lengths in tokens.
        laws: (..., n, T, B) probabilities of the bins at T checkpoints. Those after the end of a response do not count.
        step: Tokens between two checkpoints. Checkpoint t, from 0, comes after (t + 1) ``step`` tokens.

    Raises:
        InvalidValue: The shapes do not fit each other.

    Examples:
        >>> import numpy as np
        >>> from infalign import Rehearsal, Rejection
        >>> laws = np.array([[[0.9, 0.1]], [[0.1, 0.9]]])
        >>> rehearsal = Rehearsal(np.array([0.2, 0.7]), np.array([8, 6]), laws, step=4)
        >>> run = rehearsal.run(Rejection(0.2))
        >>> float(run.quantile), int(run.tokens), int(run.rounds)
        (0.7, 10, 2)
    """

    quantiles: Floats
    lengths: NDArray[np.int_]
    laws: Floats
    step: int

    def __post_init__(self) -> None:
        if self.laws.ndim < 3 or not self.quantiles.shape == self.lengths.shape == self.laws.shape[:-2]:
            raise InvalidValue("laws", self.laws.shape, f"(..., n, T, B), with (..., n) {self.quantiles.shape}")

    @property
    def mirror(self) -> "Rehearsal":
        """The same responses, with 0 as the best quantile in place of 1."""
        return replace(self, quantiles=1 - self.quantiles, laws=self.laws[..., ::-1])

    def group(self, n: int, repeats: int = 4, seed: int = 0) -> "Rehearsal":
        """Group the responses to each prompt into candidates of best-of-n.

        Args:
            n: Candidates of a group, at most K.
            repeats: How often the K responses are shuffled and cut into groups.
            seed: Seed of the shuffles.

        Returns:
            The responses in the shape (P, R, n), with R = repeats ⌊K/n⌋.

        Raises:
            InvalidValue: There are fewer than n responses.
        """
        prompts, samples = self.quantiles.shape
        if not 1 <= n <= samples:
            raise InvalidValue("n", n, f"a whole number from 1 to {samples}")
        random = np.random.default_rng(seed)
        count = samples // n
        orders = random.permuted(np.tile(np.arange(samples), (prompts, repeats, 1)), axis=-1)
        return self.take(orders[..., : count * n].reshape(prompts, repeats * count, n))

    def take(self, numbers: NDArray[np.int_]) -> "Rehearsal":
        """Take some of the K responses to each of P prompts.

        Args:
            numbers: (P, ...) numbers of responses, from 0 to K - 1.

        Returns:
            The responses in the shape of ``numbers``.
        """
        rows = np.arange(len(numbers)).reshape(-1, *[1] * (numbers.ndim - 1))
        return Rehearsal(
            self.quantiles[rows, numbers], self.lengths[rows, numbers], self.laws[rows, numbers], self.step
        )

    def run(self, rule: RejectionRule | None = None, width: int | None = None, target: float | None = None) -> Run:
        """Draw the n candidates of every group in rounds.

        ``width`` candidates run side by side. A round is ``step`` tokens of each. After a round, the group stops if a
        finished candidate reaches the target; the rule rejects candidates; and the next candidates start in the free
        places.

        Args:
            rule: What rejects candidates; None rejects none.
            width: Candidates that run side by side; all n if left out.
            target: Quantile at which to stop; None draws all n candidates.

        Returns:
            What happened to each group.

        Raises:
            InvalidValue: The width is below 1.
        """
        shape, (n, checkpoints, bins) = self.quantiles.shape[:-1], self.laws.shape[-3:]
        width = n if width is None else width
        if width < 1:
            raise InvalidValue("width", width, "a whole number of at least 1")
        quantiles, lengths = self.quantiles.reshape(-1, n), self.lengths.reshape(-1, n)
        laws, order = self.laws.reshape(-1, n, checkpoints, bins), np.arange(n)
        begun = np.zeros(lengths.shape, dtype=int)  # the round before the first of each candidate
        tokens, rounds = np.zeros(lengths.shape, dtype=int), np.zeros(len(lengths), dtype=int)
        finished, running = np.zeros(lengths.shape, dtype=bool), np.tile(order < width, (len(lengths), 1))
        started, active = np.full(len(lengths), min(width, n)), np.arange(len(lengths))
        while active.size:
            rounds[active] += 1
            now = running[active]
            age = rounds[active, None] - begun[active]
            read = np.minimum(age * self.step, lengths[active])
            tokens[active] = np.where(now, read, tokens[active])
            ended = finished[active] | (now & (read == lengths[active]))
            finished[active] = ended
            now &= ~ended
            best = np.max(np.where(ended, quantiles[active], 0.0), axis=-1)
            if target is not None:
                now &= (best < target)[:, None]
            if rule is not None and now.any():
                places = np.clip(age - 1, 0, checkpoints - 1)
                law = QuantileLaw(np.take_along_axis(laws[active], places[..., None, None], axis=-2)[..., 0, :])
                now &= ~rule.reject(law, best, now, n - started[active])
            going = np.ones(len(active), dtype=bool) if target is None else best < target
            first = started[active, None]
            new = (order >= first) & (order < first + width - now.sum(axis=-1, keepdims=True)) & going[:, None]
            begun[active] = np.where(new, rounds[active, None], begun[active])
            started[active] += new.sum(axis=-1)
            running[active] = now | new
            active = active[(now | new).any(axis=-1)]
        selected = np.argmax(np.where(finished, quantiles, -1.0), axis=-1)
        best = quantiles[np.arange(len(quantiles)), selected]
        found = (selected, best, tokens.sum(axis=-1), started, rounds)
        return Run(*(np.asarray(each).reshape(shape) for each in found))
