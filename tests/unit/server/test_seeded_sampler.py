"""Tokens that are drawn with seeds: of the right distribution, and the same in any company."""

import pytest
import torch
from scipy.stats import chisquare

from server.engines.seeded_sampler import BLOCK, sample


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("vocabulary", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_tokens_are_drawn_as_often_as_they_are_likely(vocabulary: int) -> None:
    draws = 20_000
    weights = torch.rand(vocabulary, generator=seeded(0)) ** 4 * 3  # need not sum to 1
    tokens = sample(weights.expand(draws, -1), {row: seeded(row) for row in range(draws)})
    counts = torch.bincount(tokens, minlength=vocabulary)
    expected = weights.double() / weights.double().sum() * draws
    common = expected > 5
    assert counts[~common].sum() <= 3 * expected[~common].sum() + 10
    if common.sum() > 1:
        scale = counts[common].sum() / expected[common].sum()
        assert chisquare(counts[common], expected[common] * scale).pvalue > 1e-4


@pytest.mark.parametrize("allowed", [0, 3, BLOCK - 1, BLOCK, 2 * BLOCK + 1])
def test_a_token_of_probability_zero_is_never_drawn(allowed: int) -> None:
    probabilities = torch.zeros(1000, 2 * BLOCK + 2)
    probabilities[:, allowed] = 1e-30
    assert set(sample(probabilities, {row: seeded(row) for row in range(1000)}).tolist()) == {allowed}


def test_a_seed_gives_its_tokens_in_any_row_and_company() -> None:
    probabilities = torch.rand(50, 1000, generator=seeded(1)).softmax(1)
    alone = [int(sample(probabilities[row : row + 1], {0: seeded(row)})) for row in range(50)]
    together = sample(probabilities, {row: seeded(row) for row in range(50)}).tolist()
    reversed_ = sample(probabilities.flip(0), {49 - row: seeded(row) for row in range(0, 50, 2)}).flip(0).tolist()
    assert together == alone
    assert reversed_[::2] == alone[::2]


def test_a_generator_goes_on_from_token_to_token() -> None:
    probabilities, generator = torch.ones(1, 1000), seeded(3)
    tokens = [int(sample(probabilities, {0: generator})) for _ in range(20)]
    assert len(set(tokens)) > 10


def test_rows_without_a_seed_differ() -> None:
    assert len(set(sample(torch.ones(100, 10_000), {}).tolist())) > 50


def test_what_is_no_number_gives_some_token() -> None:
    tokens = sample(torch.full((2, 300), torch.nan), {0: seeded(0)})
    assert ((tokens >= 0) & (tokens < 300)).all()
