"""Reading prompts once changes neither logits nor gradients."""

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_job
from training.likelihoods import response_logits
from training.models import load_causal
from training.sampler import Sampler
from training.shared_prompts import SharedPrompts

PROMPTS = [[5, 6, 7], [5, 6, 7], [8], [9, 10, 11, 12, 13], [8]]
RESPONSES = [[20, 21, 22, 23], [24], [25, 26], [27, 28, 29], [30, 31]]
PARTS = ([1, 2], [4, 0, 3])


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    read = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    return read


@pytest.mark.parametrize("is_shared", [True, False])
def test_logits_and_gradients_are_those_of_whole_sequences(tmp_path: Path, is_shared: bool) -> None:
    job = tiny_job(tmp_path, samples=1, max_tokens=4)
    model, tokenizer = load_causal(job.reference), Sampler.load(job.reference, job.law).tokenizer
    read = SharedPrompts(model, tokenizer, PROMPTS, is_shared)
    for rows in PARTS:
        ours = read.logits(rows, [RESPONSES[row] for row in rows])
        theirs = response_logits(model, tokenizer, [PROMPTS[row] for row in rows], [RESPONSES[row] for row in rows])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        ours.log_softmax(-1)[:, 3].sum().backward()
    read.backward()
    ours_gradients = gradients(model)
    for rows in PARTS:
        whole = response_logits(model, tokenizer, [PROMPTS[row] for row in rows], [RESPONSES[row] for row in rows])
        whole.log_softmax(-1)[:, 3].sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours_gradients[name], gradient, atol=1e-5, rtol=1e-4)


def test_a_model_that_learns_nothing_is_read_without_gradients(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, samples=1, max_tokens=4)
    model, tokenizer = load_causal(job.reference), Sampler.load(job.reference, job.law).tokenizer
    with torch.no_grad():
        read = SharedPrompts(model, tokenizer, PROMPTS)
        assert not read.logits([0], [RESPONSES[0]]).requires_grad
    read.backward()
