"""The figures of an evaluation, computed from its draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from infalign import estimators
from infalign.errors import InvalidValue
from infalign.estimators import Estimate, over_prompts
from infalign.frontier import point
from infalign.procedures import BestOfN, Procedure, Standard, WorstOfN
from training.evaluation.draws import Draws, Floats

NS = (2, 4, 8)
FEWEST_DRAWS, MOST_DRAWS = 64, 4096
"""Draws per prompt and model."""


@dataclass(frozen=True)
class Decoded:
    """Both sides decoded by one procedure."""

    procedure: str
    win_rate: Estimate
    """By the reward model that selects."""
    theory: float
    """Win rate of the optimum for this transformation at the measured KL, with K anchors."""
    judged_win_rate: Estimate | None
    """By the judge, of the same selections."""
    judge_policy: Estimate | None
    """The judge's mean score of what is selected."""
    judge_reference: Estimate | None


@dataclass(frozen=True)
class Overselection:
    """Whether selecting harder stops helping by the judge's measure: reward hacking at decoding time."""

    ns: tuple[int, ...]
    scores: tuple[Estimate, ...]
    """The judge's mean score of the policy's best of each n."""
    gains: tuple[Estimate, ...]
    """Of each n over the one before it."""

    @property
    def harmful(self) -> int | None:
        """The first n whose selection the judge finds worse than that of the n before, beyond chance."""
        return next((n for n, gain in zip(self.ns[1:], self.gains, strict=True) if gain.high < 0), None)


@dataclass(frozen=True)
class Evaluation:
    """All figures, on P prompts and M draws per prompt and side."""

    prompts: int
    draws: int
    transformation: str
    procedure: str
    kl: Estimate
    decoded: tuple[Decoded, ...]
    overselection: Overselection | None

    def under(self, procedure: str) -> Decoded:
        """The figures of one procedure."""
        return next(row for row in self.decoded if row.procedure == procedure)


def procedures_of(trained_for: Procedure, ns: Sequence[int] = NS) -> tuple[Procedure, ...]:
    """Standard, best-of-n and worst-of-n for every n, and what the policy was trained for."""
    every = [Standard(), *map(BestOfN, ns), *map(WorstOfN, ns), trained_for]
    return tuple({str(procedure): procedure for procedure in every}.values())


def enough(count: int, procedure: Procedure) -> bool:
    """Whether ``count`` draws per prompt say anything of ``procedure``."""
    return not np.isnan(procedure.order_weights(count)).any()


def enough_draws(procedure: Procedure) -> int:
    """Draws per prompt that the estimates of ``procedure`` can be made from.

    Raises:
        InvalidValue: they would be more than the evaluation draws.
    """
    draws = FEWEST_DRAWS
    while not enough(draws, procedure):
        draws *= 2
        if draws > MOST_DRAWS:
            raise InvalidValue("procedure", str(procedure), f"one that {MOST_DRAWS} draws are enough for")
    return draws


def check_draws(count: int, procedures: Sequence[Procedure]) -> None:
    """See that ``count`` draws per prompt are enough for every procedure.

    Raises:
        InvalidValue: they are not.
    """
    for procedure in procedures:
        if not enough(count, procedure):
            raise InvalidValue("draws", count, f"enough for {procedure}")


def evaluate(
    draws: Draws,
    procedures: Sequence[Procedure],
    transformation: str,
    trained_for: Procedure,
    anchors: int,
) -> Evaluation:
    """Every figure with its 95% interval over prompts; ``transformation`` with ``anchors`` = K gives theory's part.

    Raises:
        InvalidValue: too few draws for a procedure.
    """
    count = draws.policy.rewards.shape[1]
    check_draws(count, procedures)
    kl = over_prompts(draws.kl)
    return Evaluation(
        prompts=len(draws.kl),
        draws=count,
        transformation=transformation,
        procedure=str(trained_for),
        kl=kl,
        decoded=tuple(
            _decoded(
                draws,
                procedure,
                point(transformation, procedure, kl=kl.value, anchors=anchors, aligned_for=trained_for).win_rate
                if kl.value > 0
                else 0.5,
            )
            for procedure in procedures
        ),
        overselection=_overselection(draws, count),
    )


def _decoded(draws: Draws, procedure: Procedure, theory: float) -> Decoded:
    ours, theirs = draws.policy, draws.reference
    wins = over_prompts(estimators.win_rate(ours.rewards, theirs.rewards, procedure))
    if ours.judged is None or theirs.judged is None:
        return Decoded(str(procedure), wins, theory, None, None, None)
    judged = estimators.judged_win_rate(ours.rewards, ours.judged, theirs.rewards, theirs.judged, procedure)
    policy = estimators.expected_judged(ours.rewards, ours.judged, procedure)
    reference = estimators.expected_judged(theirs.rewards, theirs.judged, procedure)
    return Decoded(str(procedure), wins, theory, over_prompts(judged), over_prompts(policy), over_prompts(reference))


def _overselection(draws: Draws, count: int) -> Overselection | None:
    side = draws.policy
    if side.judged is None:
        return None
    ns = tuple(2**power for power in range(int(np.log2(count)) + 1))
    scores: list[Floats] = [estimators.expected_judged(side.rewards, side.judged, BestOfN(n)) for n in ns]
    return Overselection(
        ns,
        tuple(map(over_prompts, scores)),
        tuple(over_prompts(after - before) for before, after in pairwise(scores)),
    )
