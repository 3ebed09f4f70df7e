"""Mixtures of procedures: what a policy is aligned for if it is to be decoded in several ways.

A policy that is aligned for a mixture maximises Σ w_i W_i − β KL, where W_i is its win rate under procedure i
(InfAlign, arXiv 2412.19792, section 3, for one procedure). This is the mean win rate if policy and reference are both
decoded by procedure i with probability w_i. Each answer is still decoded by one procedure.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from operator import add
from typing import TypeVar

from numpy.typing import ArrayLike

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.procedures import Procedure

MOST_WEIGHT = 999_999
"""Largest weight in the normal form."""
T = TypeVar("T", float, Floats)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Procedures with weights. A policy that is aligned for one procedure has a mixture of one.

    Only the ratios of the weights count. In the normal form they are the smallest whole numbers with these ratios, each
    procedure is there once, and one that selects harder comes later, best-of-n before worst-of-n. So two mixtures are
    equal exactly if they mean the same.

    Args:
        procedures: The procedures, in any order.
        weights: Their weights, each above 0. They are brought to whole numbers.

    Raises:
        InvalidValue: There is no procedure, not one weight for each, a weight is not above 0, or the ratio of two is
            finer than six digits.

    Examples:
        >>> from infalign import BestOfN, Mixture, WorstOfN
        >>> mixture = Mixture((WorstOfN(4), BestOfN(4)), (0.5, 1))
        >>> str(mixture), mixture.weights
        ('2*best-of-4+worst-of-4', (2, 1))
        >>> str(Mixture((BestOfN(4),), (3,)))
        'best-of-4'
    """

    procedures: tuple[Procedure, ...]
    weights: tuple[float | Fraction, ...]

    def __post_init__(self) -> None:
        if not self.procedures or len(self.procedures) != len(self.weights):
            raise InvalidValue("weights", self.weights, "one for each procedure, at least one")
        sums: defaultdict[Procedure, Fraction] = defaultdict(Fraction)
        for procedure, weight in zip(self.procedures, self.weights, strict=True):
            if not 0 < weight < math.inf:
                raise InvalidValue("weights", weight, "numbers above 0")
            sums[procedure] += Fraction(str(weight))
        order = sorted(sums, key=lambda one: (one.kl_bound, -one.expected_quantile, str(one)))
        common = math.lcm(*(weight.denominator for weight in sums.values()))
        whole = [int(sums[procedure] * common) for procedure in order]
        whole = [weight // math.gcd(*whole) for weight in whole]
        if max(whole) > MOST_WEIGHT:
            raise InvalidValue("weights", str(max(whole)), f"at most {MOST_WEIGHT}, as the smallest whole numbers")
        object.__setattr__(self, "procedures", tuple(order))
        object.__setattr__(self, "weights", tuple(whole))

    @classmethod
    def of(cls, procedure: "Procedure | Mixture") -> "Mixture":
        """Make a mixture of one procedure. A mixture stays as it is."""
        return procedure if isinstance(procedure, Mixture) else cls((procedure,), (1,))

    def __str__(self) -> str:
        pairs = zip(self.procedures, self.weights, strict=True)
        return "+".join(str(procedure) if weight == 1 else f"{weight}*{procedure}" for procedure, weight in pairs)

    @property
    def shares(self) -> tuple[float, ...]:
        """w_i, the weights divided by their sum."""
        total = sum(self.weights)
        return tuple(float(weight / total) for weight in self.weights)

    def average(self, figure: Callable[[Procedure], T]) -> T:
        """Compute the weighted mean of a figure over the procedures.

        Args:
            figure: The figure of one procedure: a number, or an array of one shape.

        Returns:
            Σ w_i figure_i.

        Examples:
            >>> from infalign import BestOfN, Identity, Mixture, Policy, WorstOfN
            >>> policy = Policy.of(Identity(), beta=0.2)
            >>> round(Mixture((BestOfN(4), WorstOfN(4)), (1, 1)).average(policy.win_rate), 4)
            0.8946
        """
        shares = zip(self.procedures, self.shares, strict=True)
        return reduce(add, (share * figure(procedure) for procedure, share in shares))

    def slope(self, policy: ArrayLike, u: ArrayLike) -> Floats:
        """Compute Σ w_i g_i(F(u)) g_i(u), the derivative of the optimal transformation Φ* at the policy F.

        Args:
            policy: F(u), the policy's distribution function at the quantiles.
            u: Quantiles in [0, 1], in the same shape.

        Returns:
            The slope, in the same shape.
        """
        return self.average(lambda procedure: procedure.density(policy) * procedure.density(u))
