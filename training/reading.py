"""Whether a classifier gives a text one reward: alone, as the library runs it, and beside others, as it is scored here.

What goes wrong is padding. The library reads a causal classifier at the last token that its config does not call
padding, vLLM at the last token of all.
"""

from typing import Any

import numpy as np
import torch

from infalign.calibration import Calibration
from infalign.errors import InvalidValue, one_line
from training.scorer import Scorer

ROUNDINGS = 4
"""Rounding errors of the model's own precision that two ways to compute a reward may differ by."""
PROMPT = [{"role": "user", "content": "Is it?"}]
RESPONSES = ("", "No.", "Yes, it is.", "It is, as far as anybody can tell")


def check_reading(scorer: Scorer, key: str, source: str, remedy: str) -> None:
    """Score a few texts alone and in a padded batch, with the text of the padding and the end token among them.

    Args:
        scorer: the classifier, with the config that it came with.
        key: what the error calls it.
        source: where it came from.
        remedy: what to do where its config pads with the token that ends a conversation.

    Raises:
        InvalidValue: it cannot be run, or a text has two rewards that differ by more than the grid of calibrations
            and the precision of the model.
    """
    tokenizer, config = scorer.tokenizer, scorer.model.config
    special = [token for token in (tokenizer.pad_token, tokenizer.eos_token) if token]
    responses = [*RESPONSES, *special, *(f"Yes.{token}" for token in special)]
    room = getattr(config.get_text_config(), "max_position_embeddings", None) or float("inf")
    responses = [text for text in responses if len(scorer.read(PROMPT, text)) <= room]
    accepted = "a classifier that gives a text one reward, alone and beside longer texts"
    try:
        alone = np.array([_alone(scorer, text) for text in responses])
        beside = scorer.score([PROMPT] * len(responses), responses)
    except (ValueError, IndexError) as error:
        raise InvalidValue(key, source, f"{accepted} ({one_line(error)})") from error
    differences = np.abs(alone - beside)
    largest = int(np.argmax(differences))  # the first that is not a number, if one is
    precision = ROUNDINGS * torch.finfo(scorer.model.dtype).eps * float(np.abs(alone).max())
    if differences[largest] <= max(Calibration.resolution, precision):
        return
    found = f"alone {alone[largest]:.6g}, beside longer texts {beside[largest]:.6g}: the largest of its differences"
    end = scorer.read(PROMPT, RESPONSES[-1])[-1]
    if config.get_text_config().pad_token_id == end:
        found += (
            f"; its config pads with {tokenizer.convert_ids_to_tokens(end)!r}, which ends a conversation: the library "
            f"reads it one token early, vLLM at the end. {remedy}"
        )
    raise InvalidValue(key, source, f"{accepted} ({found})")


@torch.inference_mode()
def _alone(scorer: Scorer, response: str) -> float:
    tokens: Any = torch.tensor([scorer.read(PROMPT, response)], device=scorer.model.device)
    logits = scorer.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return float(logits[0, scorer.output])
