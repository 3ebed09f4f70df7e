"""Says at once when a model can be had neither from the local cache nor from the hub, and which revision it has.

The libraries try for half a minute to reach a hub that cannot be reached, once for every file of a model. At every load
they look up what a branch such as ``main`` stands for, so two loads of one run could read two revisions.
"""

import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.parse import quote

from huggingface_hub import CacheNotFound, constants, get_session, scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
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
MAIN = "main"
"""Revision that is used if none is named."""
COMMIT = re.compile("[0-9a-f]{40}")
"""Pattern of the hash of a commit, the only name of a revision that always stands for the same one."""


@dataclass(frozen=True)
class _Answer:
    """What the hub says of a model."""

    error: Exception | None
    """What went wrong."""
    commit: str | None = None
    """Hash of the commit that the revision stands for."""


def split_source(source: str | Path) -> tuple[str, str | None]:
    """Split what names a model into its directory or its id on the hub, and the revision.

    Args:
        source: Directory of the model, or its id on the hub, with ``@`` and a branch, tag or commit or without.

    Returns:
        The directory or the id; and the revision, which is None for a directory.

    Examples:
        >>> split_source("org/model@v1"), split_source("org/model")
        (('org/model', 'v1'), ('org/model', 'main'))
    """
    name = str(source)
    if Path(name).exists():
        return name, None
    name, _, revision = name.partition("@")
    return name, revision or MAIN


def pin_model(source: str, key: str, kind: str) -> str:
    """Look up which commit the revision of a model stands for.

    The hub says so, or else the local cache.

    Args:
        source: Directory of the model, or its id on the hub, with a revision or without.
        key: Name of the setting that error messages blame.
        kind: What is accepted, for the error messages.

    Returns:
        The id, ``@`` and the hash of the commit. A directory is returned as it is.

    Raises:
        InvalidValue: There is no such model, or nothing says what the revision stands for.
    """
    name, revision = split_source(source)
    check_model(source, key, kind)
    if revision is None or COMMIT.fullmatch(revision):
        return source
    commit = None if _is_offline() else _ask_once(_hub(), name, revision).commit
    file = try_to_load_from_cache(name, FILE, revision=revision)
    commit = commit or (Path(file).parent.name if isinstance(file, str) else None)
    if commit is None:
        raise InvalidValue(key, source, f"{kind} whose revision the hub names, which {_hub()} does not just now")
    return f"{name}@{commit}"


def check_model(source: str | Path, key: str, kind: str) -> None:
    """Check that a model is a directory, is in the local cache, or is on a hub that answers.

    If the model is in the cache and the hub does not answer, the cache is used for the rest of the process without
    asking the hub.

    Args:
        source: Directory of the model, or its id on the hub, with a revision or without.
        key: Name of the setting that error messages blame.
        kind: What is accepted, for the error messages.

    Raises:
        InvalidValue: There is no such model or revision, access to it is not granted, or the hub cannot be reached.
    """
    name, revision = split_source(source)
    if revision is None:
        return
    try:
        validate_repo_id(name)
    except HFValidationError:  # a path
        raise InvalidValue(key, str(source), f"{kind}, by directory or hub id; there is no such directory") from None
    cached = isinstance(try_to_load_from_cache(name, FILE, revision=revision), str)
    if _is_offline():
        reason = "" if cached else f"the hub is not asked (HF_HUB_OFFLINE), and {_describe_cache()}"
    else:
        reason = _find_fault(_hub(), name, revision, cached)
    if reason:
        raise InvalidValue(key, str(source), f"{kind}, by directory or hub id; there is no such directory, {reason}")


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def _find_fault(hub: str, name: str, revision: str, cached: bool) -> str:
    """Ask the hub for a model, and say why it cannot be had. The text is empty if it can."""
    answer = _ask_once(hub, name, revision).error
    if answer is None or isinstance(answer, EntryNotFoundError):  # other files may do
        return ""
    if isinstance(answer, RevisionNotFoundError):
        return f"and the model has no revision {revision} at {hub}"
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


@cache
def _ask_once(hub: str, name: str, revision: str) -> _Answer:
    """Ask the hub for a model, once in a process. A thread bounds the wait for the name server too."""
    url = f"{hub}/{name}/resolve/{quote(revision, safe='')}/{FILE}"
    answers: SimpleQueue[_Answer] = SimpleQueue()

    def ask() -> None:
        commit = None
        try:
            response = get_session().head(url, headers=build_hf_headers(), timeout=SECONDS)
            header = constants.HUGGINGFACE_HEADER_X_REPO_COMMIT  # of the first answer, which may be a redirection
            commit = next(
                (each.headers[header] for each in (*response.history, response) if header in each.headers), None
            )
            hf_raise_for_status(response)
        except Exception as error:  # of whatever type: those of the HTTP library are not the hub's
            answers.put(_Answer(error, commit))
        else:
            answers.put(_Answer(None, commit))

    Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=SECONDS)
    except Empty:
        return _Answer(TimeoutError(f"no answer within {SECONDS:.0f} s"))


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
