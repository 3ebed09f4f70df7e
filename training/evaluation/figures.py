"""Computes the figures of an evaluation from its draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from infalign import estimators
from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.estimators import Estimate, over_prompts
from infalign.frontier import point
from infalign.mixture import Mixture
from infalign.procedures import BestOfN, Procedure, Standard, WorstOfN
from training.evaluation.draws import Draws

NS = (2, 4, 8)
"""Values of n for best-of-n and worst-of-n."""
FEWEST_DRAWS, MOST_DRAWS = 64, 4096
"""Fewest and most draws per prompt and model."""


@dataclass(frozen=True)
class ProcedureFigures:
    """The figures of one decoding procedure, which both policy and reference are decoded by.

    Those of a mixture are the weighted means over its procedures.
    """

    procedure: str
    """Name of the procedure, or of the mixture."""
    win_rate: Estimate
    """Win rate of the policy over the reference, by the reward model that selects responses."""
    theory: float
    """Win rate of the optimal policy for the transformation at the measured KL, with K rewards per prompt."""
    judged_win_rate: Estimate | None
    """Win rate of the same selected responses by the judge."""
    judge_policy: Estimate | None
    """The judge's mean score of the policy's selected responses."""
    judge_reference: Estimate | None
    """The judge's mean score of the reference's selected responses."""


@dataclass(frozen=True)
class Overselection:
    """Whether selecting harder stops helping by the judge.

    That is reward hacking at decoding time: the best of many responses exploits the reward model.
    """

    ns: tuple[int, ...]
    """Values of n, each twice the one before."""
    scores: tuple[Estimate, ...]
    """The judge's mean score of the policy's best of n, for each n."""
    gains: tuple[Estimate, ...]
    """Gain in that score of each n over the one before."""

    @property
    def harmful(self) -> int | None:
        """The first n whose score is lower than that of the n before, beyond chance. None if there is none."""
        return next((n for n, gain in zip(self.ns[1:], self.gains, strict=True) if gain.high < 0), None)


@dataclass(frozen=True)
class Evaluation:
    """All figures of an evaluation on P prompts with M draws per prompt and model."""

    prompts: int
    """P."""
    draws: int
    """M."""
    transformation: str
    """Transformation that the policy was trained with."""
    procedure: str
    """Decoding procedure that the policy was trained for, or a mixture of several."""
    kl: Estimate
    """KL of the policy from the reference, in nats per response."""
    decoded: tuple[ProcedureFigures, ...]
    """Figures of each procedure."""
    overselection: Overselection | None
    """Whether selecting harder stops helping. None without a judge."""

    def under(self, procedure: str) -> ProcedureFigures:
        """Return the figures of one procedure."""
        return next(row for row in self.decoded if row.procedure == procedure)


def procedures_of(trained_for: Procedure | Mixture, ns: Sequence[int] = NS) -> tuple[Mixture, ...]:
    """List what a policy is evaluated under, each once.

    That is one draw, the best and the worst of each n, the procedures that the policy was trained for, and their
    mixture.

    Args:
        trained_for: That mixture, or the one procedure.
        ns: Values of n.
    """
    aligned_for = Mixture.of(trained_for)
    every = (Standard(), *map(BestOfN, ns), *map(WorstOfN, ns), *aligned_for.procedures)
    return tuple(dict.fromkeys([*map(Mixture.of, every), aligned_for]))


def is_enough(count: int, procedure: Procedure | Mixture) -> bool:
    """Say whether ``count`` draws per prompt are enough to estimate figures under ``procedure``."""
    return not np.isnan(Mixture.of(procedure).average(lambda one: one.order_weights(count))).any()


def count_draws(procedure: Procedure | Mixture) -> int:
    """Return how many draws per prompt the figures of ``procedure`` are estimated from.

    Raises:
        InvalidValue: They would be more than :data:`MOST_DRAWS`.
    """
    draws = FEWEST_DRAWS
    while not is_enough(draws, procedure):
        draws *= 2
        if draws > MOST_DRAWS:
            raise InvalidValue("procedure", str(procedure), f"one that {MOST_DRAWS} draws are enough for")
    return draws


def check_draws(count: int, procedures: Sequence[Procedure | Mixture], key: str = "draws") -> None:
    """Check that ``count`` draws per prompt are enough for all procedures.

    Args:
        count: Draws per prompt.
        procedures: Decoding procedures and mixtures of them.
        key: Name of the setting that the error blames.

    Raises:
        InvalidValue: They are not enough for one of them.
    """
    for procedure in procedures:
        if not is_enough(count, procedure):
            raise InvalidValue(key, count, f"enough for {procedure}")


def compute_evaluation(
    draws: Draws,
    procedures: Sequence[Procedure | Mixture],
    transformation: str,
    trained_for: Procedure | Mixture,
    anchors: int,
) -> Evaluation:
    """Compute all figures, with 95% intervals over prompts.

    Args:
        draws: Scores of policy and reference.
        procedures: What both are decoded by, from :func:`procedures_of`.
        transformation: Transformation that the policy was trained with.
        trained_for: Procedure that the policy was trained for, or a mixture of several.
        anchors: K, rewards per prompt in the calibration. The theoretical win rate depends on it.

    Raises:
        InvalidValue: There are too few draws for a procedure.
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
            _compute_procedure(
                draws,
                Mixture.of(procedure),
                point(transformation, procedure, kl=kl.value, anchors=anchors, training_procedure=trained_for).win_rate
                if kl.value > 0
                else 0.5,
            )
            for procedure in procedures
        ),
        overselection=_compute_overselection(draws, count),
    )


def _compute_procedure(draws: Draws, mixture: Mixture, theory: float) -> ProcedureFigures:
    ours, theirs = draws.policy, draws.reference

    def mean(estimator: Callable[..., Floats], *samples: Floats) -> Estimate:
        return over_prompts(mixture.average(lambda procedure: estimator(*samples, procedure)))

    wins = mean(estimators.win_rate, ours.rewards, theirs.rewards)
    if ours.judge_scores is None or theirs.judge_scores is None:
        return ProcedureFigures(str(mixture), wins, theory, None, None, None)
    return ProcedureFigures(
        str(mixture),
        wins,
        theory,
        mean(estimators.judged_win_rate, ours.rewards, ours.judge_scores, theirs.rewards, theirs.judge_scores),
        mean(estimators.expected_score, ours.rewards, ours.judge_scores),
        mean(estimators.expected_score, theirs.rewards, theirs.judge_scores),
    )


def _compute_overselection(draws: Draws, count: int) -> Overselection | None:
    side = draws.policy
    if side.judge_scores is None:
        return None
    ns = tuple(2**power for power in range(int(np.log2(count)) + 1))
    scores: list[Floats] = [estimators.expected_score(side.rewards, side.judge_scores, BestOfN(n)) for n in ns]
    return Overselection(
        ns,
        tuple(map(over_prompts, scores)),
        tuple(over_prompts(after - before) for before, after in pairwise(scores)),
    )
