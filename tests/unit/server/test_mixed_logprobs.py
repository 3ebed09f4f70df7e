"""Requests for the likeliest tokens and for given tokens in one step of vLLM's sampler."""

import torch

from server.engines.mixed_logprobs import MOST, gather


def test_each_request_gets_the_logprobs_that_it_asks_for() -> None:
    from vllm.v1.sample.sampler import Sampler

    sampler = Sampler()
    logprobs = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    sampled = torch.tensor([4, 5, 6])
    given = gather(Sampler.gather_specific_token_logprobs)(sampler, logprobs, {1: [7, 9]}, sampled)
    likeliest = sampler.gather_logprobs(logprobs, MOST, token_ids=sampled)
    for row in (0, 2):
        assert torch.equal(given.logprob_token_ids[row], likeliest.logprob_token_ids[row])
        assert torch.equal(given.logprobs[row], likeliest.logprobs[row])
    assert given.logprob_token_ids[1, :3].tolist() == [5, 7, 9]
    assert torch.equal(given.logprobs[1, :3], logprobs[1, [5, 7, 9]])
    assert torch.equal(given.selected_token_ranks, likeliest.selected_token_ranks)


def test_more_given_tokens_than_alternatives_are_kept() -> None:
    from vllm.v1.sample.sampler import Sampler

    logprobs = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    tokens = list(range(40))
    given = gather(Sampler.gather_specific_token_logprobs)(Sampler(), logprobs, {0: tokens}, torch.tensor([1, 2]))
    assert torch.equal(given.logprobs[0, 1:], logprobs[0, :40])
    assert given.logprobs.shape == (2, 41)
    assert torch.equal(given.logprobs[1, 1 : MOST + 1], logprobs[1].topk(MOST).values)


def test_alone_nothing_is_changed() -> None:
    from vllm.v1.sample.sampler import Sampler

    logprobs = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    given = gather(Sampler.gather_specific_token_logprobs)(Sampler(), logprobs, {0: [3]}, torch.tensor([1]))
    assert given.logprob_token_ids.tolist() == [[1, 3]]
