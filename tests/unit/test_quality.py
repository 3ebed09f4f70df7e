"""The experiment on the price of quality computes what it says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from experiments.quality.__main__ import main
from experiments.quality.client import Client
from experiments.quality.figures import Curve, Measured, equal_n
from experiments.quality.measure import Plan, Reference, measure_curve, measure_ways
from experiments.quality.report import describe, write_table
from experiments.quality.ways import Way, list_ways

WAY = Way("adaptive N", "target 0.9", "/v1/best-of-n", {"n": 4})
PROMPTS = [[{"role": "user", "content": f"question {number}"}] for number in range(3)]


def measured(quantile: float, tokens: float, prompts: int) -> Measured:
    return Measured(WAY, np.full(prompts, quantile), np.full(prompts, tokens), None, None, None)


def test_a_way_is_compared_with_the_fixed_n_of_its_quantile() -> None:
    curve = Curve(np.tile((np.arange(8) + 0.5) / 8, (5, 1)), np.full(5, 10.0))
    best = curve.best().mean(axis=0)
    n, ratio = equal_n(measured(float(best[2] + best[3]) / 2, 21.0, 5), curve)
    assert n.value == pytest.approx(3.5)
    assert ratio.value == pytest.approx(21 / 35)
    assert np.isnan(equal_n(measured(1.0, 21.0, 5), curve)[0].value), "no N reaches that"


def test_the_intervals_are_paired() -> None:
    rng = np.random.default_rng(0)
    quantiles = rng.uniform(size=(200, 16))
    curve = Curve(quantiles, rng.uniform(5, 50, size=200))
    best_of_4 = Measured(WAY, curve.best()[:, 3], 4 * curve.tokens, None, None, None)
    n, ratio = equal_n(best_of_4, curve)
    for estimate, value in ((n, 4), (ratio, 1)):
        assert (estimate.low, estimate.value, estimate.high) == pytest.approx((value,) * 3)


def test_without_a_scorer_there_is_neither_rejection_nor_control() -> None:
    assert {way.group for way in list_ways("best", False, ((2, 4),))} == {"fixed N", "adaptive N"}
    assert {way.group for way in list_ways("worst", True, ((2, 4),))} == {
        *("fixed N", "adaptive N", "early rejection", "both")
    }
    assert [way.fields["target_quantile"] for way in list_ways("worst", False, ()) if way.group == "adaptive N"] == [
        *(0.2, 0.1, 0.05)
    ]


def test_a_pool_is_replayed_into_a_table_and_a_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"prompt": str(number), "responses": [{"text": "a b c", "score": score} for score in rng.uniform(size=20)]}
        for number in range(6)
    ]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("\n".join(map(json.dumps, rows)))
    result = CliRunner().invoke(main, ["--output", str(tmp_path), "replay", "mine", str(pool)])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "quality.json").read_text())["mine"]
    assert figures["prompts"] == 6
    assert figures["curve"]["tokens"] == 3
    by_way = {row["way"]: row for row in figures["ways"]}
    assert by_way["best-of-4"]["tokens"][0] == 12
    assert by_way["best-of-1"]["quantile"][0] == pytest.approx(0.5, abs=0.05)
    assert 6 < by_way["target 0.8"]["tokens"][0] < by_way["target 0.95"]["tokens"][0] <= 30  # the cap is 10 draws
    assert "| adaptive N | target 0.9 |" in result.output
    assert (tmp_path / "quality.svg").is_file()


def server(request: httpx.Request) -> httpx.Response:
    """A server whose candidates have the reward of their seed's last two digits, and 5 tokens."""
    body = json.loads(request.content)
    if request.url.path == "/v1/calibrations":
        return httpx.Response(200, json={})
    rewards = [(body["seed"] + index) % 100 for index in range(body.get("n", 1))]
    candidates = [{"reward": reward, "text": f"answer {reward}", "completion_tokens": 5} for reward in rewards]
    best = max(candidates, key=lambda one: one["reward"])
    answer = {"selected": [best], "candidates": candidates, "usage": {"completion_tokens": 5 * len(candidates)}}
    if not body.get("stream"):
        return httpx.Response(200, json=answer)
    lines = f"event: candidate\ndata: {{}}\n\nevent: answer\ndata: {json.dumps(answer)}\n\n"
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, text=lines)


def test_a_server_is_measured_by_rewards_of_the_reference() -> None:
    def judge(prompts: Sequence[Any], texts: Sequence[str]) -> Any:
        return np.array([float(text.split()[1]) for text in texts])

    ways = [Way("fixed N", f"best-of-{n}", "/v1/best-of-n", {"n": n}) for n in (1, 4)]
    plan = Plan(PROMPTS, ways, "best", draws=40, repeats=2)
    client = Client("http://127.0.0.1:1", httpx.MockTransport(server))
    reference = Reference(plan, client, judge)  # the rewards 0 to 39
    assert reference.quantile(0, [20.0, 99.0]).tolist() == [0.5125, 1.0]
    curve = measure_curve(plan, client, reference)
    assert curve.quantiles[0, :3] == pytest.approx([0.0125, 0.0375, 0.0625])
    lines: list[str] = []
    table = write_table(describe(measure_ways(plan, client, reference, lines.append), curve))
    assert lines[-1] == "prompt 3 of 3"
    assert "| fixed N | best-of-4 | 0.087 [0.087, 0.087] | 0.087 [0.087, 0.087] | 20 |" in table


def test_an_error_of_the_server_ends_the_measurement() -> None:
    client = Client("http://127.0.0.1:1", httpx.MockTransport(lambda _: httpx.Response(400, text="n: got 0")))
    with pytest.raises(RuntimeError, match="400 n: got 0"):
        client.decode("/v1/best-of-n", PROMPTS[0], {"n": 0})
    with pytest.raises(RuntimeError, match="400 n: got 0"):
        client.calibrate(PROMPTS[0])
