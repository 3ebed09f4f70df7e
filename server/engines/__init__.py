"""Where tokens come from: the protocol, and its implementations."""

from server.engines.base import (
    Completion,
    Delta,
    Engines,
    EnginesDown,
    Refused,
    Sampling,
    Structure,
    TokenLogprob,
)

__all__ = ["Completion", "Delta", "Engines", "EnginesDown", "Refused", "Sampling", "Structure", "TokenLogprob"]
