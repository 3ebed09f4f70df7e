"""The samples of a campaign in memory, prompt by prompt."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infalign.arrays import Floats
from infalign.errors import InvalidValue, shorten
from workbench.criteria import Criterion, Flags
from workbench.errors import StoreMismatch
from workbench.rows import read_rows
from workbench.store import read_parts


class SampleTable:
    """Samples, ordered by prompt and index.

    Args:
        directory: Folder of the campaign.
        least: Prompts with fewer samples are left out, and counted in ``left_out``. By default half of the most.

    Raises:
        StoreMismatch: It has no samples, or a file is damaged.
    """

    def __init__(self, directory: Path, least: int | None = None) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        parts = list(read_parts(directory))
        if not parts:
            raise StoreMismatch(f"{directory} has no samples yet: run infalign probe with --output {directory}")
        table = pa.concat_tables(parts).sort_by([("prompt_id", "ascending"), ("index", "ascending")])
        ids = table["prompt_id"].combine_chunks().dictionary_encode()
        codes = ids.indices.to_numpy()
        counts = np.bincount(codes)
        least = int(np.ceil(counts.max() / 2)) if least is None else least
        self.left_out = int((counts < least).sum())
        if self.left_out:
            table = table.filter(pc.is_in(ids, pa.array(np.array(ids.dictionary.to_pylist())[counts >= least])))
            counts = counts[counts >= least]
        if not len(counts):
            raise InvalidValue(
                "--least", least, f"at most {int(np.bincount(codes).max())}, the most samples of a prompt"
            )
        self._table = table
        self.counts: NDArray[np.int_] = counts
        self.starts: NDArray[np.int_] = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._table.num_rows)

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return len(self.counts)

    @cached_property
    def prompt_ids(self) -> list[str]:
        """Ids of the prompts."""
        return [str(name) for name in self._table["prompt_id"].take(self.starts).to_pylist()]

    @cached_property
    def prompt_texts(self) -> list[str]:
        """Texts of the prompts."""
        return [str(text) for text in self._table["prompt"].take(self.starts).to_pylist()]

    @cached_property
    def tags(self) -> list[dict[str, str]]:
        """Tags of the samples."""
        texts = self._table["tags"].combine_chunks().dictionary_encode()
        parsed = [json.loads(text) for text in texts.dictionary.to_pylist()]
        return [parsed[code] for code in texts.indices.to_pylist()]

    def numbers(self, column: str) -> Floats:
        """Return a column of numbers, of length S."""
        return np.asarray(self._table[column].to_numpy(), dtype=np.float64)

    def texts(self, column: str) -> list[Any]:
        """Return a column of texts, of length S."""
        return list(self._table[column].to_pylist())

    def values(self, column: str) -> dict[str, int]:
        """Count the values of a column."""
        counted = self._table[column].value_counts().to_pylist()
        return {str(entry["values"]): int(entry["counts"]) for entry in counted}

    def row(self, number: int) -> dict[str, Any]:
        """Return a sample with all its columns."""
        return dict(self._table.slice(number, 1).to_pylist()[0])

    def split(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Split an array of length S by prompt."""
        return list(np.split(values, self.starts[1:]))

    def flag(self, criterion: Criterion, extra: Mapping[str, Sequence[Any]]) -> Flags:
        """Decide which samples are hits.

        Args:
            criterion: What a hit is.
            extra: Columns that the campaign does not have: ``judge`` or ``label``.

        Raises:
            InvalidValue: The criterion reads a column that there is not.
        """
        columns: dict[str, Any] = {}
        for name in criterion.columns:
            if name not in extra and name not in self._table.column_names:
                needed = {"judge": "--judge URL beside it", "label": "--labels FILE or --label TAG=VALUE beside it"}
                raise InvalidValue("--hit", str(criterion), needed[name])
            columns[name] = extra[name] if name in extra else self._column(name)
        return criterion.flag(columns)

    def _column(self, name: str) -> Any:
        return self.texts(name) if name == "text" else self.numbers(name)

    @property
    def sample_ids(self) -> list[str]:
        """Ids of the samples: prompt id, a hyphen, and index."""
        return [f"{name}-{index}" for name, index in zip(self.texts("prompt_id"), self.texts("index"), strict=True)]


def read_labels(path: Path, table: SampleTable) -> list[bool]:
    """Read what humans say of samples.

    Args:
        path: File of :func:`workbench.rows.read_rows` with the columns ``sample`` (prompt id, a hyphen, and index) and
            ``hit`` (true or false, 1 or 0, yes or no).
        table: The samples. Each needs a label.

    Returns:
        A label for each sample.

    Raises:
        InvalidValue: The file cannot be read, or a sample has no label.
    """
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    labels: dict[str, bool] = {}
    for number, row in read_rows(path, "--labels"):
        if not isinstance(row, dict) or not {"sample", "hit"} <= row.keys():
            raise InvalidValue("--labels", str(path), f"the columns sample and hit; row {number} has others")
        word = str(row["hit"]).strip().lower()
        if word not in words:
            wanted = f"true or false, 1 or 0, yes or no as hit; row {number} has {shorten(word, 40)}"
            raise InvalidValue("--labels", str(path), wanted)
        labels[str(row["sample"])] = words[word]
    keys = table.sample_ids
    missing = [key for key in keys if key not in labels]
    if missing:
        wanted = f"a label for each of {len(table)} samples; {len(missing)} have none, such as {missing[0]}"
        raise InvalidValue("--labels", str(path), wanted)
    return [labels[key] for key in keys]


def label_by_tag(assignment: str, table: SampleTable) -> list[bool]:
    """Label as hits the samples with a certain tag.

    Args:
        assignment: ``TAG=VALUE``.
        table: The samples.

    Raises:
        InvalidValue: No sample has the tag, or none has the value.
    """
    name, equals, value = assignment.partition("=")
    known = dict.fromkeys(key for tags in table.tags for key in tags)
    if not equals or name not in known:
        raise InvalidValue("--label", assignment, f"TAG=VALUE; there are the tags {', '.join(known) or '(none)'}")
    values = dict.fromkeys(tags[name] for tags in table.tags if name in tags)
    if value not in values:
        raise InvalidValue("--label", assignment, f"a value that a sample has: {shorten(', '.join(values), 80)}")
    return [tags.get(name) == value for tags in table.tags]
