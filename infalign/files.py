"""The files of bundles and models: their hashes, and what their configurations say."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from infalign.errors import BundleCorrupt, BundleMismatch

MANIFEST = "bundle.json"
REWARD = "reward.json"
"""File that describes a reward which is not a classifier (:mod:`infalign.rewards`)."""
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
"""What configurations call the number of tokens that a model can read. GPT-2's has the second."""
ModelT = TypeVar("ModelT", bound=BaseModel)


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(root: Path) -> dict[str, str]:
    """Compute the SHA-256 of every file below a directory, except the manifest of a bundle.

    Args:
        root: The directory.

    Returns:
        The hash of each file by its relative POSIX path.
    """
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {name: hash_file(path) for path in files if (name := path.relative_to(root).as_posix()) != MANIFEST}


def digest(files: dict[str, str], part: str = "") -> str:
    """Compute one SHA-256 for all files of a part of a bundle.

    Args:
        files: Hashes by path, from :func:`hash_files`.
        part: Directory of the part; all files if empty.

    Returns:
        64 hexadecimal digits that depend on the names and contents of the files.
    """
    prefix = f"{part}/" if part else ""
    lines = [f"{path.removeprefix(prefix)} {sha}\n" for path, sha in sorted(files.items()) if path.startswith(prefix)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def directory_digest(root: Path) -> str:
    """Compute the :func:`digest` of a directory that is not yet part of a bundle.

    Args:
        root: The directory.

    Returns:
        64 hexadecimal digits.
    """
    return digest(hash_files(root))


def reward_models(directory: Path) -> dict[str, Path]:
    """List the rewards in a directory.

    Args:
        directory: A reward, or a directory of several.

    Returns:
        The directory of each reward by its name, in the order of their calibrations. A single one is ``reward``.
    """
    if any((directory / name).is_file() for name in ("config.json", REWARD)):
        return {"reward": directory}
    return {path.name: path for path in sorted(directory.iterdir()) if path.is_dir()}


def score_values(directory: Path) -> tuple[float, ...]:
    """Read what the outputs of a reward model are worth from its configuration.

    A classifier has one output, which is the reward. A judge has an output for each score that it may give, named by
    the score. Its reward is the mean of the scores, weighted by the softmax of the outputs.

    Args:
        directory: Directory of the reward model.

    Returns:
        The score of each output. It is empty if there is one output.

    Raises:
        BundleCorrupt: The configuration is not a JSON object, or its outputs are not named by scores.
    """
    file = directory / "config.json"
    labels = read_json(file).get("id2label") or {}
    if len(labels) < 2:
        return ()
    try:
        return tuple(float(labels[str(output)]) for output in range(len(labels)))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleCorrupt(f"{file}: several outputs that are not named by scores ({error})") from error


def adapter_rank(directory: Path) -> int:
    """Read the rank of an adapter from its configuration.

    Args:
        directory: Directory of the adapter.

    Returns:
        The rank.

    Raises:
        BundleCorrupt: The configuration is not a JSON object.
    """
    return int(read_json(directory / "adapter_config.json")["r"])


def context_length(directory: Path) -> int:
    """Read the number of tokens that a model can read from its configuration.

    Args:
        directory: Directory of the model.

    Returns:
        The number of tokens, prompt and response together.

    Raises:
        BundleCorrupt: The configuration is not a JSON object, or does not say it.
    """
    config = read_json(directory / "config.json")
    for part in (config, config.get("text_config") or {}):  # the second is that of a model that also takes images
        for key in CONTEXT_KEYS:
            if isinstance(part.get(key), int):
                return int(part[key])
    keys = ", ".join(CONTEXT_KEYS)
    raise BundleCorrupt(
        f"{directory / 'config.json'}: does not say how many tokens the model can read, by one of {keys}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: The file, in UTF-8.

    Returns:
        The object.

    Raises:
        BundleCorrupt: The file does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise BundleCorrupt(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BundleCorrupt(f"{path}: not a JSON object")
    return value


def read_record(model: type[ModelT], path: Path) -> ModelT:
    """Read a record from a JSON file.

    Args:
        model: Class of the record.
        path: The file.

    Returns:
        The record.

    Raises:
        BundleCorrupt: The file does not hold a JSON object.
        BundleMismatch: The object does not fit the class.
    """
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleMismatch(f"{path}: {where}: {first['msg']}") from error
