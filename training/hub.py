"""Says at once when a model can be had neither from the local cache nor from the hub.

The libraries try for half a minute to reach a hub that cannot be reached, once for every file of a model.
"""

import os
import sys
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from huggingface_hub import CacheNotFound, constants, get_session, scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # its documented names, not marked as exported
    build_hf_headers,
    hf_raise_for_status,
    validate_repo_id,
)

from infalign.errors import InvalidValue, one_line

SECONDS = 5.0
"""Longest wait for the hub's first answer."""
NAMED_MODELS = 10
"""Models of the local cache that an error message names."""
FILE = "config.json"
"""File that every model has."""


def check_model(source: str | Path, key: str, kind: str) -> None:
    """Check that a model is a directory, is in the local cache, or is on a hub that answers.

    If the model is in the cache and the hub does not answer, the cache is used for the rest of the process without
    asking the hub.

    Args:
        source: Directory of the model, or its id on the hub.
        key: Name of the setting that error messages blame.
        kind: What is accepted, for the error messages.

    Raises:
        InvalidValue: There is no such model, access to it is not granted, or the hub cannot be reached.
    """
    name = str(source)
    if Path(name).exists():
        return
    try:
        validate_repo_id(name)
    except HFValidationError:  # a path
        raise InvalidValue(key, name, f"{kind}, by directory or hub id; there is no such directory") from None
    cached = isinstance(try_to_load_from_cache(name, FILE), str)
    if _is_offline():
        reason = "" if cached else f"the hub is not asked (HF_HUB_OFFLINE), and {_describe_cache()}"
    else:
        hub = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
        reason = _find_fault(hub, name, cached)
    if reason:
        raise InvalidValue(key, name, f"{kind}, by directory or hub id; there is no such directory, {reason}")


@cache
def _find_fault(hub: str, name: str, cached: bool) -> str:
    """Ask the hub for a model, and say why it cannot be had. The text is empty if it can."""
    answer = _ask(f"{hub}/{name}/resolve/main/{FILE}")
    if answer is None or isinstance(answer, EntryNotFoundError):  # other files may do
        return ""
    if isinstance(answer, GatedRepoError):
        return (
            f"and the model is gated: ask for access at {hub}/{name}, then say who you are (HF_TOKEN or hf auth login)"
        )
    if isinstance(answer, RepositoryNotFoundError):
        return f"and no such model at {hub}, unless it is private (HF_TOKEN or hf auth login)"
    if isinstance(answer, HfHubHTTPError):
        refused = answer.response.status_code in (401, 403)
        return f"and {hub} refuses: {one_line(answer)}" if refused else ""  # others may pass: the library tries again
    if cached:
        print(f"{hub} cannot be reached; models are read from the local cache", file=sys.stderr)
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"
        return ""
    return f"the hub {hub} cannot be reached ({one_line(answer)}), and {_describe_cache()}"


def _ask(url: str) -> Exception | None:
    """Ask for the headers of a file, and return what went wrong. A thread bounds the wait for the name server too."""
    answers: SimpleQueue[Exception | None] = SimpleQueue()

    def ask() -> None:
        try:
            hf_raise_for_status(get_session().head(url, headers=build_hf_headers(), timeout=SECONDS))
        except Exception as error:  # of whatever type: those of the HTTP library are not the hub's
            answers.put(error)
        else:
            answers.put(None)

    Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=SECONDS)
    except Empty:
        return TimeoutError(f"no answer within {SECONDS:.0f} s")


def _is_offline() -> bool:
    """Say whether the hub is not to be asked. The library reads the environment only when it is imported."""
    return constants.is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES


def _describe_cache() -> str:
    """Say which models are in the local cache."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        repositories = frozenset()
    names = sorted(repository.repo_id for repository in repositories if repository.repo_type == "model")
    if not names:
        return f"the local cache holds no model ({constants.HF_HUB_CACHE})"
    more = f" and {len(names) - NAMED_MODELS} more" if len(names) > NAMED_MODELS else ""
    return f"the local cache holds {', '.join(names[:NAMED_MODELS])}{more}"
