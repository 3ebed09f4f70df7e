"""Names and addresses that users write."""

import re
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
