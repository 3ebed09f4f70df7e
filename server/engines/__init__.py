"""Where tokens come from: the protocol, and its implementations."""

from server.engines.base import Completion, Engines, EnginesDown, Sampling

__all__ = ["Completion", "Engines", "EnginesDown", "Sampling"]
