"""Checks that a classifier gives a text one reward, whatever the text is batched with.

Padding is what goes wrong. Transformers reads a causal classifier at the last token that is not padding by its config,
and vLLM at the last token of all. A config that pads with a token which may end a conversation makes them differ.
"""

from typing import Any

import numpy as np
import torch

from infalign.calibration import Calibration
from infalign.errors import InvalidValue, one_line
from training.scorer import Scorer

ROUNDINGS = 4
"""Rounding errors, in the model's precision, by which two ways to compute a reward may differ."""
PROMPT = [{"role": "user", "content": "Is it?"}]
RESPONSES = ("", "No.", "Yes, it is.", "It is, as far as anybody can tell")


def check_reading(scorer: Scorer, key: str, source: str, remedy: str) -> None:
    """Check that a few texts get the same reward alone and in a padded batch.

    Among the texts are some that spell out the padding token and the end token.

    Args:
        scorer: The classifier, with its own config.
        key: Name of the setting that the error message blames.
        source: Where the classifier came from.
        remedy: What to do if its config pads with the token that ends a conversation.

    Raises:
        InvalidValue: The classifier cannot be run, or a text has two rewards. They may differ by rounding, as far as
            the calibration tables and the precision of the model allow.
    """
    tokenizer, config = scorer.tokenizer, scorer.model.config
    special = [token for token in (tokenizer.pad_token, tokenizer.eos_token) if token]
    responses = [*RESPONSES, *special, *(f"Yes.{token}" for token in special)]
    room = scorer.context
    responses = [text for text in responses if len(scorer.encode_whole(PROMPT, text)) <= room]
    if not responses:
        shortest = len(scorer.encode_whole(PROMPT, RESPONSES[0]))
        raise InvalidValue(
            key, source, f"a model that reads {shortest} tokens, a short question; its context is {room}"
        )
    accepted = "a classifier that gives a text one reward, alone and beside longer texts"
    try:
        alone_rewards = np.array([_score_alone(scorer, text) for text in responses])
        batch_rewards = scorer.score([PROMPT] * len(responses), responses)
    except (ValueError, IndexError) as error:
        raise InvalidValue(key, source, f"{accepted} ({one_line(error)})") from error
    differences = np.abs(alone_rewards - batch_rewards)
    largest = int(np.argmax(differences))  # the first that is not a number, if one is
    precision = ROUNDINGS * torch.finfo(scorer.model.dtype).eps * float(np.abs(alone_rewards).max())
    if differences[largest] <= max(Calibration.resolution, precision):
        return
    reason = (
        f"alone {alone_rewards[largest]:.6g}, beside longer texts {batch_rewards[largest]:.6g}: "
        "the largest of its differences"
    )
    end = scorer.encode(PROMPT, RESPONSES[-1])[-1]
    if config.get_text_config().pad_token_id == end:
        reason += (
            f"; its config pads with {tokenizer.convert_ids_to_tokens(end)!r}, which ends a conversation: the library "
            f"reads it one token early, vLLM at the end. {remedy}"
        )
    raise InvalidValue(key, source, f"{accepted} ({reason})")


@torch.inference_mode()
def _score_alone(scorer: Scorer, response: str) -> float:
    tokens: Any = torch.tensor([scorer.encode(PROMPT, response)], device=scorer.model.device)
    logits = scorer.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return scorer.read(logits)[0]
