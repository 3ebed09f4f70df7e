"""Estimators against brute force over all sub-samples, and against known laws."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infalign import (
    BestOfN,
    BestOfPoisson,
    Estimate,
    InvalidValue,
    Procedure,
    Standard,
    WorstOfN,
    attacks,
    over_prompts,
)
from infalign import estimators as e

VALUES = st.integers(-4, 4).map(float)
SAMPLES = st.lists(VALUES, min_size=1, max_size=6)
KINDS = st.sampled_from([(BestOfN, max), (WorstOfN, min)])


@given(SAMPLES, KINDS, st.data())
def test_expected_selected_is_the_mean_over_all_subsets(row: list[float], kind: tuple, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(row)))
    brute = np.mean([kind[1](subset) for subset in itertools.combinations(row, n)])
    assert e.expected_value([row], kind[0](n))[0] == pytest.approx(brute)


@given(SAMPLES, SAMPLES, KINDS, st.data())
def test_win_rate_is_the_mean_over_all_pairs_of_subsets(
    ours: list[float], theirs: list[float], kind: tuple, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, min(len(ours), len(theirs))))
    duels = [
        (kind[1](a) > kind[1](b)) + 0.5 * (kind[1](a) == kind[1](b))
        for a in itertools.combinations(ours, n)
        for b in itertools.combinations(theirs, n)
    ]
    assert e.win_rate([ours], [theirs], kind[0](n))[0] == pytest.approx(np.mean(duels))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=6), KINDS, st.data())
def test_judged_selection_is_the_mean_over_all_subsets_and_ties(
    pairs: list[tuple[float, float]], kind: tuple, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, len(pairs)))
    brute = []
    for subset in itertools.combinations(pairs, n):
        selected = kind[1](reward for reward, _ in subset)
        brute.append(np.mean([score for reward, score in subset if reward == selected]))
    found = e.expected_score([[r for r, _ in pairs]], [[s for _, s in pairs]], kind[0](n))[0]
    assert found == pytest.approx(np.mean(brute))


def subset_mean(pairs: list[tuple[float, float]], select: Callable) -> float:
    """Mean score of the selected, ties shared."""
    selected = select(reward for reward, _ in pairs)
    return float(np.mean([score for reward, score in pairs if reward == selected]))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5, unique_by=lambda p: p[0]), KINDS, st.data())
def test_judged_win_rate_is_the_mean_over_all_pairs_of_subsets(
    ours: list[tuple[float, float]], kind: tuple, data: st.DataObject
) -> None:
    theirs = data.draw(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5, unique_by=lambda p: p[0]))
    n = data.draw(st.integers(1, min(len(ours), len(theirs))))
    duels = [
        (1 + np.sign(subset_mean(list(a), kind[1]) - subset_mean(list(b), kind[1]))) / 2
        for a in itertools.combinations(ours, n)
        for b in itertools.combinations(theirs, n)
    ]
    sides = [[[value[part] for value in side]] for side in (ours, theirs) for part in (0, 1)]
    assert e.judged_win_rate(*sides, kind[0](n))[0] == pytest.approx(np.mean(duels))


def test_a_judge_that_is_the_reward_gives_the_win_rate() -> None:
    rng = np.random.default_rng(4)
    ours, theirs = rng.integers(0, 9, (5, 12)).astype(float), rng.integers(0, 9, (5, 15)).astype(float)
    judged = e.judged_win_rate(ours, ours, theirs, theirs, BestOfN(4))
    assert judged == pytest.approx(e.win_rate(ours, theirs, BestOfN(4)))


def test_tied_samples_share_their_scores() -> None:
    assert e.expected_score([[1.0, 1.0, 0.0]], [[4.0, 6.0, 0.0]], BestOfN(2))[0] == pytest.approx(5.0)


@given(st.lists(SAMPLES, min_size=2, max_size=4), VALUES, st.integers(1, 3))
def test_attack_success_is_the_share_of_subsets_with_a_failure(
    rows: list[list[float]], threshold: float, n: int
) -> None:
    found = attacks.attack_success(rows, threshold, n)
    for row, rate in zip(rows, found, strict=True):
        if n > len(row):
            assert math.isnan(rate)
        else:
            brute = np.mean([min(subset) < threshold for subset in itertools.combinations(row, n)])
            assert rate == pytest.approx(brute)


@pytest.mark.parametrize("procedure", [BestOfN(4), WorstOfN(4), BestOfPoisson(2), Standard()], ids=str)
def test_uniform_quantiles_give_the_expected_quantile_without_bias(procedure: Procedure) -> None:
    seen = e.expected_value(np.random.default_rng(0).uniform(size=(4000, 24)), procedure)
    assert np.mean(seen) == pytest.approx(procedure.expected_quantile, abs=4 * np.std(seen) / math.sqrt(len(seen)))


def test_the_expectation_does_not_depend_on_how_many_samples_there_are() -> None:
    """A plug-in estimate, which draws with replacement, is biased; this is not."""
    rng = np.random.default_rng(1)
    few = e.expected_value(rng.uniform(size=(20_000, 5)), BestOfN(4)).mean()
    many = e.expected_value(rng.uniform(size=(2_000, 50)), BestOfN(4)).mean()
    assert (few, many) == (pytest.approx(0.8, abs=0.005), pytest.approx(0.8, abs=0.005))


@pytest.mark.parametrize("procedure", [BestOfN(4), WorstOfN(4), BestOfPoisson(3)], ids=str)
def test_more_than_there_are_samples_gives_nan(procedure: Procedure) -> None:
    three = [[1.0, 2.0, 3.0]]
    assert math.isnan(e.expected_value(three, procedure)[0])
    assert math.isnan(e.win_rate(three, three, procedure)[0])
    assert math.isnan(e.expected_score(three, three, procedure)[0])
    mixed = e.expected_value([[1.0, 2.0, 3.0], list(range(40))], procedure)
    assert list(np.isnan(mixed)) == [True, False]
    assert math.isnan(over_prompts(mixed).value)


@given(SAMPLES, SAMPLES, st.integers(1, 6))
def test_win_rates_of_the_two_sides_add_to_one_and_mirror(ours: list[float], theirs: list[float], n: int) -> None:
    n = min(n, len(ours), len(theirs))
    forward = e.win_rate([ours], [theirs], BestOfN(n))[0]
    assert forward + e.win_rate([theirs], [ours], BestOfN(n))[0] == pytest.approx(1)
    negated = e.win_rate([[-x for x in ours]], [[-x for x in theirs]], WorstOfN(n))[0]
    assert forward + negated == pytest.approx(1)


def test_win_rate_of_a_tilted_policy_is_that_of_theory() -> None:
    """A policy with density m u^(m−1) beats the reference m/(m + 1) under every best-of-n."""
    rng = np.random.default_rng(2)
    ours, theirs = rng.uniform(size=(3000, 16)) ** (1 / 3), rng.uniform(size=(3000, 20))
    found = over_prompts(e.win_rate(ours, theirs, BestOfN(4)))
    assert found.low < 0.75 < found.high
    assert found.high - found.low < 0.02


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = [
        found.low <= 0.5 <= found.high
        for i in range(300)
        for found in [over_prompts(rng.uniform(size=60), level=0.9, resamples=300, seed=i)]
    ]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.05)


def test_intervals_of_a_figure_of_several_columns_keep_rows_together() -> None:
    pairs = np.random.default_rng(4).normal(size=(200, 1)) + np.zeros((200, 2))
    found = over_prompts(pairs, lambda rows: float(np.mean(rows[:, 0] - rows[:, 1])))
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_estimates_print_short_and_one_prompt_has_no_interval() -> None:
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
    single = over_prompts([0.3])
    assert single.value == 0.3
    assert math.isnan(single.low)


def test_power_law_is_recovered_and_extrapolated_with_an_interval_that_holds_the_truth() -> None:
    law = attacks.PowerLaw(3.0, 0.5)
    n = [1, 2, 4, 8, 16]
    fitted = attacks.fit_power_law(n, law(n))
    assert (fitted.a, fitted.b) == (pytest.approx(3.0), pytest.approx(0.5))
    rng = np.random.default_rng(5)
    chance = rng.beta(0.3, 6.0, size=(600, 1))
    unsafe = -(rng.uniform(size=(600, 64)) < chance).astype(float)
    found = attacks.extrapolate_attack_success(unsafe, -0.5, [1, 2, 4, 8, 16, 32], 64)
    seen = attacks.attack_success(unsafe, -0.5, 64).mean()
    assert found.low - 0.02 < seen < found.high + 0.02
    assert found.low < found.value < found.high


def test_power_law_needs_two_points_inside() -> None:
    with pytest.raises(InvalidValue, match="success: got"):
        attacks.fit_power_law([1, 2, 3], [0.0, 0.5, 1.0])


def test_kl_estimates_of_gaussians_agree_with_the_closed_form() -> None:
    """KL(N(0.4, 1) ‖ N(0, 1)) = 0.08, from 64 draws for each of 500 prompts."""
    draws = np.random.default_rng(6).normal(0.4, 1, size=(500, 64))
    ours, theirs = -((draws - 0.4) ** 2) / 2, -(draws**2) / 2
    plain, nonnegative = e.kl(ours, theirs), e.kl_nonnegative(ours, theirs)
    for found in (plain, nonnegative):
        assert found.mean() == pytest.approx(0.08, abs=4 * found.std() / math.sqrt(500))
    assert np.all(nonnegative >= 0)
    assert nonnegative.std() < plain.std()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: e.expected_value([[1.0, math.nan]], BestOfN(1)), "samples: got nan"),
        (lambda: e.expected_value([[]], BestOfN(1)), r"samples: got \(0,\)"),
        (lambda: e.expected_value([[[1.0]]], BestOfN(1)), r"samples: got \(1, 1\)"),
        (lambda: e.win_rate([[1.0]], [[1.0], [2.0]], BestOfN(1)), "reference: got '2 prompts', accepted: 1"),
        (lambda: e.win_rate([[1.0]], [[math.inf]], BestOfN(1)), "reference: got inf"),
        (lambda: e.kl([[1.0, 2.0]], [[1.0]]), "reference_log_probs: got 1, accepted: 2"),
        (lambda: e.expected_score([[1.0]], [[1.0, 2.0]], BestOfN(1)), "scores: got 2, accepted: 1"),
        (lambda: over_prompts([]), "values: got 0"),
        (lambda: over_prompts([1.0, 2.0], level=1.0), "level: got 1.0"),
    ],
)
def test_bad_input_is_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        call()
