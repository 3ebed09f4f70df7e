"""Reads the rows of a file: JSON lines, JSON, CSV, TSV, Parquet, or plain lines of text; text may be gzipped."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue, one_line, shorten

ACCEPTED = "an existing file that ends in .jsonl, .json, .csv, .tsv, .txt (each also with .gz) or .parquet"
"""What error messages say is accepted."""
TABLES = {".csv": ",", ".tsv": "\t"}
"""Separators of tables, by suffix."""


def read_rows(path: Path, option: str) -> Iterator[tuple[int, Any]]:
    """Read the rows of a file.

    Args:
        path: The file. Its suffix says what it contains.
        option: Option or argument that named the file, for messages.

    Yields:
        The number of each row, from 1, and the row: a mapping from column to value, any other JSON value, or a text.
        Rows that are empty are counted and left out.

    Raises:
        InvalidValue: There is no such file, its format is not read, or a row cannot be parsed.
    """
    if not path.is_file():
        raise InvalidValue(option, str(path), ACCEPTED)
    suffix = next((part for part in reversed(path.suffixes) if part != ".gz"), "").lower()
    if suffix == ".parquet":
        yield from _read_parquet(path, option)
        return
    text = _read_text(path, option)
    if suffix in TABLES:
        yield from _read_table(path, option, text, TABLES[suffix])
    elif suffix == ".json":
        yield from enumerate(_parse(path, option, 1, text, list), 1)
    elif suffix in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _parse(path, option, number, line)
    elif suffix in (".txt", ""):
        yield from ((n, line.rstrip("\r")) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    else:
        raise InvalidValue(option, str(path), ACCEPTED)


def _read_text(path: Path, option: str) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidValue(option, str(path), f"text in UTF-8 ({one_line(error)})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidValue(option, str(path), f"a file that can be read ({one_line(error)})") from error


def _read_table(path: Path, option: str, text: str, separator: str) -> Iterator[tuple[int, Any]]:
    while text.startswith("# "):  # a comment, as PyRIT's tables begin with
        text = text.partition("\n")[2]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for number, row in enumerate(rows, 1):
            if None in row or None in row.values():
                names = len(rows.fieldnames or ())
                raise InvalidValue(
                    option, str(path), f"{names} values in each row, one per column; row {number} differs"
                )
            yield number, row
    except csv.Error as error:
        raise InvalidValue(option, str(path), f"a table ({one_line(error)})") from error


def _read_parquet(path: Path, option: str) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidValue(option, str(path), f"a Parquet file ({one_line(error)})") from error


def _parse(path: Path, option: str, number: int, text: str, kind: type = object) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"JSON in line {number}" if kind is object else "JSON"
        raise InvalidValue(option, str(path), f"{where} ({one_line(error)}; got {shorten(text, 60)})") from error
    if not isinstance(value, kind):
        raise InvalidValue(option, str(path), "a JSON array of rows")
    return value
