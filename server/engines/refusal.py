"""Translates vLLM's refusal of a request into our error."""

import re

from server.engines.base import Refused, Sampling

FIELDS = {
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_p",
}
"""Request fields that have the same name in vLLM."""
LIMIT = 300
"""Characters of vLLM's message that the error repeats."""
SUFFIX = re.compile(r" \(parameter=\w+.*\)$")
"""What vLLM appends to a message. It contains a value, which may be long."""


def refusal(message: str, parameter: str | None, sampling: Sampling) -> Refused:
    """Create the error for a request that vLLM does not accept.

    vLLM names the parameter if a number is at fault, but not if a structure is.

    Args:
        message: vLLM's message.
        parameter: The parameter that vLLM names, if any.
        sampling: The sampling that was refused.
    """
    text = SUFFIX.sub("", " ".join(message.split()))[:LIMIT]
    name = parameter or text.partition(" ")[0]
    if name in FIELDS:
        field = name
    elif parameter is None and sampling.structure is not None:
        field = "response_format"
    else:
        return Refused(text)
    return Refused(text if text.startswith(field) else f"{field}: {text}", field)
