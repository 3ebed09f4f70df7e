"""Objectives: what each response of a step is worth to the policy that has drawn it.

An objective gives every response an *advantage* A, so that the mean of A ∇log π over the step is an unbiased estimate
of the gradient of what is maximised. The KL penalty is not part of it (:mod:`training.solvers.gradient`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from scipy.special import gammaln

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.live import live_transformation
from infalign.mixture import Mixture
from infalign.optimum import optimal
from infalign.policies import beta_for_kl
from infalign.procedures import FixedN, Procedure, WorstOfN
from infalign.transforms import Gaussian, Identity
from training.solvers.task import Task

LAW_MEMORY = 0.9
"""Weight of the past in the running law of the policy's ranks."""


class Objective(ABC):
    """What is maximised, apart from the KL penalty."""

    law: Floats | None = None
    """What is known of the policy from earlier steps, if the objective takes it. A checkpoint stores it."""

    @abstractmethod
    def advantages(self, quantiles: Floats, rewards: Floats, progress: float) -> Floats:
        """Compute the advantages of the responses of a step.

        Args:
            quantiles: (prompts, m) quantiles C of m responses to each prompt.
            rewards: Their rewards, of the same shape.
            progress: Share of the steps that are done.

        Returns:
            Advantages of the same shape.
        """


def leave_one_out(values: Floats) -> Floats:
    """Compare each response with the mean of the others: those to the same prompt, or to all if it is alone.

    The others were drawn independently, so the gradient stays unbiased.

    Args:
        values: (prompts, m) values, at least two in all.

    Returns:
        Advantages of the same shape.

    Example:
        >>> leave_one_out(np.array([[1.0, 2.0, 6.0]])).tolist()
        [[-3.0, -1.5, 4.5]]
        >>> leave_one_out(np.array([[1.0], [3.0]])).tolist()
        [[-2.0], [2.0]]
    """
    if values.shape[1] == 1:
        return leave_one_out(values.reshape(1, -1)).reshape(values.shape)
    size = values.shape[1]
    return np.asarray((values - values.mean(axis=1, keepdims=True)) * size / (size - 1))


@dataclass
class Fixed(Objective):
    """The mean of Φ(C) for one Φ.

    Args:
        values: Computes Φ(C) of quantiles and rewards.
        share: Share of the steps in which the objective moves from the identity to Φ. A steep Φ gives most responses
            nearly the same value, so a policy that starts with it alone learns slowly.
        ratio: β of Φ over that of the identity, both at the target KL. It brings the two to one scale.
    """

    values: Any
    share: float = 0.0
    ratio: float = 1.0

    def advantages(self, quantiles: Floats, rewards: Floats, progress: float) -> Floats:
        """Compare Φ(C) with that of the other responses. See :meth:`Objective.advantages`."""
        values = self.values(quantiles, rewards)
        if progress < self.share:
            rest = 1 - progress / self.share
            values = (1 - rest) * values + rest * self.ratio * quantiles
        return leave_one_out(values)


@dataclass
class Live(Objective):
    """The win rate itself, by its gradient at the present policy (:func:`infalign.live_transformation`).

    Φ is scaled to a span of 1, as the optimal one is. At the optimum the two agree.

    Args:
        procedure: How both models are decoded.
        samples: K, the number of anchors.
        law: (K + 1,) running mean of the ranks' shares in the draws; uniform at the start.
    """

    procedure: Mixture
    samples: int
    law: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.law = np.full(self.samples + 1, 1 / (self.samples + 1))

    def advantages(self, quantiles: Floats, rewards: Floats, progress: float) -> Floats:
        """Compare values of the live Φ, then take the draws into the law. See :meth:`Objective.advantages`."""
        phi = live_transformation(self.procedure, self.law)
        phi = phi / (phi[-1] - phi[0])  # steep Φ would go far beyond the target before β can follow
        places = np.clip(quantiles * (self.samples + 1) - 0.5, 0, self.samples)
        values = np.interp(places, np.arange(self.samples + 1), phi)
        low = np.floor(places).astype(int)
        high, part = np.minimum(low + 1, self.samples), places - low
        counts = np.bincount(low.ravel(), (1 - part).ravel(), self.samples + 1)
        counts += np.bincount(high.ravel(), part.ravel(), self.samples + 1)
        self.law = LAW_MEMORY * self.law + (1 - LAW_MEMORY) * counts / counts.sum()
        return leave_one_out(values)


