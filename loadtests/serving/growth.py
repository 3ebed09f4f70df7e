"""How the cost of one system grows with N, clients and the length of prompts, and where it stops being linear."""

from dataclasses import dataclass
from typing import Any

from loadtests.serving.models import prompts
from loadtests.serving.systems import Running, Turn

N = (1, 4, 16, 64, 256)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (16, 64, 190, 400, 900)


@dataclass(frozen=True)
class Point:
    """One load and what it took."""

    varied: str
    value: int
    n: int
    turn: Turn

    @property
    def milliseconds(self) -> float:
        """Of the whole system, for one candidate."""
        return 1000 * self.turn.seconds / (self.turn.requests * self.n)


def grow(running: Running, tokens: int) -> list[Point]:
    """Vary N, then clients, then the length of prompts."""
    points = []

    def measure(varied: str, value: int, clients: int, n: int, length: int, count: int) -> None:
        texts = prompts(count, length, seed=1_000_000 + len(points))
        load: dict[str, Any] = {"clients": clients, "n": n, "tokens": tokens, "prompts": texts}
        points.append(Point(varied, value, n, running.measure(load)))

    for n in N:
        measure("N", n, 1, n, 190, max(2, 16 // n))
    for clients in CLIENTS:
        measure("clients", clients, clients, 4, 190, max(4, clients))
    for length in LENGTHS:
        measure("tokens of the prompt", length, 8, 4, length, 8)
    return points


def table(points: list[Point]) -> str:
    """A Markdown table of all points."""
    lines = ["| | | requests/s | ms per candidate | p50 s | cores |", "|---|---|---|---|---|---|"]
    for point in points:
        latencies = sorted(point.turn.latencies)
        lines.append(
            f"| {point.varied} | {point.value} | {point.turn.rate:.3f} | {point.milliseconds:.0f} "
            f"| {latencies[len(latencies) // 2]:.1f} | {point.turn.cores:.2f} |"
        )
    return "\n".join(lines) + "\n"
