"""The names that clients call models by: policies, and a policy with a decoding procedure (``demo:best-of-8``)."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from scipy.special import logit

from infalign.errors import InvalidValue, shorten
from infalign.procedures import FixedN, Procedure, Standard, parse_procedure
from server.errors import BadRequest, UnknownModel

AUTO = "auto"
"""The policy that was aligned for what comes nearest to the procedure of the request."""
LISTED = (2, 4, 8, 16)
"""N of the names that are listed; any other N is understood too."""


@dataclass(frozen=True)
class Choice:
    """What a request is answered by."""

    policy: str
    procedure: FixedN


class Catalogue:
    """The policies that are served, each with the procedure it was aligned for; the first is the default."""

    def __init__(self, policies: Mapping[str, str]) -> None:
        self._aligned: dict[str, Procedure] = {name: parse_procedure(text) for name, text in policies.items()}
        self._in_use: Counter[str] = Counter()
        self._unused: dict[str, asyncio.Event] = {}

    @property
    def policies(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._aligned)

    def names(self, max_n: int) -> list[str]:
        """Every name to list, those with a procedure behind those without."""
        plain = [*self._aligned, *([AUTO] if len(self._aligned) > 1 else [])]
        procedures = [f"{kind}-of-{n}" for kind in ("best", "worst") for n in LISTED if n <= max_n]
        return [*plain, *(f"{name}:{procedure}" for name in plain for procedure in procedures)]

    def choose(self, asked: str | None, procedure: FixedN) -> Choice:
        """The policy that answers a request under ``procedure``, which a suffix of ``asked`` may say in its place.

        Raises:
            UnknownModel: there is none of that name.
            BadRequest: the name says one procedure and the rest of the request another.
        """
        asked = asked or AUTO
        name = asked.partition(":")[0]
        named = self.procedure_of(asked)
        if named is not None and procedure not in (named, Standard()):
            raise BadRequest(
                f"model: got {shorten(asked)}, accepted: the procedure of the request, {procedure}", "model"
            )
        procedure = named or procedure
        if name in self._aligned:
            return Choice(name, procedure)
        if name != AUTO:
            raise self._unknown(asked)
        return Choice(min(self._aligned, key=lambda policy: _distance(self._aligned[policy], procedure)), procedure)

    def procedure_of(self, asked: str | None) -> FixedN | None:
        """The procedure behind the colon of a name, if it has one.

        Raises:
            UnknownModel: what is there is no procedure.
        """
        asked = asked or AUTO
        _, colon, suffix = asked.partition(":")
        if not colon:
            return None
        try:
            named = parse_procedure(suffix)
        except InvalidValue:
            named = None
        if not isinstance(named, FixedN):
            raise UnknownModel(
                f"model: got {shorten(asked)}, accepted: after the colon, best-of-N or worst-of-N", "model"
            )
        return named

    @contextmanager
    def using(self, policy: str) -> Iterator[None]:
        """While a request is answered by ``policy``.

        Raises:
            UnknownModel: it has been removed since the request chose it.
        """
        if policy not in self._aligned:
            raise self._unknown(policy)
        self._in_use[policy] += 1
        try:
            yield
        finally:
            self._in_use[policy] -= 1
            if not self._in_use[policy]:
                del self._in_use[policy]
                if policy in self._unused:
                    self._unused.pop(policy).set()

    def add(self, name: str, aligned_for: str) -> None:
        """Serve one more."""
        self._aligned[name] = parse_procedure(aligned_for)

    async def remove(self, name: str) -> None:
        """Serve one less; returns when no request uses it any more."""
        del self._aligned[name]
        if self._in_use[name]:
            self._unused[name] = asyncio.Event()
            await self._unused[name].wait()

    def _unknown(self, asked: str | None) -> UnknownModel:
        known = ", ".join(self.names(0))
        return UnknownModel(
            f"model: got {shorten(asked)}, accepted: {known}, each also with :best-of-N or :worst-of-N", "model"
        )


def _distance(one: Procedure, other: Procedure) -> float:
    """How far apart two procedures are: log n of best-of-n, −log n of worst-of-n, 0 of standard decoding."""
    ours, theirs = logit([one.expected_quantile, other.expected_quantile])
    return float(abs(ours - theirs))
