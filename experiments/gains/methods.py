"""What is compared: methods, procedures, and which method should win against which."""

from dataclasses import dataclass, replace

from infalign.mixture import Mixture
from infalign.parsing import parse_mixture
from infalign.procedures import BestOfN, Procedure, Standard, WorstOfN


@dataclass(frozen=True)
class Method:
    """What is trained: a transformation for a decoding procedure, or for a mixture of them."""

    name: str
    transformation: str
    procedure: str
    learning_rate: float
    """Learning rate for 120 steps.

    On validation prompts of the demo, all methods won more under best-of-4 with 0.0005, and under worst-of-4 with
    0.001. Each is compared at the one that suits the procedure. For the mixture, a rate in between was not tried.
    """
    settings: tuple[str, ...] = ()
    """Other keys of the config that differ from those of ``study.yaml``."""

    @property
    def aligned_for(self) -> Mixture:
        """The procedure."""
        return parse_mixture(self.procedure)

    def overrides(self, seed: int) -> tuple[str, ...]:
        """List the keys of the config that make it the method's.

        Args:
            seed: Seed of the training of the policy.
        """
        return (
            f"transformation={self.transformation}",
            f"procedure={self.procedure}",
            f"ctrl.learning_rate={self.learning_rate}",
            f"ctrl.seed={seed}",
            *self.settings,
        )


FINE, COARSE = 0.0005, 0.001
BEST = Method("CTRL optimal for best-of-4", "optimal", "best-of-4", FINE)
WORST = Method("CTRL optimal for worst-of-4", "optimal", "worst-of-4", COARSE, ("ctrl.anneal=0.7",))
IDENTITY = Method("calibrated identity", "identity", "standard", FINE)
RAW = Method("RLHF, raw reward", "gaussian", "standard", FINE)
LOG = Method("log (best-of-n distillation)", "log", "best-of-4", FINE)
IDENTITY_COARSE, RAW_COARSE, LOG_COARSE = (
    replace(method, name=f"{method.name}, rate {COARSE}", learning_rate=COARSE) for method in (IDENTITY, RAW, LOG)
)
MIXED = Method("CTRL optimal for a mixture", "optimal", "standard+best-of-4+worst-of-4", 0.0007, ("ctrl.anneal=0.7",))

METHODS = (BEST, IDENTITY, WORST, IDENTITY_COARSE, RAW, LOG, RAW_COARSE, LOG_COARSE, MIXED)
PROCEDURES: tuple[Procedure, ...] = (Standard(), BestOfN(2), BestOfN(4), BestOfN(8), WorstOfN(2), WorstOfN(4))
CLAIMS = (
    *((BEST, other, BestOfN(4)) for other in (IDENTITY, RAW, LOG)),
    *((WORST, other, WorstOfN(4)) for other in (IDENTITY_COARSE, RAW_COARSE, LOG_COARSE)),
    (IDENTITY, RAW, Standard()),
)
"""Which method should win more than which, under which procedure."""
VERSATILITY = ((IDENTITY, Standard()), (BEST, BestOfN(4)), (WORST, WorstOfN(4)))
"""Methods for one procedure, and the procedure under which the one for all three is compared with them."""
ACCOUNT = (
    (IDENTITY, BestOfN(4)),
    (BEST, BestOfN(4)),
    (IDENTITY_COARSE, WorstOfN(4)),
    (WORST, WorstOfN(4)),
)
"""Methods and procedures for which it is traced where the rest of theory's room goes."""
