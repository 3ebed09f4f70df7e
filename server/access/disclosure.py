"""Which candidates an answer shows, and whether that requires the role ``probe``.

Without the role ``probe``, an answer never contains a candidate from the lower half of those drawn for the request,
ranked by reward.
"""

from dataclasses import dataclass

from infalign.controlled import ServedProcedure
from infalign.procedures import WorstOfN


def upper_half(count: int) -> int:
    """Return how many of ``count`` ranked candidates every key may see: half of them, but at least one."""
    return max(1, count // 2)


def draws_to_show(top: int) -> int:
    """Return the least number of ranked candidates of which every key may see ``top``."""
    return top if top == 1 else 2 * top


@dataclass(frozen=True)
class Disclosure:
    """What a request asks to see."""

    procedure: ServedProcedure
    draws: int
    """N, the number of candidates. Under standard and controlled decoding, the number of answers."""
    top: int
    """How many candidates are selected."""
    candidates: bool
    """Whether the answer lists all candidates beside the selected ones."""

    @property
    def is_worst_of_n(self) -> bool:
        """Whether the candidates with the lowest rewards are selected."""
        return isinstance(self.procedure, WorstOfN)

    @property
    def exceeds_half(self) -> bool:
        """Whether more candidates are selected than the upper half contains."""
        return self.top > upper_half(self.draws)

    @property
    def unfiltered(self) -> bool:
        """Whether the answer shows candidates of the lower half although the procedure selects the best."""
        return self.candidates or (self.exceeds_half and not self.is_worst_of_n)
