"""The model names that clients use: policies, and policies with a decoding procedure, such as ``demo:best-of-8``."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from scipy.special import logit

from infalign.controlled import Controlled, ServedProcedure
from infalign.errors import InvalidValue, shorten
from infalign.mixture import Mixture
from infalign.parsing import parse_decoding, parse_mixture
from infalign.procedures import BestOfN, FixedN, Standard, WorstOfN
from server.errors import BadRequest, UnknownModel

AUTO = "auto"
"""Selects the policy that was aligned for the procedure nearest to the request's."""
TARGET = re.compile(r"0?\.[0-9]{1,9}")
"""A target quantile in a name."""
LISTED_N = (2, 4, 8, 16)
"""The N of the names that are listed. Any other N is accepted too."""
LISTED_K = (2, 4, 8)
"""The K of the names with controlled decoding that are listed. Any other K is accepted too."""


@dataclass(frozen=True)
class Choice:
    """The policy and the procedure that answer a request."""

    policy: str
    procedure: ServedProcedure

    def draws(self, procedure: ServedProcedure, asked: int | None) -> int:
        """Return how many candidates are drawn.

        Args:
            procedure: The procedure that the request asked for beside the model's name.
            asked: How many candidates it asked for, if it did.
        """
        if isinstance(self.procedure, Controlled):
            return asked or 1
        return asked or self.procedure.n if self.procedure == procedure else self.procedure.n


class Catalogue:
    """The policies that are served. The first one is the default.

    Args:
        policies: By policy name, the procedure that the policy was aligned for, or a mixture of several.
        block: Tokens of a block of controlled decoding, unless a request says it. None if there is no prefix scorer,
            which it needs.
    """

    def __init__(self, policies: Mapping[str, str], block: int | None = None) -> None:
        self.block = block
        self._procedures: dict[str, Mixture] = {name: parse_mixture(text) for name, text in policies.items()}
        self._use_counts: Counter[str] = Counter()
        self._release_events: dict[str, asyncio.Event] = {}

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the policies."""
        return tuple(self._procedures)

    def procedure(self, policy: str) -> str:
        """Return the procedure, or the mixture of several, that a policy was aligned for."""
        return str(self._procedures[policy])

    def names(self, max_n: int) -> list[str]:
        """Return the names to list: first those without a procedure, then those with one.

        Args:
            max_n: The largest N or K to list.
        """
        plain = [*self._procedures, *([AUTO] if len(self._procedures) > 1 else [])]
        procedures = [f"{kind}-of-{n}" for kind in ("best", "worst") for n in LISTED_N if n <= max_n]
        if self.block:
            procedures += [str(Controlled(k, self.block)) for k in LISTED_K if k <= max_n]
        return [*plain, *(f"{name}:{procedure}" for name in plain for procedure in procedures)]

    def choose(self, model: str | None, procedure: ServedProcedure) -> Choice:
        """Choose the policy and the procedure for a request.

        Args:
            model: The model's name in the request, perhaps with a procedure and a target quantile after a colon.
            procedure: The procedure that the rest of the request asks for.

        Raises:
            UnknownModel: There is no such policy.
            BadRequest: The name has another procedure than the rest of the request, or the procedure is controlled
                decoding and there is no prefix scorer.
        """
        model = model or AUTO
        name = model.partition(":")[0]
        named_procedure = self.suffix_procedure(model)
        if named_procedure is not None and procedure not in (named_procedure, Standard()):
            raise BadRequest(
                f"model: got {shorten(model)}, accepted: the procedure of the request, {procedure}", "model"
            )
        procedure = named_procedure or procedure
        if isinstance(procedure, Controlled) and self.block is None:
            raise BadRequest(
                f"model: got {procedure} decoding, accepted: standard, best-of-N or worst-of-N, as this server has no "
                "prefix scorer",
                "model",
            )
        if name in self._procedures:
            return Choice(name, procedure)
        if name != AUTO:
            raise self._unknown_model(model)
        return Choice(
            min(self._procedures, key=lambda policy: _distance(self._procedures[policy], procedure)), procedure
        )

    def suffix_procedure(self, model: str | None) -> ServedProcedure | None:
        """Return the procedure after the colon of a model's name, if it has one.

        Args:
            model: The model's name.

        Raises:
            UnknownModel: The part after the colon is not a procedure.
        """
        return self._read_suffix(model)[0]

    def suffix_target(self, model: str | None) -> float | None:
        """Return the target quantile at the end of a model's name, such as ``demo:best-of-16@0.95``, if it has one.

        Args:
            model: The model's name.

        Raises:
            UnknownModel: The part after the colon is not a procedure, or what follows is not a quantile.
        """
        return self._read_suffix(model)[1]

    def _read_suffix(self, model: str | None) -> tuple[ServedProcedure | None, float | None]:
        model = model or AUTO
        _, colon, suffix = model.partition(":")
        if not colon:
            return None, None
        form, at, number = suffix.partition("@")
        target = float(number) if TARGET.fullmatch(number) else None
        try:
            procedure = parse_decoding(form)
        except InvalidValue:
            procedure = None
        selects = isinstance(procedure, BestOfN | WorstOfN)
        if not isinstance(procedure, FixedN | Controlled) or (at and not (target and selects)):
            raise UnknownModel(
                f"model: got {shorten(model)}, accepted: after the colon, best-of-N or worst-of-N, perhaps with a "
                "target quantile as in best-of-16@0.95, or controlled-KxM",
                "model",
            )
        return procedure, target

    @contextmanager
    def use(self, policy: str) -> Iterator[None]:
        """Mark a policy as used for the length of the ``with`` block.

        Raises:
            UnknownModel: The policy has been removed since the request chose it.
        """
        if policy not in self._procedures:
            raise self._unknown_model(policy)
        self._use_counts[policy] += 1
        try:
            yield
        finally:
            self._use_counts[policy] -= 1
            if not self._use_counts[policy]:
                del self._use_counts[policy]
                if policy in self._release_events:
                    self._release_events.pop(policy).set()

    def add(self, name: str, procedure: str) -> None:
        """Add a policy.

        Args:
            name: Its name.
            procedure: The procedure it was aligned for, or a mixture of several.
        """
        self._procedures[name] = parse_mixture(procedure)

    async def remove(self, name: str) -> None:
        """Remove a policy. Returns when no request uses it any more."""
        del self._procedures[name]
        if self._use_counts[name]:
            self._release_events[name] = asyncio.Event()
            await self._release_events[name].wait()

    def _unknown_model(self, model: str | None) -> UnknownModel:
        names = ", ".join(self.names(0))
        return UnknownModel(
            f"model: got {shorten(model)}, accepted: {names}, each also with :best-of-N, :worst-of-N, :controlled-KxM",
            "model",
        )


def _distance(aligned: Mixture, procedure: ServedProcedure) -> float:
    """Distance of two procedures on a scale where best-of-n is log n, standard decoding 0, and worst-of-n −log n.

    Controlled decoding stands where best-of-K is. The distance of a mixture is the weighted mean over its procedures:
    a policy that was aligned for the request's procedure alone comes before one that was aligned for others too.
    """
    selecting = BestOfN(procedure.k) if isinstance(procedure, Controlled) else procedure
    return aligned.average(lambda one: float(abs(logit(one.expected_quantile) - logit(selecting.expected_quantile))))