@dataclass
class Group(Objective):
    """The win rate itself, by the best or the worst of all subsets of n among the m responses to a prompt (max@k).

    The selected response of a subset wins against the decoded reference with probability G(u). A response counts by
    how much it raises that of the subsets that it is in, over what they have without it. This estimate is unbiased
    (arXiv 2510.23393; arXiv 2505.15201, "leave one out minus one").

    Args:
        procedure: Standard, best-of-n or worst-of-n with n up to m, or a mixture of them.
        span: Number that values are divided by: the span of the optimal Φ if β is for one that goes from 0 to 1.

    Raises:
        InvalidValue: A procedure draws a number of candidates that is not fixed.
    """

    procedure: Mixture
    span: float = 1.0

    def __post_init__(self) -> None:
        if not all(isinstance(procedure, FixedN) for procedure in self.procedure.procedures):
            accepted = "standard, best-of-n or worst-of-n, for ctrl.objective=group"
            raise InvalidValue("procedure", str(self.procedure), accepted)

    def advantages(self, quantiles: Floats, rewards: Floats, progress: float) -> Floats:
        """Compare subsets with and without each response. See :meth:`Objective.advantages`.

        Raises:
            InvalidValue: There are fewer than n responses to each prompt.
        """
        return self.procedure.average(lambda procedure: _raise_subsets(procedure, quantiles)) / self.span


def _raise_subsets(procedure: Procedure, quantiles: Floats) -> Floats:
    """Compute how much each response raises G of the selected ones, over all subsets of n, times m / n of them."""
    n, m = cast("FixedN", procedure).n, quantiles.shape[1]
    if n > m:
        raise InvalidValue("ctrl.generations", m, f"at least the {n} of {procedure}, for ctrl.objective=group")
    wins = procedure.cumulative(quantiles)
    if n == 1:
        return leave_one_out(wins)
    sign = -1 if isinstance(procedure, WorstOfN) else 1
    values = sign * wins  # the largest is selected
    order = np.argsort(values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    below = np.arange(m)
    # Of the subsets whose largest is response k, C(k, n - 1) in number, the next is j < k in C(j, n - 2).
    nexts = choose(below, n - 2) * ranked
    raised = (choose(below, n - 1) * ranked - (np.cumsum(nexts, axis=1) - nexts)) * m / choose(m, n)
    result = np.empty_like(values)
    np.put_along_axis(result, order, raised, axis=1)
    return sign * result


def make_objective(task: Task) -> Objective:
    """Make the objective of a task.

    Args:
        task: What the policy is trained for.

    Raises:
        InvalidValue: The objective does not fit the procedure.
    """
    config, phi = task.config, task.transformation
    if config.objective == "live":
        return Live(task.procedure, task.table.samples)
    if config.objective == "group":
        return Group(task.procedure, optimal(task.procedure, kl=config.target_kl).span)
    if isinstance(phi, Gaussian):  # it is not of the quantile's scale
        return Fixed(task.values)
    ratio = beta_for_kl(phi, config.target_kl) / beta_for_kl(Identity(), config.target_kl)
    return Fixed(task.values, config.anneal, ratio)


def choose(n: Any, k: int) -> Floats:
    """Compute binomial coefficients C(n, k), 0 where k > n, in floats.

    Args:
        n: Whole numbers from 0, of any shape.
        k: A whole number from 0.
    """
    n = np.asarray(n, dtype=np.float64)
    inner = np.maximum(n, k)
    return np.where(n < k, 0.0, np.exp(gammaln(inner + 1) - gammaln(k + 1) - gammaln(inner - k + 1)))
