"""How much of what is drawn an answer shows, and so which role it takes.

Without the role ``probe`` an answer never contains a candidate from the lower half of those drawn for the request.
"""

from dataclasses import dataclass

from infalign.procedures import FixedN, WorstOfN


def upper_half(count: int) -> int:
    """How many of ``count`` ranked candidates every key may be shown: half of them, and of a single one that."""
    return max(1, count // 2)


@dataclass(frozen=True)
class Disclosure:
    """What a request asks to be shown."""

    procedure: FixedN
    draws: int
    """N; under standard decoding, the number of answers."""
    top: int
    """Candidates that are selected."""
    candidates: bool
    """Whether all candidates are wanted beside the selected ones."""

    @property
    def worst(self) -> bool:
        """Whether the selected candidates are those of lowest reward."""
        return isinstance(self.procedure, WorstOfN)

    @property
    def beyond_half(self) -> bool:
        """Whether more candidates are selected than the upper half has."""
        return self.top > upper_half(self.draws)

    @property
    def unfiltered(self) -> bool:
        """Whether candidates of the lower half are shown, though the procedure does not select the worst."""
        return self.candidates or (self.beyond_half and not self.worst)
