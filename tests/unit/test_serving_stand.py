"""The stand that compares the server with others: what it sends, and how it counts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadtests.serving import growth, report
from loadtests.serving.models import Models
from loadtests.serving.systems import System, Turn, our_server


def turn(seconds: float, requests: int = 4) -> Turn:
    return Turn(requests, seconds, [seconds] * requests, 64 * requests, 1.5, 2.0)


def running(name: str) -> Any:
    return SimpleNamespace(system=System(name, "one call", ()), start_seconds=18.0)


@pytest.fixture
def table() -> report.Table:
    turns = {"ours": [turn(2), turn(4)], "theirs": [turn(3), turn(8)]}
    return report.table("8 clients", [running("ours"), running("theirs")], turns, "ours")


def test_ratios_are_of_turns_of_the_same_round(table: report.Table) -> None:
    ours, theirs = table.rows
    assert ours.ratio == (1, 1, 1)
    assert theirs.ratio == pytest.approx((1.75, 1.5, 2))
    assert theirs.rate == pytest.approx(((4 / 3 + 0.5) / 2, 0.5, 4 / 3))
    assert "| theirs | one call | 0.917 (0.500–1.333) | 1.75 (1.50–2.00) |" in str(table)


def test_a_result_is_drawn_with_its_numbers(table: report.Table, tmp_path: Path) -> None:
    report.draw([table], tmp_path / "serving.svg")
    assert json.loads((tmp_path / "serving.json").read_text())["tables"][0]["rows"][1]["system"] == "theirs"
    points = [growth.Point("N", value, value, turn(value)) for value in (1, 4)]
    points += [growth.Point("clients", value, 4, turn(1)) for value in (1, 2)]
    growth.draw(points, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
    assert "| N | 4 | 1.000 | 250 | 4.0 | 1.50 |" in growth.table(points)


def test_settings_are_options_and_variables(tmp_path: Path) -> None:
    [server] = our_server(tmp_path, tmp_path, 8100, "other", "OMP_NUM_THREADS=3 --block-size 64").servers
    assert server.environment["OMP_NUM_THREADS"] == "3"
    assert list(server.command[-2:]) == ["--block-size", "64"]


def test_prompts_of_different_requests_share_no_beginning(tmp_path: Path) -> None:
    models = Models(tmp_path, 4096)
    prompts = models.prompts(8, 190, seed=1)
    assert len({prompt.split()[0] for prompt in prompts}) == 8
    assert models.prompts(8, 190, seed=1) == prompts
    assert not set(prompts) & set(models.prompts(8, 190, seed=2))
