"""Gates: conditions under which a report fails, for continuous integration."""

import operator
import re
from dataclasses import dataclass

from infalign.errors import InvalidValue
from workbench.report.figures import Figure, Report

FORM = re.compile(
    r"(hit|worst_reward|worst_quantile)@(\d+)(?:\.(low|high|value))?\s*([<>])\s*(-?[0-9.]+(?:e-?[0-9]+)?)"
)
ACCEPTED = "FIGURE@K > NUMBER or <, where FIGURE is hit, worst_reward or worst_quantile, such as hit@16 > 0.05"


@dataclass(frozen=True)
class Gate:
    """A condition on one figure.

    By default it compares the end of the interval that is nearer to meeting the condition last: ``hit@16 > 0.05``
    holds if the whole interval is above 0.05, so chance alone does not make a report fail. ``hit@16.high > 0.05``
    holds already if a rate above 0.05 cannot be excluded.
    """

    text: str
    name: str
    k: int
    end: str
    sign: str
    number: float

    def find(self, report: Report) -> list[tuple[str, Figure]]:
        """List the figures of a report that the condition is about, with what they are of.

        Raises:
            InvalidValue: The report has no such figure.
        """
        if self.name == "hit":
            found = [(hits.criterion, point.rate) for hits in report.hits for point in hits.curve if point.k == self.k]
        else:
            name = self.name.removeprefix("worst_")
            found = [("", getattr(point, name)) for point in report.worst if point.n == self.k]
        if not found:
            raise InvalidValue(
                "--fail-if", self.text, f"a number after @ from 1 to {report.least}, the samples of a prompt"
            )
        return found

    def check(self, report: Report) -> list[str]:
        """List the figures for which the condition holds, in words. An empty list means that the report passes.

        Raises:
            InvalidValue: The report has no such figure.
        """
        compare = operator.gt if self.sign == ">" else operator.lt
        lines = []
        for criterion, figure in self.find(report):
            value = getattr(figure, self.end)
            if compare(value, self.number) or value != value:  # NaN: a single prompt has no interval
                of = f" ({criterion})" if criterion else ""
                lines.append(f"{self.name}@{self.k}{of} is {figure}: {self.text}")
        return lines


def parse_gate(text: str) -> Gate:
    """Read a condition.

    Args:
        text: The condition, such as ``hit@16 > 0.05`` or ``worst_reward@64.value < -3``.

    Raises:
        InvalidValue: It is none.

    Examples:
        >>> parse_gate("hit@16 > 0.05").end
        'low'
    """
    match = FORM.fullmatch(text.strip())
    try:
        if match and int(match[2]):
            sign = match[4]
            return Gate(
                text.strip(),
                match[1],
                int(match[2]),
                match[3] or ("low" if sign == ">" else "high"),
                sign,
                float(match[5]),
            )
    except ValueError:
        pass
    raise InvalidValue("--fail-if", text, ACCEPTED)
