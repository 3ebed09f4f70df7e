"""What we do in place of TRL's trainers computes what they compute."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from training.config import Scratch
from training.models import new_model
from training.reward_model import tokenise_comparison
from training.sft import tokenise_answer
from training.solvers.rloo import GROUP, LengthSortedTrainer
from training.solvers.trl_rloo import RLOOConfig, RLOOTrainer
from training.tokenizer import train_tokenizer

ARGUMENTS = {"use_cpu": True, "bf16": False, "report_to": "none", "dataloader_pin_memory": False, "disable_tqdm": True}
TOKENIZER = train_tokenizer(["what is the way to the station"], 300)
SCRATCH = Scratch(vocabulary=300, hidden=32, layers=1, positions=64)


def user(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": text} for place, text in enumerate(texts)]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def columns(dataset: Any, *names: str) -> list[dict[str, Any]]:
    return [{name: row[name] for name in names} for row in dataset]


def test_answers_are_tokenised_as_trl_does_it(tmp_path: Path) -> None:
    rows = [
        {"prompt": user("Why?"), "completion": assistant("The way.")},
        {"prompt": user("Why?", "So.", "How?"), "completion": assistant("")},
    ]
    trainer = SFTTrainer(
        model=new_model(TOKENIZER, SCRATCH),
        args=SFTConfig(output_dir=str(tmp_path), completion_only_loss=True, **ARGUMENTS),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    ours = [tokenise_answer(TOKENIZER, row) for row in rows]
    assert ours == columns(trainer.train_dataset, "input_ids", "labels")


def test_a_label_belongs_to_every_token_though_a_prompt_is_longer_than_the_conversation() -> None:
    tokenizer = train_tokenizer(["what is the way to the station"], 300)
    tokenizer.chat_template = (
        "{{ messages[0].content }}{% if add_generation_prompt %} what is the way to the station{% else %}"
        "{{ messages[-1].content }}{% endif %}"
    )
    row = tokenise_answer(tokenizer, {"prompt": user("Why?"), "completion": assistant("So.")})
    assert row["labels"] == [-100] * len(row["input_ids"])


def test_comparisons_are_tokenised_as_trl_does_it(tmp_path: Path) -> None:
    rows = [
        {"prompt": user("Why?"), "chosen": assistant("The way."), "rejected": assistant("")},
        {"prompt": user("Why?", "So.", "How?"), "chosen": assistant("What?"), "rejected": assistant("The station.")},
    ]
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, num_labels=1, pad_token_id=TOKENIZER.pad_token_id,
    )  # fmt: skip
    trainer = RewardTrainer(
        model=LlamaForSequenceClassification(config),
        args=RewardConfig(output_dir=str(tmp_path), **ARGUMENTS),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    ours = [tokenise_comparison(TOKENIZER, row) for row in rows]
    assert ours == columns(trainer.train_dataset, "chosen_ids", "rejected_ids")


@pytest.mark.parametrize("rows", [1, GROUP, GROUP + 3])
def test_sorting_responses_by_length_changes_no_log_probability(tmp_path: Path, rows: int) -> None:
    torch.manual_seed(0)
    model = new_model(TOKENIZER, SCRATCH)
    trainer = LengthSortedTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=RLOOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=2, num_generations=2, beta=0.0, **ARGUMENTS
        ),
        train_dataset=Dataset.from_list([{"prompt": user("Why?")}]),
        processing_class=TOKENIZER,
    )
    ids = torch.randint(5, len(TOKENIZER), (rows, 20))
    before, after = torch.randint(2, 8, (rows, 1)), torch.randint(0, 9, (rows, 1))
    places = torch.arange(20)
    mask = ((places >= before) & (places < 20 - after)).long()

    def read(kind: type) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        logs, entropies, auxiliary = kind._get_per_token_logps_and_entropies(
            trainer, model, ids, mask, 9, compute_entropy=True
        )
        assert auxiliary is None
        weights = mask[:, -9:]
        (logs * weights).sum().backward()
        return logs * weights, entropies * weights, [weight.grad.clone() for weight in model.parameters()]

    for ours, theirs in zip(read(LengthSortedTrainer), read(RLOOTrainer), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_trl_does_not_import_vllm_beside_its_trainer() -> None:
    assert RLOOTrainer.__module__ == "trl.trainer.rloo_trainer"
    assert not hasattr(import_module("trl.generation.vllm_generation"), "LLM")
