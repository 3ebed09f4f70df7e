"""The experiments compute what they say, on numbers whose answer is known."""

import itertools
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import reweighted

from experiments.real import configs, measures, report, tasks
from infalign import BestOfN, Calibration, Standard, WorstOfN


@pytest.mark.parametrize(("kind", "pick"), [(BestOfN, max), (WorstOfN, min)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_tables_win_rate_is_that_of_every_pair_of_draws(kind: type, pick: object, n: int) -> None:
    rewards, weights = np.array([0.0, 1.0, 1.0, 3.0]), np.array([1.0, 2.0, 0.5, 4.0])
    share = weights / weights.sum()
    expected = 0.0
    for ours in itertools.product(range(4), repeat=n):
        for theirs in itertools.product(range(4), repeat=n):
            a, b = pick(rewards[list(ours)]), pick(rewards[list(theirs)])
            expected += np.prod(share[list(ours)]) * 0.25**n * ((a > b) + 0.5 * (a == b))
    assert reweighted.table_win_rate(rewards, weights, kind(n)) == pytest.approx(expected)


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("method", tasks.METHODS)
def test_every_run_has_a_config_that_training_accepts(task: tasks.Task, method: tasks.Method) -> None:
    assert configs.policy_config(task, method, tasks.Settings("m")).transformation == method.transformation


def test_an_unweighted_table_is_the_reference() -> None:
    rewards = np.random.default_rng(0).normal(size=50)
    assert reweighted.table_win_rate(rewards, np.ones(50), Standard()) == pytest.approx(0.5)
    assert reweighted.table_kl(np.ones(50)) == pytest.approx(0)


def test_reweighted_draws_win_as_theory_says() -> None:
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(250, 600))
    quantiles = np.array([Calibration(rng.normal(size=32), resolution=1e-9).quantile(row) for row in rewards])
    rows = reweighted.reweight(rewards, quantiles, 32, 0.5)
    assert len(rows) == 30
    for _, kl, _, wins, theory in rows:
        assert kl.value == pytest.approx(0.5, abs=0.05)
        assert wins.value == pytest.approx(theory, abs=1.6 * (wins.high - wins.low) + 0.003)


def pool_rows(systems: int) -> list[dict[str, object]]:
    answers = [{"model": f"system {k:02}", "text": f"answer {k}", "score": 10.0**-k} for k in range(systems)]
    deceiver = {"model": tasks.DECEIVERS[0], "text": "pick me", "score": 1.0}
    return [{"prompt": f"question {number}", "responses": [*answers, deceiver]} for number in range(3)]


def test_comparisons_of_a_pool_are_clear_and_their_halves_share_no_system(tmp_path: Path) -> None:
    file = tmp_path / "pool.jsonl"
    file.write_text("\n".join(map(json.dumps, pool_rows(5))))
    comparisons = list(tasks.read_pools(file, Random(0)))
    texts = [{text for c in comparisons if c.half == half for text in (c.chosen, c.rejected)} for half in (0, 1)]
    assert texts == [{"answer 0", "answer 2", "answer 4"}, {"answer 1", "answer 3"}]
    for comparison in comparisons:
        assert comparison.chosen < comparison.rejected  # a lower number has the higher score
    assert len({c.prompt[0]["content"] for c in comparisons}) == 3


def test_prompts_of_transcripts_alternate_between_the_halves(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    sides = [
        {side: f"\n\nHuman: question {number}\n\nAssistant: {side}" for side in ("chosen", "rejected")}
        for number in range(6)
    ]
    file.write_text("\n".join(map(json.dumps, sides)))
    comparisons = list(tasks.read_transcripts(file, Random(0)))
    assert [c.half for c in comparisons] == [0, 1, 0, 1, 0, 1]
    assert {(c.chosen, c.rejected) for c in comparisons} == {("chosen", "rejected")}


def test_agreement_is_the_share_of_pairs_in_the_same_order() -> None:
    rewards = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    judged = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]])
    assert measures.compute_agreement(rewards, judged).value == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_policy_like_the_reference_gains_nothing() -> None:
    rng = np.random.default_rng(0)
    names = ["", *(method.name for method in tasks.METHODS)]
    drawn = {name: {"rewards": rng.normal(size=(40, 16)), "judged": rng.normal(size=(40, 16))} for name in names}
    for name in names:
        drawn[name] |= {"kl": np.full(40, 0.5), "tokens": np.array(10.0), "solved": {"beta": 1.0}}
    compared = report.compare(tasks.TASKS[0], drawn, 32)
    for method in compared["methods"].values():
        for what in ("wins", "judged"):
            assert method[what]["worst-of-4"].value == pytest.approx(0.5, abs=0.08)
    assert [gain["worse"] for gain in compared["gains"]] == ["calibrated identity", "RLHF, raw reward"]
    for gain in compared["gains"]:
        assert gain["gain"].low < 0 < gain["gain"].high
        assert 0.02 < gain["room"] < 0.15


def test_the_page_has_the_tables_of_the_figures() -> None:
    results = Path(__file__).parents[2] / "docs" / "results"
    tables = report.write_tables(json.loads((results / "real.json").read_text(encoding="utf-8")))
    page = (results / "real.md").read_text(encoding="utf-8")
    for table in tables.split("\n\n"):
        assert table.strip() in page
