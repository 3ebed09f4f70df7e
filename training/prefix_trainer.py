"""The trainer of a prefix scorer.

At every prefix of a response but the empty one, the cross-entropy of the law of the quantile counts. At the empty one,
both laws are known: the quantile is uniform, and the rewards are those of all responses to the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainingArguments

from training.supervised import UNCOUNTED


@dataclass
class PrefixArguments(TrainingArguments):  # type: ignore[misc]
    """Arguments of :class:`PrefixTrainer`."""

    max_length: int | None = None
    """Always None: no row is cut off."""


class PrefixTrainer(Trainer):  # type: ignore[misc]
    """Trains a classifier to predict two laws at every token.

    Args:
        model: A sequence classifier on a causal LM, with two outputs for each bin.
        peft_config: Adapters that are trained, or None to train all weights.
        options: Further arguments of the trainer.
    """

    def __init__(self, model: Any, peft_config: PeftConfig | None = None, **options: Any) -> None:
        if peft_config:
            model = get_peft_model(model, peft_config)
            if options["args"].gradient_checkpointing:
                model.enable_input_require_grads()
        padding = model.config.get_text_config().pad_token_id
        super().__init__(model=model, data_collator=lambda rows: collate(rows, padding), **options)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over rows, which the trainer must average
        self.outputs: list[torch.Tensor] = []
        head = next(module for name, module in self.model.named_modules() if name.rpartition(".")[2] == "score")
        head.register_forward_hook(lambda _module, _inputs, output: self.outputs.append(output))

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of a batch, by :func:`prefix_loss`.

        A classifier computes its outputs at every token and returns those of the last. So they are caught at its head.
        """
        self.outputs.clear()
        answer = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = prefix_loss(self.outputs.pop(), inputs["labels"], inputs["counts"])
        return (loss, answer) if return_outputs else loss


def collate(rows: Sequence[dict[str, Any]], padding: int) -> dict[str, torch.Tensor]:
    """Pad rows of :func:`training.prefix_rows.make_rows` on the right and stack them.

    Args:
        rows: The rows.
        padding: Token id that pads.
    """
    tokens = [torch.tensor(row["input_ids"]) for row in rows]
    return {
        "input_ids": pad_sequence(tokens, batch_first=True, padding_value=padding),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
        "labels": pad_sequence([torch.tensor(row["labels"]) for row in rows], True, UNCOUNTED),
        "counts": torch.tensor([row["counts"] for row in rows]),
    }


def prefix_loss(outputs: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Compute the mean cross-entropy over prefixes, and add the mean over rows of both laws' at the empty prefix.

    Args:
        outputs: (rows, tokens, 2 B) outputs at every token.
        labels: (rows, tokens) bin of the quantile, or :data:`training.supervised.UNCOUNTED`.
        counts: (rows, B) number of rewards of the prompt in each bin.

    Returns:
        The loss in nats.
    """
    bins = counts.shape[-1]
    quantile_loss = cross_entropy(outputs[..., :bins].flatten(0, 1).float(), labels.flatten(), ignore_index=UNCOUNTED)
    last = (labels != UNCOUNTED).int().argmax(dim=1) - 1  # the last token of the prompt
    quantile, reward = outputs[torch.arange(len(outputs), device=outputs.device), last].float().split(bins, dim=-1)
    shares = counts / counts.sum(dim=-1, keepdim=True)
    return quantile_loss + cross_entropy(quantile, torch.full_like(quantile, 1 / bins)) + cross_entropy(reward, shares)
