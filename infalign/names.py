"""Names and addresses that users write."""

import re
from pathlib import Path
from urllib.parse import urlsplit


def slug(text: str, usual: str) -> str:
    """Turn a text into a name of a policy or a reward.

    Args:
        text: Any text.
        usual: The name if nothing of the text is left.

    Returns:
        The text with a hyphen in place of each run of other characters than letters, digits and ``._-``.

    Examples:
        >>> slug("My Model (v2)", "policy"), slug("...", "policy")
        ('My-Model-v2-', 'policy')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-") or usual


def model_name(source: str, usual: str) -> str:
    """Make a name of a model from where it comes from.

    Args:
        source: A directory, a GGUF file, or an id on the hub, with a revision or without.
        usual: The name if nothing of the text is left.

    Examples:
        >>> model_name("org/My Model@v1", "policy"), model_name("models/SmolLM2-135M.Q4_1.gguf", "policy")
        ('My-Model', 'SmolLM2-135M.Q4_1')
    """
    return slug(Path(source).name.removesuffix(".gguf").partition("@")[0], usual)


def is_http_address(text: str) -> bool:
    """Say whether a text is the address of an HTTP server or of a path on one, without a query.

    Examples:
        >>> is_http_address("http://host:8001/v1"), is_http_address("host:8001"), is_http_address("http://host?x=1")
        (True, False, False)
    """
    try:
        url = urlsplit(text)
        return bool(url.scheme in ("http", "https") and url.hostname and url.port != 0 and not url.query + url.fragment)
    except ValueError:
        return False
