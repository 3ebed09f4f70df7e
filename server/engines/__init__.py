"""Engines: the models that generate and score. ``base`` has the protocol, the other modules implement it."""

from server.engines.base import (
    Completion,
    Delta,
    Engines,
    EnginesDown,
    NextToken,
    Refused,
    RequestFailed,
    Sampling,
    Structure,
    TokenLogprob,
    ToolCall,
)

__all__ = [
    "Completion",
    "Delta",
    "Engines",
    "EnginesDown",
    "NextToken",
    "Refused",
    "RequestFailed",
    "Sampling",
    "Structure",
    "TokenLogprob",
    "ToolCall",
]
