"""Jobs of the decoder, the events while it works on them, and their results."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from infalign.calibration import Calibration
from infalign.controlled import ServedProcedure
from infalign.cost import Cost
from infalign.procedures import FixedN
from infalign.stopping import StoppingRule
from server.decoding.reader import Conversation
from server.engines import Delta, Sampling
from server.engines.turns import Turn
from server.protocol.answers import AnswerWarning, Candidate, Stopping
from server.protocol.fields import Calibrate

LEAST_COST, LARGEST_COST = 1e-9, 0.4999999
"""Range of the cost of a draw, in quantile, that a cost per token may lead to."""


@dataclass(frozen=True)
class TokenCost:
    """A cost rule with a price per token. The first wave says how many tokens a draw has."""

    procedure: FixedN
    cost: float
    """Quantile per token."""

    def per_draw(self, tokens: float) -> Cost:
        """Return the cost rule for draws of a mean number of tokens.

        From half a quantile per draw on, any candidate is good enough.
        """
        return Cost(self.procedure, min(max(self.cost * tokens, LEAST_COST), LARGEST_COST))


@dataclass(frozen=True)
class Job:
    """What the decoder is to do for one request."""

    conversation: Conversation
    procedure: ServedProcedure
    sampling: Sampling
    """How candidates are drawn. Candidate i has the seed ``sampling.seed + i``."""
    draws: int
    """N, the number of candidates. Of standard and controlled decoding, the number of answers, which are not ranked."""
    min_candidates: int
    """How many scored candidates are enough if others fail or time runs out."""
    seconds: float
    """The time that the job may take."""
    calibrate: Calibrate = False
    """What to do first if the prompt is not calibrated."""
    top: int = 1
    """How many candidates are selected."""
    answers: int = 1
    """How many candidates must come to an answer. The reasoning of the others may be cut off by the length limit."""
    sees_all: bool = True
    """Whether the caller may see candidates of the lower half."""
    rule: StoppingRule | TokenCost | None = None
    """When to stop before N candidates. None always draws N."""
    replaces_failures: bool = False
    """With a rule: whether further draws, up to N, take the place of candidates that fail."""
    warnings: tuple[AnswerWarning, ...] = ()
    """What the answer warns of."""
    early_rejection: bool = False
    """Whether candidates that will hardly be selected are not drawn to the end."""

    @property
    def rejects(self) -> bool:
        """Whether candidates can be rejected. Those of greedy sampling are all the same."""
        return self.early_rejection and self.draws > 1 and not self.sampling.greedy


@dataclass(frozen=True, slots=True)
class CandidateDelta:
    """Event: a candidate has new text."""

    index: int
    delta: Delta


@dataclass(frozen=True, slots=True)
class CandidateFinished:
    """Event: a candidate is drawn, but not yet scored."""

    index: int
    turn: Turn


@dataclass(frozen=True, slots=True)
class CandidateScored:
    """Event: a candidate is scored."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class CandidateRejected:
    """Event: a candidate is not drawn to the end, because it will hardly be selected."""

    index: int
    tokens: int
    """How many tokens were drawn of it."""


Event = CandidateDelta | CandidateFinished | CandidateScored | CandidateRejected


@dataclass(frozen=True)
class Rejections:
    """The candidates of one job that were not drawn to the end. Each has its index and its number of tokens."""

    rejected: Mapping[int, int] = field(default_factory=dict)
    """Those that would hardly have been selected."""
    aborted: Mapping[int, int] = field(default_factory=dict)
    """Those that were still drawn when a stopping rule was met."""
    unread: int = 0
    """How many candidates the prefix scorer failed to read."""

    @property
    def tokens(self) -> int:
        """Tokens of all these candidates."""
        return sum((*self.rejected.values(), *self.aborted.values()))


@dataclass(frozen=True)
class DecodingResult:
    """The candidates of one job, the selected ones first, and the calibration of their quantiles."""

    candidates: list[Candidate]
    calibration: Calibration
    prompt_tokens: int
    failures: dict[str, int]
    """Number of failed candidates by error code."""
    stopping: Stopping | None = None
    """When and why draws stopped, for a job with a rule."""
    rejections: Rejections | None = None
    """What was not drawn to the end, for a job with early rejection."""
    drawn_tokens: int | None = None
    """All tokens that were drawn, under controlled decoding, where candidates are a part of them."""
    unanswered_tokens: int = 0
    """Tokens of the candidates that came to no answer."""

    @property
    def by_index(self) -> list[Candidate]:
        """The candidates in the order of their indexes."""
        return sorted(self.candidates, key=lambda candidate: candidate.index)

    @property
    def compared(self) -> int:
        """Number of candidates that the selected ones were chosen from. Those that were rejected count."""
        return len(self.candidates) + (len(self.rejections.rejected) if self.rejections else 0)

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of the candidates that were drawn to the end."""
        return self.candidate_tokens / len(self.candidates)

    @property
    def completion_tokens(self) -> int:
        """All tokens that were drawn, also of candidates that were not drawn to the end."""
        if self.drawn_tokens is not None:
            return self.drawn_tokens
        return self.candidate_tokens + self.unanswered_tokens + (self.rejections.tokens if self.rejections else 0)

    @property
    def candidate_tokens(self) -> int:
        """Tokens of the candidates that were drawn to the end."""
        return sum(candidate.completion_tokens for candidate in self.candidates)
