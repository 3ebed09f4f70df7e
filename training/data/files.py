"""Raw rows: JSON in files, or a dataset of the hub."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue, one_line
from training.data.defects import Defect

ACCEPTED = "a file of JSON lines, or of one JSON array of rows, in UTF-8, gzipped if its name ends in .gz"
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
COLUMNS = {"prompt", "chosen", "rejected", "responses"}


def lines(paths: Iterable[str]) -> Iterator[Any]:
    """The rows of files: JSON values, and a :class:`Defect` for each line that cannot be parsed.

    Raises:
        InvalidValue: there is no such file, or it is in a format that is not read.
    """
    for path in map(Path, paths):
        yield from _rows(path, _text(path))


def hub(name: str, subset: str | None, split: str) -> Iterable[Any]:
    """The rows of a dataset on the hub, or of a local folder that ``datasets`` can load.

    Raises:
        InvalidValue: it cannot be loaded, or one of its rows cannot be decoded.
    """
    import datasets

    def refusal(error: Exception) -> InvalidValue:
        return InvalidValue("data", name, f"a dataset that can be loaded ({type(error).__name__}: {one_line(error)})")

    def rows(dataset: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from dataset
        except Exception as error:  # a column of images or audio may need another package
            raise refusal(error) from error

    try:
        return rows(datasets.load_dataset(name, data_dir=subset, split=split))
    except Exception as error:  # whatever a dataset, the hub or the network raise
        raise refusal(error) from error


def _text(path: Path) -> str:
    if not path.is_file():
        raise InvalidValue("data", str(path), ACCEPTED)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _refusal(path, one_line(error)) from error
    for start, name in FORMATS.items():
        if content.startswith(start):
            raise _refusal(path, f"this is {name}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(path, one_line(error)) from error


def _rows(path: Path, text: str) -> Iterable[Any]:
    """The rows in the text of a file; one JSON array may take the place of lines."""
    rows = list(filter(str.strip, text.split("\n")))
    if not rows:
        return ()
    is_json = not isinstance(_value(rows[0]), Defect)
    if text.lstrip().startswith("[") and (len(rows) == 1 or not is_json):
        return _array(path, text)
    if not is_json and isinstance(_value(text), dict):
        raise _refusal(path, f"this is one JSON object over {len(rows)} lines")
    if not is_json and all(isinstance(_value(row), Defect) for row in rows):
        kind = _table_format(path, rows[0]) or f"text, and none of its {len(rows)} lines can be parsed as JSON"
        raise _refusal(path, f"this is {kind}")
    return map(_value, rows)


def _value(text: str) -> Any:
    """A JSON value, or the defect of a text that is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return Defect("not JSON")
    except RecursionError:
        return Defect("nested too deeply")
    except ValueError:
        return Defect("an integer with more than 4300 digits")


def _array(path: Path, text: str) -> list[Any]:
    try:
        rows: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"this is a JSON array that cannot be parsed: {one_line(error)}") from error
    return rows


def _table_format(path: Path, header: str) -> str | None:
    """CSV or TSV, if the name or the header says so."""
    by_name = {".csv": "CSV", ".tsv": "TSV"}
    for suffix in path.suffixes:
        if suffix in by_name:
            return by_name[suffix]
    for separator, name in SEPARATORS.items():
        cells = {cell.strip(' "\r') for cell in header.split(separator)}
        if len(cells) > 1 and cells & COLUMNS:
            return name
    return None


def _refusal(path: Path, reason: str) -> InvalidValue:
    return InvalidValue("data", str(path), f"{ACCEPTED} ({reason})")
