"""How far a judge supports each policy's selection by the reward: warns of requests beyond it, or refuses them."""

from collections.abc import Mapping

from infalign.controlled import ServedProcedure
from infalign.errors import InvalidValue
from infalign.judge_record import JudgeRecord
from infalign.manifest import Alignment
from infalign.overoptimisation import Support
from infalign.procedures import WorstOfN
from server.errors import BadRequest
from server.observability.account import note_warning
from server.observability.metrics import Metrics
from server.protocol.answers import AnswerWarning

CODE = "n_beyond_judge"
"""Code of the warning."""


class Judged:
    """The records of judges in the served bundles.

    Args:
        policies: The record of each policy by its name, if it has one.
        is_limit: Whether requests beyond a record are refused.
        metrics: Counts these requests.

    Raises:
        InvalidValue: They are to be refused, but no policy has a judge's record.
    """

    def __init__(self, policies: Mapping[str, Alignment | None], is_limit: bool, metrics: Metrics) -> None:
        self._records: dict[str, JudgeRecord] = {}
        self._is_limit, self._metrics = is_limit, metrics
        for name, record in policies.items():
            self.add(name, record)
        if is_limit and not self._records:
            accepted = "only with a bundle that a judge was asked about (`infalign evaluate --judge JUDGE --record`)"
            raise InvalidValue("--limit-n", "true", accepted)

    def add(self, name: str, record: Alignment | None) -> None:
        """Add a policy."""
        if record and record.judged:
            self._records[name] = record.judged

    def remove(self, name: str) -> None:
        """Remove a policy."""
        self._records.pop(name, None)

    def support(self, policy: str) -> Mapping[str, Support]:
        """Return what was found for a policy, by the family of the procedure."""
        record = self._records.get(policy)
        return record.support if record else {}

    def limit(self, policy: str, procedure: ServedProcedure) -> int | None:
        """Return the largest N that requests may have because of a record; None if none limits it."""
        support = self.support(policy).get(procedure.family)
        return support.n if support and self._is_limit else None

    def check(self, field: str, policy: str, procedure: ServedProcedure, n: int) -> AnswerWarning | None:
        """Compare N with the record.

        Args:
            field: The request field that sets N.
            policy: The policy that answers.
            procedure: The procedure. Standard and controlled decoding have no record.
            n: The number of candidates.

        Returns:
            A warning if N is beyond the record.

        Raises:
            BadRequest: It is, and the operator refuses such requests.
        """
        support = self.support(policy).get(procedure.family)
        if support is None or n <= support.n:
            return None
        action = "refused" if self._is_limit else "warned"
        self._metrics.beyond_judge.labels(procedure.family, action).inc()
        reason = _explain(support, procedure)
        if self._is_limit:
            raise BadRequest(
                f"{field}: got {n}, accepted: at most {support.n} with {policy} (--limit-n), as {reason}", field
            )
        note_warning(CODE)
        message = f"{field}: {n} is more than {support.n}, the largest N that a judge supports with {policy}: {reason}"
        return AnswerWarning(code=CODE, param=field, message=message)


def _explain(support: Support, procedure: ServedProcedure) -> str:
    if not support.falls:
        return "the judge was asked about no more"
    change = "rises" if isinstance(procedure, WorstOfN) else "falls"
    extreme = "lowest" if isinstance(procedure, WorstOfN) else "highest"
    return f"beyond it the judge's score of the selected candidate {change}, and it is {extreme} at {support.peak}"
