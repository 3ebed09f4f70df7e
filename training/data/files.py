"""Reads raw rows from JSON files or from a dataset on the Hugging Face hub."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue, one_line
from training.data.defects import Defect

ACCEPTED = "a file of JSON lines, or of one JSON array of rows, in UTF-8, gzipped if its name ends in .gz"
"""What error messages say is accepted."""
FORMATS = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip data under a name that does not end in .gz",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
"""Formats that are not read, by the bytes that they begin with."""
SEPARATORS = {"\t": "TSV", ",": "CSV", ";": "CSV"}
"""Table formats by their separator."""
TABLE_COLUMNS = {"prompt", "chosen", "rejected", "responses"}
"""Names of columns by which a table is recognised."""


def read_files(paths: Iterable[str]) -> Iterator[Any]:
    """Read the rows of files.

    Args:
        paths: Files with a JSON value per line or with one JSON array.

    Yields:
        JSON values, and a :class:`~training.data.defects.Defect` for each line that cannot be parsed.

    Raises:
        InvalidValue: There is no such file, or its format is not read.
    """
    for path in map(Path, paths):
        yield from _parse_rows(path, _read_text(path))


def read_hub(name: str, subset: str | None, split: str) -> Iterable[Any]:
    """Read the rows of a dataset on the hub, or of a local folder that the library ``datasets`` can load.

    Args:
        name: Id of the dataset.
        subset: Its ``data_dir``.
        split: Its split.

    Raises:
        InvalidValue: It cannot be loaded, or a row cannot be decoded.
    """
    import datasets

    def refuse(error: Exception) -> InvalidValue:
        return InvalidValue("data", name, f"a dataset that can be loaded ({type(error).__name__}: {one_line(error)})")

    def rows(dataset: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from dataset
        except Exception as error:  # a column of images or audio may need another package
            raise refuse(error) from error

    try:
        return rows(datasets.load_dataset(name, data_dir=subset, split=split))
    except Exception as error:  # whatever a dataset, the hub or the network raise
        raise refuse(error) from error


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise InvalidValue("data", str(path), ACCEPTED)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _refuse(path, one_line(error)) from error
    for start, name in FORMATS.items():
        if content.startswith(start):
            raise _refuse(path, f"this is {name}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refuse(path, one_line(error)) from error


def _parse_rows(path: Path, text: str) -> Iterable[Any]:
    """Parse the text of a file, which holds a JSON value per line or one JSON array."""
    rows = list(filter(str.strip, text.split("\n")))
    if not rows:
        return ()
    is_json = not isinstance(_parse_value(rows[0]), Defect)
    if text.lstrip().startswith("[") and (len(rows) == 1 or not is_json):
        return _parse_array(path, text)
    if not is_json and isinstance(_parse_value(text), dict):
        raise _refuse(path, f"this is one JSON object over {len(rows)} lines")
    if not is_json and all(isinstance(_parse_value(row), Defect) for row in rows):
        kind = _table_format(path, rows[0]) or f"text, and none of its {len(rows)} lines can be parsed as JSON"
        raise _refuse(path, f"this is {kind}")
    return map(_parse_value, rows)


def _parse_value(text: str) -> Any:
    """Parse a JSON value, or return the defect of the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return Defect("not JSON")
    except RecursionError:
        return Defect("nested too deeply")
    except ValueError:
        return Defect("an integer with more than 4300 digits")


def _parse_array(path: Path, text: str) -> list[Any]:
    try:
        rows: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"this is a JSON array that cannot be parsed: {one_line(error)}") from error
    return rows


def _table_format(path: Path, header: str) -> str | None:
    """Return CSV or TSV if the name or the header of a file says so."""
    by_name = {".csv": "CSV", ".tsv": "TSV"}
    for suffix in path.suffixes:
        if suffix in by_name:
            return by_name[suffix]
    for separator, name in SEPARATORS.items():
        cells = {cell.strip(' "\r') for cell in header.split(separator)}
        if len(cells) > 1 and cells & TABLE_COLUMNS:
            return name
    return None


def _refuse(path: Path, reason: str) -> InvalidValue:
    return InvalidValue("data", str(path), f"{ACCEPTED} ({reason})")
