"""The solver ctrl with a vLLM engine: it draws with the weights of each step."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoTokenizer

from infalign.errors import EngineFailed
from infalign.templates import render_prompt, tokenise
from tests.tiny import CTRL, PROMPTS, make_tiny_task
from training.config import Lora
from training.models import load_causal, lora_config
from training.progress import read_rows
from training.solvers import Task, ctrl
from training.solvers.engine import PolicyEngine

SURE = 1000
"""Factor of the last norm, by which a model is sure of each token: what it draws is what is likeliest."""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_tiny_task(tmp_path_factory.mktemp("task"))


def likeliest(model: Any, tokenizer: Any, tokens: int) -> list[list[int]]:
    """The likeliest response to each prompt, up to the end token."""
    responses = []
    for messages in PROMPTS:
        ids = torch.tensor([tokenise(tokenizer, render_prompt(tokenizer, messages))])
        options = {"max_new_tokens": tokens, "do_sample": False}
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        responses.append(output[0, ids.shape[1] :].tolist())
    return responses


@contextmanager
def engine_of(policy: Any, task: Task, directory: Path) -> Iterator[PolicyEngine]:
    tokenizer = AutoTokenizer.from_pretrained(task.reference)
    with closing(PolicyEngine(policy, tokenizer, task.reference, task.law, directory)) as engine:
        yield engine


def disturb(weights: Any, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            weight.add_(torch.randn_like(weight))


def test_it_draws_with_the_weights_that_the_policy_has(task: Task, tmp_path: Path) -> None:
    policy, tokenizer = load_causal(task.reference), AutoTokenizer.from_pretrained(task.reference)
    weights = tmp_path / "weights"
    with engine_of(policy, task, weights) as engine:
        first, other, again = (engine.draw(PROMPTS, seed) for seed in (1, 2, 1))
        assert first == again != other
        policy.model.norm.weight.data *= SURE
        expected = []
        for seed in (1, 2):
            disturb(policy.parameters(), seed)
            expected.append(likeliest(policy, tokenizer, task.law.max_tokens))
            assert engine.draw(PROMPTS, 1) == expected[-1]
        assert expected[0] != expected[1]
        [process] = active_children()
        process.kill()
        with pytest.raises(EngineFailed, match=r"^ctrl: the process of vllm was killed \(exit code -9"):
            engine.draw(PROMPTS, 1)
    assert not active_children()
    assert not weights.exists()


def test_it_draws_with_the_adapter_that_the_policy_has(task: Task, tmp_path: Path) -> None:
    reference = load_causal(task.reference)
    reference.model.norm.weight.data *= SURE
    tokenizer = AutoTokenizer.from_pretrained(task.reference)
    reference.save_pretrained(tmp_path / "reference")
    tokenizer.save_pretrained(tmp_path / "reference")
    policy = get_peft_model(reference, lora_config(Lora(rank=8, alpha=16)))
    with engine_of(policy, replace(task, reference=tmp_path / "reference"), tmp_path / "weights") as engine:
        expected = []
        for seed in (1, 2):
            disturb((weight for weight in policy.parameters() if weight.requires_grad), seed)
            expected.append(likeliest(policy, tokenizer, task.law.max_tokens))
            assert engine.draw(PROMPTS, 1) == expected[-1]
        assert expected[0] != expected[1]


def test_the_solver_trains_with_it(task: Task, tmp_path: Path) -> None:
    by_vllm = replace(task, config=CTRL.model_copy(update={"engine": "vllm"}), directory=tmp_path)
    ctrl.solve(by_vllm, tmp_path / "model")
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, CTRL.steps + 1))
    assert rows[-1]["kl"] > rows[0]["kl"]
    assert not active_children()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.json", "metrics.jsonl", "model"]
