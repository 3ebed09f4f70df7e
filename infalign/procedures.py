"""Decoding procedures: how an answer is chosen among N independent candidates.

Everything is expressed in quantile space: ``u`` in [0, 1] is the quantile of a candidate's reward among the
reference's responses to the same prompt, so that a candidate of the reference has ``u`` uniform.
Source: InfAlign, arXiv 2412.19792, section 3 (the transformed reward and the calibrated procedures).
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.errors import InvalidValue

Floats = NDArray[np.float64]
ACCEPTED = "standard, best-of-N or worst-of-N with N >= 1"


@dataclass(frozen=True, slots=True)
class Procedure(ABC):
    """A procedure that draws ``n`` candidates and selects among them by reward."""

    n: int = 1
    family: ClassVar[str]
    """The procedure without its N: standard, best-of-n, worst-of-n."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InvalidValue("n", self.n, "a whole number of at least 1")

    @abstractmethod
    def density(self, u: ArrayLike) -> Floats:
        """g(u): density of the selected quantile when the reference is decoded, same shape as ``u``."""

    @abstractmethod
    def cumulative(self, u: ArrayLike) -> Floats:
        """G(u) = ∫_0^u g: distribution function of the selected quantile under the reference."""

    @property
    @abstractmethod
    def expected_quantile(self) -> float:
        """Mean selected quantile when the reference is decoded: ∫ u g(u) du."""

    @abstractmethod
    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        """Indices of the candidates, the selected one first; ties keep the order they were drawn in."""

    @property
    def kl_bound(self) -> float:
        """KL in nats of the decoded reference from the reference: log N − (N−1)/N.

        Exact for continuous rewards, an upper bound with ties (Beirami et al., arXiv 2401.01879).
        """
        return math.log(self.n) - (self.n - 1) / self.n


@dataclass(frozen=True, slots=True)
class Standard(Procedure):
    """One draw, taken as it comes."""

    family: ClassVar[str] = "standard"

    def __post_init__(self) -> None:
        if self.n != 1:
            raise InvalidValue("n", self.n, "1 for standard decoding")

    def __str__(self) -> str:
        return "standard"

    def density(self, u: ArrayLike) -> Floats:
        return np.ones_like(np.asarray(u, dtype=np.float64))

    def cumulative(self, u: ArrayLike) -> Floats:
        return np.array(u, dtype=np.float64)

    @property
    def expected_quantile(self) -> float:
        return 0.5

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        return np.arange(np.size(rewards))


@dataclass(frozen=True, slots=True)
class BestOfN(Procedure):
    """The candidate of highest reward among ``n``: g(u) = n u^(n−1)."""

    family: ClassVar[str] = "best-of-n"

    def __str__(self) -> str:
        return f"best-of-{self.n}"

    def density(self, u: ArrayLike) -> Floats:
        return np.asarray(self.n * np.asarray(u, dtype=np.float64) ** (self.n - 1))

    def cumulative(self, u: ArrayLike) -> Floats:
        return np.asarray(np.asarray(u, dtype=np.float64) ** self.n)

    @property
    def expected_quantile(self) -> float:
        return self.n / (self.n + 1)

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        return np.argsort(-np.asarray(rewards, dtype=np.float64), kind="stable")


@dataclass(frozen=True, slots=True)
class WorstOfN(Procedure):
    """The candidate of lowest reward among ``n``: g(u) = n (1−u)^(n−1)."""

    family: ClassVar[str] = "worst-of-n"

    def __str__(self) -> str:
        return f"worst-of-{self.n}"

    def density(self, u: ArrayLike) -> Floats:
        return np.asarray(self.n * (1 - np.asarray(u, dtype=np.float64)) ** (self.n - 1))

    def cumulative(self, u: ArrayLike) -> Floats:
        return np.asarray(1 - (1 - np.asarray(u, dtype=np.float64)) ** self.n)

    @property
    def expected_quantile(self) -> float:
        return 1 / (self.n + 1)

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        return np.argsort(np.asarray(rewards, dtype=np.float64), kind="stable")


def parse_procedure(text: str) -> Procedure:
    """The procedure of a written form: ``standard``, ``best-of-4``, ``worst-of-4``.

    Raises:
        InvalidValue: the text is none of these.
    """
    if text == "standard":
        return Standard()
    if match := re.fullmatch(r"(best|worst)-of-([1-9][0-9]*)", text):
        n = int(match[2])
        return BestOfN(n) if match[1] == "best" else WorstOfN(n)
    raise InvalidValue("procedure", text, ACCEPTED)
