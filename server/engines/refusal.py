"""What vLLM says where it does not accept a request, as our error."""

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
"""Request fields that vLLM knows by the same names."""
LIMIT = 300
SUFFIX = re.compile(r" \(parameter=\w+.*\)$")
"""What vLLM appends to a message, with a value that may be long."""


def refusal(message: str, parameter: str | None, sampling: Sampling) -> Refused:
    """The error for vLLM's ``message`` about ``parameter``.

    vLLM names the parameter where a number is at fault, but not where a structure is.
    """
    text = SUFFIX.sub("", " ".join(message.split()))[:LIMIT]
    named = parameter or text.partition(" ")[0]
    if named in FIELDS:
        field = named
    elif parameter is None and sampling.structure is not None:
        field = "response_format"
    else:
        return Refused(text)
    return Refused(text if text.startswith(field) else f"{field}: {text}", field)
