"""Raw rows: JSON lines in files, or a dataset of the hub."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue, one_line


def lines(paths: Iterable[str]) -> Iterator[Any]:
    """The JSON values of files, gzipped or not; a line that is no JSON comes as None.

    Raises:
        InvalidValue: there is no such file, or it is no text.
    """
    for path in map(Path, paths):
        if not path.is_file():
            raise InvalidValue("data", str(path), "a file of JSON lines, .jsonl or .jsonl.gz")
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = content.decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise InvalidValue("data", str(path), f"UTF-8 text, gzipped if it ends in .gz ({error})") from error
        for line in filter(str.strip, text.split("\n")):
            try:
                yield json.loads(line)
            except ValueError:
                yield None


def hub(name: str, subset: str | None, split: str) -> Iterable[Any]:
    """The rows of a dataset on the hub, or of a local folder that ``datasets`` can load.

    Raises:
        InvalidValue: it cannot be loaded.
    """
    import datasets

    try:
        return datasets.load_dataset(name, data_dir=subset, split=split)  # type: ignore[no-any-return]
    except Exception as error:  # whatever a dataset, the hub or the network raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InvalidValue("data", name, f"a dataset that can be loaded ({reason})") from error
