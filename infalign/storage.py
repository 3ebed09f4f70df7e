"""The files of a calibration: ``references.safetensors`` and ``calibration.json``."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from infalign.combination import Combination
from infalign.errors import BundleMismatch
from infalign.files import read_record
from infalign.manifest import CalibrationRecord
from infalign.table import CalibrationTable


def save_calibration(directory: Path, combination: Combination, record: CalibrationRecord) -> None:
    """Write calibration tables, and the record of how they were made.

    The rewards of a single model are sorted. With several models, column k stays the same response for each.

    Args:
        directory: Directory to write into; made if it does not exist.
        combination: The tables.
        record: How they were made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    first = combination.tables[0]
    keys = np.frombuffer(bytes.fromhex("".join(first.keys)), dtype=np.uint8).reshape(len(first), 16)
    tensors: dict[str, NDArray[Any]] = {"keys": keys.copy()}
    if record.reward_models:
        for name, table in zip(sorted(record.reward_models), combination.tables, strict=True):
            tensors[f"rewards/{name}"] = table.rewards.astype(np.float32)
    else:
        tensors["rewards"] = np.sort(first.rewards, axis=1).astype(np.float32)
    save_file(tensors, directory / "references.safetensors")
    text = record.model_dump_json(indent=2, exclude_none=True)
    (directory / "calibration.json").write_text(text + "\n", encoding="utf-8")


def load_calibration(directory: Path) -> tuple[Combination, CalibrationRecord]:
    """Read the files that :func:`save_calibration` wrote.

    Args:
        directory: Directory of the calibration.

    Returns:
        The tables and the record of how they were made.

    Raises:
        BundleCorrupt: The record is not a JSON object.
        BundleMismatch: The record lacks something, or the tables do not fit it.
    """
    record = read_record(CalibrationRecord, directory / "calibration.json")
    tensors = load_file(directory / "references.safetensors")
    names = sorted(record.reward_models or ())
    fields = [f"rewards/{name}" for name in names] or ["rewards"]
    shapes = {name: rewards.shape for name, rewards in tensors.items() if name != "keys"}
    if shapes != dict.fromkeys(fields, (record.prompts, record.samples)):
        raise BundleMismatch(
            f"{directory}: references.safetensors holds {shapes or 'no rewards'}, "
            f"calibration.json says {(record.prompts, record.samples)} for {', '.join(fields)}"
        )
    keys = tuple(row.tobytes().hex() for row in tensors["keys"])
    tables = [
        CalibrationTable(keys, tensors[name].astype(np.float64), record.estimator, record.resolution) for name in fields
    ]
    weights = tuple(record.reward_models[name].weight for name in names) if record.reward_models else (1.0,)
    return Combination(tuple(tables), weights), record
