"""Drawing from models, their KL, settling at a target, and the optimiser, on models of a few thousand weights."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from infalign.manifest import SamplingLaw
from infalign.templates import render_prompt, tokenise
from training.config import Lora, Scratch
from training.likelihoods import sequence_kl
from training.models import lora_config, merged_adapter, new_model
from training.optimisers import MuonAdam
from training.sampler import Sampler, draw_responses, sample_tokens
from training.solvers.settling import settle
from training.tokenizer import train_tokenizer

PROMPTS = [[{"role": "user", "content": text}] for text in ("Why?", "What is the way to the station?", "How so?")]
LAW = SamplingLaw(max_tokens=6)


def model(seed: int = 0) -> Sampler:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["what is the way to the station"], 300)
    network = new_model(tokenizer, Scratch(vocabulary=300, hidden=32, layers=1, positions=64))
    return Sampler(network.eval(), tokenizer, LAW)


def greedily(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def moved(sampler: Sampler, by: float) -> Sampler:
    torch.manual_seed(1)
    network = copy.deepcopy(sampler.model)
    with torch.no_grad():
        for weight in network.parameters():
            weight += by * torch.randn_like(weight)
    return Sampler(network, sampler.tokenizer, sampler.law)


def log_ratio(policy: Sampler, reference: Sampler, drawn: list[list[int]], prompts: list) -> np.ndarray:
    """Sample by sample, without padding."""
    found = []
    for messages, tail in zip(prompts, drawn, strict=True):
        text = policy.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        head = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*head, *tail]])
        each = []
        for network in (policy.model, reference.model):
            with torch.no_grad():
                logs = network(input_ids=ids).logits[0, len(head) - 1 : -1].log_softmax(dim=-1)
            each.append(float(logs.gather(1, torch.tensor(tail)[:, None]).sum()))
        found.append(each[0] - each[1])
    return np.array(found)


def test_kl_is_the_mean_log_ratio_of_the_policys_draws() -> None:
    reference = model()
    policy = moved(reference, 0.1)
    prompts = [messages for messages in PROMPTS for _ in range(300)]
    drawn = policy.draw(prompts, 0)
    exact, sampled = sequence_kl(policy, reference, prompts, drawn), log_ratio(policy, reference, drawn, prompts)
    assert np.all(exact >= 0)
    assert exact.mean() == pytest.approx(sampled.mean(), abs=4 * sampled.std() / np.sqrt(sampled.size))
    assert exact.std() < sampled.std()
    assert sequence_kl(reference, reference, prompts, drawn) == pytest.approx(0, abs=1e-5)


def test_kl_does_not_depend_on_what_is_in_the_batch() -> None:
    reference = model()
    policy = moved(reference, 0.1)
    drawn = [[5, 6, 7, 8], [9], [10, 11, 1]]
    alone = [sequence_kl(policy, reference, [p], [d])[0] for p, d in zip(PROMPTS, drawn, strict=True)]
    assert sequence_kl(policy, reference, PROMPTS, drawn) == pytest.approx(alone, abs=1e-5)


def test_responses_come_in_the_order_of_their_prompts() -> None:
    cold = Sampler(model().model, model().tokenizer, SamplingLaw(max_tokens=6, temperature=1e-4))
    assert cold.draw(PROMPTS, 0) == [cold.draw([prompt], 5)[0] for prompt in PROMPTS]


def test_a_batch_draws_what_each_prompt_draws_alone() -> None:
    sampler, tokens = moved(model(), 0.2), []
    for messages in (PROMPTS[place] for place in (0, 1, 0, 2, 1)):
        tokens.append(tokenise(sampler.tokenizer, render_prompt(sampler.tokenizer, messages)))

    def greedy(prompt: list[int], ends: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        drawn = sampler.model.generate(input_ids=ids, do_sample=False, max_new_tokens=30, eos_token_id=ends)
        return drawn[0, len(prompt) :].tolist()

    endless = [greedy(prompt, [-1]) for prompt in tokens]
    ends = [endless[0][12], endless[3][2]]  # of another segment each
    alone = [greedy(prompt, ends) for prompt in tokens]
    assert len({len(response) for response in alone}) > 1
    inputs = sampler.tokenizer.pad(
        [{"input_ids": prompt} for prompt in tokens], padding_side="left", return_tensors="pt"
    )
    assert draw_responses(sampler.model, inputs, 30, ends, greedily) == alone


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 64, 300])
def test_tokens_are_sampled_as_often_as_their_probability_says(vocabulary: int) -> None:
    torch.manual_seed(2)
    logits = 2 * torch.randn(vocabulary)
    logits[1::3] = -torch.inf
    drawn = sample_tokens(logits.expand(200_000, -1)).bincount(minlength=vocabulary)
    expected = 200_000 * logits.softmax(dim=0).double().numpy()
    assert not drawn[expected == 0].any()
    assert (np.abs(drawn.numpy() - expected) <= 5 * np.sqrt(expected) + 1).all()


def test_rows_are_sampled_from_their_own_logits() -> None:
    logits = torch.full((50, 50), -torch.inf)
    logits.fill_diagonal_(0.0)
    assert sample_tokens(logits).tolist() == list(range(50))


def test_a_prompt_of_one_token_is_drawn_from() -> None:
    inputs = {"input_ids": torch.tensor([[5], [5], [7]]), "attention_mask": torch.ones(3, 1, dtype=torch.long)}
    first, second, third = draw_responses(model().model, inputs, 4, [-1], greedily)
    assert first == second != third
    assert len(third) == 4


@pytest.mark.parametrize(("by", "target"), [(0.12, 0.05), (0.12, 0.2), (0.05, 0.03)])
def test_a_policy_settles_at_its_target(by: float, target: float) -> None:
    reference = model()
    policy = moved(reference, by)
    settled = settle(policy, reference, PROMPTS, target, 64, 0)
    assert settled.kl.value == pytest.approx(target, rel=0.05)
    prompts = [messages for messages in PROMPTS for _ in range(300)]
    again = sequence_kl(policy, reference, prompts, policy.draw(prompts, 9))
    assert again.mean() == pytest.approx(target, rel=0.25)


def test_a_target_too_far_away_is_approached_and_recorded() -> None:
    reference = model()
    settled = settle(moved(reference, 0.02), reference, PROMPTS, 5.0, 16, 0)
    assert settled.scale == pytest.approx(1.25)
    assert settled.kl.value < 1


def test_a_policy_that_never_moved_stays() -> None:
    reference = model()
    settled = settle(Sampler(copy.deepcopy(reference.model), reference.tokenizer, LAW), reference, PROMPTS, 0.5, 4, 0)
    assert settled.kl.value == pytest.approx(0, abs=1e-4)


def descend(network: torch.nn.Module, optimiser: MuonAdam, steps: int) -> None:
    ids = torch.arange(3, 15)[None]
    for _ in range(steps):
        optimiser.zero_grad()
        network(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()


def loss(network: torch.nn.Module) -> float:
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        return float(network(input_ids=ids, labels=ids).loss)


def test_the_optimiser_learns_and_goes_on_from_its_state() -> None:
    whole, halves = model().model, model().model
    optimiser = MuonAdam(whole, 0.01)
    before = loss(whole)
    descend(whole, optimiser, 6)
    assert loss(whole) < before - 1
    first = MuonAdam(halves, 0.01)
    descend(halves, first, 3)
    second = MuonAdam(halves, 0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    descend(halves, second, 3)
    for ours, theirs in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_embeddings_are_for_adam_whatever_they_are_called() -> None:
    network = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    [muon, adam] = MuonAdam(network, 0.01).parts
    names = {id(weight): name for name, weight in network.named_parameters()}
    matrices, rest = (
        {names[id(weight)] for group in part.param_groups for weight in group["params"]} for part in (muon, adam)
    )
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= rest
    assert all(name.startswith("transformer.h.0.") for name in matrices)


@pytest.mark.parametrize("keep", [lambda name: "embed" in name, lambda name: "proj" in name])
def test_what_is_frozen_stays(keep: Callable[[str], bool]) -> None:
    network = model().model
    for name, weight in network.named_parameters():
        weight.requires_grad_(keep(name))
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    descend(network, MuonAdam(network, 0.01), 1)
    assert {name for name, weight in network.named_parameters() if not torch.equal(weight, before[name])} == {
        name for name in before if keep(name)
    }


def test_an_adapter_is_merged_for_a_while_and_leaves_the_weights_as_they_were() -> None:
    network = get_peft_model(model().model, lora_config(Lora(rank=4, alpha=8)))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight += torch.randn_like(weight)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        apart = network(input_ids=ids).logits
        with network.disable_adapter():
            reference = network(input_ids=ids).logits
        with merged_adapter(network):
            torch.testing.assert_close(network(input_ids=ids).logits, apart)
            merged = network.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.clone()
        assert not torch.equal(merged, before["base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"])
        assert not torch.allclose(reference, apart)
        with network.disable_adapter(), merged_adapter(network):
            assert torch.equal(network(input_ids=ids).logits, reference)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, before[name]), name
    network(input_ids=ids).logits.sum().backward()  # the weights can still be trained
