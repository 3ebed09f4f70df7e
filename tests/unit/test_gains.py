"""The comparison of methods computes what it says, on numbers whose answer is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.gains.curves import Curves, Place, draw_curves, write_curves
from experiments.gains.methods import BEST, IDENTITY, IDENTITY_COARSE, METHODS, PROCEDURES, WORST
from experiments.gains.objectives import OBJECTIVES, write_objectives
from experiments.gains.policies import Job, Measurement, visible_kl
from experiments.gains.reader import BINS, Responses, compute_knowledge
from experiments.gains.results import Results, over_seeds
from experiments.gains.table import describe, write_table
from infalign import BestOfN, WorstOfN, point
from training.configs import load_config

STUDY = Path(__file__).parents[2] / "experiments" / "gains" / "study.yaml"


def make_measurement(wins: float, prompts: int = 12) -> Measurement:
    rates = {str(procedure): (wins + np.linspace(-0.1, 0.1, prompts)).tolist() for procedure in PROCEDURES}
    solved = {"beta": 0.1, "scale": 1.0, "kl": {"value": 0.5, "low": 0.4, "high": 0.6, "level": 0.95}}
    return Measurement([0.5] * prompts, 0.4, rates, rates, rates, solved)


def test_seeds_and_prompts_are_resampled() -> None:
    estimate = over_seeds(np.array([[0.1, 0.3], [0.5, 0.7]]))
    assert estimate.value == pytest.approx(0.4)
    assert (estimate.low, estimate.high) == (pytest.approx(0.1), pytest.approx(0.7))
    alone = over_seeds(np.array([[0.2, 0.2]]))
    assert (alone.low, alone.high) == (pytest.approx(0.2), pytest.approx(0.2))


def test_the_share_is_the_gain_over_what_theory_leaves_at_the_measured_kl() -> None:
    rows = [(Job(IDENTITY, seed), make_measurement(0.7)) for seed in range(2)]
    rows += [(Job(BEST, seed), make_measurement(0.73)) for seed in range(2)]
    results = Results(rows, 64)
    best, identity = (
        point(text, BestOfN(4), kl=0.5, anchors=64, training_procedure=p).win_rate
        for text, p in (("optimal", BestOfN(4)), ("identity", None))
    )
    assert results.room(BEST, IDENTITY, BestOfN(4)) == pytest.approx(best - identity)
    share = results.share(BEST, IDENTITY, BestOfN(4))
    assert share.value == pytest.approx(0.03 / (best - identity))
    assert share.low == pytest.approx(share.high)  # the same difference for every prompt and seed


def test_every_method_can_be_trained() -> None:
    for method in (*METHODS, *OBJECTIVES):
        config = load_config(str(STUDY), method.overrides(3))
        assert config.ctrl is not None
        assert (config.procedure, config.transformation) == (method.procedure, method.transformation)
        assert (config.ctrl.learning_rate, config.ctrl.seed) == (method.learning_rate, 3)


def test_the_table_has_every_method_and_claim() -> None:
    rows = [(Job(method, 0), make_measurement(0.7)) for method in METHODS]
    text = write_table(Results(rows, 64), "Settings.")
    for method in METHODS:
        assert text.count(f"| {method.name} |") >= 2
    assert "| CTRL optimal for best-of-4 | calibrated identity | best-of-4 | 0.000 [0.000, 0.000] |" in text
    assert text.count("(calibrated identity) | 0.000") == 1
    assert json.loads(json.dumps(describe(*rows[0])))["wins"]["best-of-4"] == pytest.approx(0.7)


def test_the_table_of_objectives_compares_each_with_the_default() -> None:
    rows = [(Job(method, 0), make_measurement(0.7 if method == BEST else 0.69)) for method in OBJECTIVES]
    text = write_objectives(Results(rows, 64, OBJECTIVES), "Settings.")
    assert text.count("| 0.010 [0.010, 0.010] | 0.010 [0.010, 0.010] |") == len(OBJECTIVES) - 1
    assert "| max@4 of groups of 8 |" in text


def test_curves_go_on_where_they_were_interrupted(tmp_path: Path) -> None:
    path, places = tmp_path / "policies.json", [Place(128, 60), Place(128, 240)]
    curves = Curves(path)
    jobs = list(curves.list_missing(places, 1))
    assert [(place.steps, job.method) for place, job in jobs[:4]] == [
        (60, IDENTITY),
        (60, BEST),
        (60, IDENTITY_COARSE),
        (60, WORST),
    ]
    for place, job in jobs[:6]:
        curves.add(place, job, make_measurement(0.7))
    again = Curves(path)
    assert list(again.list_missing(places, 1)) == jobs[6:]
    assert list(again.results(64)) == [Place(128, 60)]  # of the other, not every method is there
    for place, job in jobs[6:]:
        again.add(place, job, make_measurement(0.75))
    results = Curves(path).results(64)
    assert results[places[1]].gain(BEST, IDENTITY, BestOfN(4)).value == pytest.approx(0)
    assert results[places[1]].wins(WORST, WorstOfN(4)).value == pytest.approx(0.75, abs=1e-3)
    assert write_curves(results).count("| 61,440 | 1 |") == 2
    draw_curves(results, tmp_path / "curves.svg")
    assert len(json.loads((tmp_path / "curves.json").read_text())) == 6
    assert list(Curves(path).results(64)) == places


def test_longer_runs_take_smaller_steps() -> None:
    overrides: Any = Place(256, 480).job(BEST, 0).overrides
    assert overrides == ("ctrl.learning_rate=0.00025", "ctrl.steps=480", "model.scratch.hidden=256")


def test_the_kl_that_shows_is_that_of_quantiles() -> None:
    rng = np.random.default_rng(0)
    reference = rng.random((200, 64))
    assert visible_kl(rng.random((200, 64)), reference) == pytest.approx(0, abs=0.01)
    assert visible_kl(np.sqrt(rng.random((200, 64))), reference) == pytest.approx(np.log(2) - 0.5, abs=0.02)


@pytest.mark.parametrize("text", ["identity", "optimal"])
def test_a_reader_that_knows_all_wins_what_theory_allows(text: str) -> None:
    rng = np.random.default_rng(1)
    rewards = rng.random((30, 256))
    quantiles = (rewards.argsort(axis=1).argsort(axis=1) + 0.5) / 256
    responses = Responses([], rewards, quantiles)
    places = np.minimum((quantiles.ravel() * BINS).astype(int), BINS - 1)
    for procedure in (BestOfN(4), WorstOfN(4)):
        known = compute_knowledge(np.eye(BINS)[places], responses, text, procedure, 0.5)
        assert known.quantile > 0.99
        assert known.wins.value == pytest.approx(point(text, procedure, kl=0.5).win_rate, abs=0.004)
        blind = compute_knowledge(rng.dirichlet(np.ones(BINS), quantiles.size), responses, text, procedure, 0.5)
        assert blind.wins.value == pytest.approx(0.5, abs=0.05)
