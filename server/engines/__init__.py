"""Where tokens come from: the protocol, and its implementations."""

from server.engines.base import (
    Completion,
    Delta,
    Engines,
    EnginesDown,
    Refused,
    RequestFailed,
    Sampling,
    Structure,
    TokenLogprob,
)

__all__ = [
    "Completion",
    "Delta",
    "Engines",
    "EnginesDown",
    "Refused",
    "RequestFailed",
    "Sampling",
    "Structure",
    "TokenLogprob",
]
