"""Stores samples in a folder, so that whatever ends the process, no finished sample is lost or drawn again.

Parquet files cannot be appended to. So samples are first written to a journal, a file of JSON lines. When the journal
is long enough, or the run ends, it becomes a Parquet file, which is written under another name and then renamed.
"""

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, Field, ValidationError

from infalign.errors import DiskFull, one_line, shorten
from workbench.errors import StoreMismatch
from workbench.samples import Sample, make_schema

FORMAT = 1
"""Version of the folder's layout."""
SETTINGS, JOURNAL, FAILURES, PARTS, LOCK = "campaign.json", "journal.jsonl", "failures.jsonl", "samples", ".lock"
PART_ROWS = 5000
"""Samples of a Parquet file."""
EXTENSIBLE = frozenset({"n", "until_width", "hit"})
"""Settings that may change from one run to the next, since they only say how many samples are drawn."""


class Failure(BaseModel):
    """Why samples of a prompt are missing."""

    prompt_id: str
    prompt: str
    indices: list[int] = Field(description="the samples")
    code: str = Field(description="the server's code of the last error")
    message: str = Field(description="what the server said at last")
    attempts: int = Field(description="how often the samples were asked for")
    permanent: bool = Field(description="whether the server will never accept the request")


class Failures:
    """The file with the failures of a campaign.

    Args:
        directory: Folder of the campaign.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FAILURES

    def read(self) -> list[Failure]:
        """Read the failures. A last line that was cut is left out."""
        failures = []
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").split("\n"):
                with suppress(ValidationError):
                    failures.append(Failure.model_validate_json(line))
        return failures

    def add(self, failure: Failure) -> None:
        """Append a failure."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(failure.model_dump_json() + "\n")

    def replace(self, failures: Sequence[Failure]) -> None:
        """Write these failures in place of those that there are."""
        text = "".join(failure.model_dump_json() + "\n" for failure in failures)
        write_atomically(self._path, lambda new: new.write_text(text, encoding="utf-8"))


class Store:
    """The folder of a campaign.

    Args:
        directory: The folder. It is made if it does not exist.
        settings: What the campaign is, as JSON values. A folder that exists must have been made with the same.

    Raises:
        StoreMismatch: The folder was made with other settings or by another version, or a file in it is damaged.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self.directory = directory
        self.notes: list[str] = []
        self._done: defaultdict[str, set[int]] = defaultdict(set)
        (directory / PARTS).mkdir(parents=True, exist_ok=True)
        self._lock = _lock(directory)
        self._write_settings(settings)
        for table in read_parts(directory, ["prompt_id", "index"]):
            for row in table.to_pylist():
                self._done[row["prompt_id"]].add(row["index"])
        self._pending = self._recover_journal()
        # Failures that are not for good are forgotten, since their samples are asked for again.
        self._failure_file = Failures(directory)
        self.failures = [failure for failure in self._failure_file.read() if failure.permanent]
        self._failure_file.replace(self.failures)
        self._journal = (directory / JOURNAL).open("ab", buffering=0)

    def done(self, prompt_id: str) -> set[int]:
        """Return the indices of the samples of a prompt that are stored."""
        return self._done[prompt_id]

    def read_columns(self, columns: list[str]) -> dict[str, list[Any]]:
        """Read columns of all stored samples."""
        rows = [sample.model_dump(include=set(columns)) for sample in self._pending]
        values: dict[str, list[Any]] = {name: [] for name in columns}
        for table in read_parts(self.directory, columns):
            for name in columns:
                values[name] += table[name].to_pylist()
        return {name: values[name] + [row[name] for row in rows] for name in columns}

    def __len__(self) -> int:
        """Return the number of stored samples."""
        return sum(map(len, self._done.values()))

    @property
    def settled(self) -> int:
        """Number of samples that are stored, or that the server will never make."""
        return len(self) + sum(len(failure.indices) for failure in self.failures)

    def add(self, samples: Iterable[Sample]) -> None:
        """Store samples. They are on the disk when this returns.

        Raises:
            DiskFull: There is no room. Samples that were stored before are kept.
        """
        new = [sample for sample in samples if sample.index not in self._done[sample.prompt_id]]
        size = self._journal.seek(0, os.SEEK_END)
        with explain_full_disk(self.directory):
            try:
                for sample in new:
                    _write_all(self._journal, sample.model_dump_json().encode() + b"\n")
                os.fsync(self._journal.fileno())
            except OSError:
                self._journal.truncate(size)
                raise
        self._pending += new
        for sample in new:
            self._done[sample.prompt_id].add(sample.index)
        if len(self._pending) >= PART_ROWS:
            self.write_part()

    def add_failure(self, failure: Failure) -> None:
        """Store that samples could not be had."""
        with explain_full_disk(self.directory):
            self._failure_file.add(failure)
        self.failures.append(failure)

    def write_part(self) -> None:
        """Turn the journal into a Parquet file."""
        if not self._pending:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        numbers = [int(path.stem.removeprefix("part-")) for path in (self.directory / PARTS).glob("part-*.parquet")]
        path = self.directory / PARTS / f"part-{max(numbers, default=-1) + 1:05d}.parquet"
        table = pa.Table.from_pylist([sample.model_dump() for sample in self._pending], make_schema())
        with explain_full_disk(self.directory):
            write_atomically(path, lambda new: pq.write_table(table, new, compression="zstd"))
            self._journal.truncate(0)
        self._pending = []

    def close(self) -> None:
        """Write what is in the journal as Parquet."""
        try:
            self.write_part()
        finally:
            self._journal.close()
            self._lock.close()

    def _write_settings(self, settings: dict[str, Any]) -> None:
        path = self.directory / SETTINGS
        settings = {"format": FORMAT, **settings}
        if path.is_file():
            check_settings(path, settings)
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        write_atomically(path, lambda new: new.write_text(text, encoding="utf-8"))

    def _recover_journal(self) -> list[Sample]:
        """Read the journal of a run that was killed. Its last line may be cut; that sample is drawn again."""
        path, samples = self.directory / JOURNAL, []
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        kept = b""
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                sample = Sample.model_validate_json(line)
            except ValidationError as error:
                if number < len(lines):
                    raise StoreMismatch(f"{path}: line {number} is not a sample ({one_line(error)})") from error
                self.notes.append(f"{path.name}: the last line was cut; its sample is drawn again")
                continue
            kept += line + b"\n"
            if sample.index not in self._done[sample.prompt_id]:  # the part was written, the journal not yet emptied
                samples.append(sample)
                self._done[sample.prompt_id].add(sample.index)
        if lines:
            write_atomically(path, lambda new: new.write_bytes(kept))
        return samples


def read_settings(directory: Path) -> dict[str, Any]:
    """Read what a campaign is.

    Args:
        directory: Folder of the campaign.

    Raises:
        StoreMismatch: It is no campaign, or one of another version.
    """
    path = directory / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreMismatch(f"{directory} is not the folder of a campaign ({one_line(error)})") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        found = settings.get("format") if isinstance(settings, dict) else None
        raise StoreMismatch(f"{path}: format {found}, accepted: {FORMAT}; another version of infalign made this folder")
    return settings


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Check that a campaign may go on with these settings.

    Args:
        path: The file of its settings.
        settings: The settings of this run.

    Raises:
        StoreMismatch: A setting differs that decides what a sample is.
    """
    stored = read_settings(path.parent)
    for name in dict.fromkeys((*stored, *settings)):
        if name not in EXTENSIBLE and stored.get(name) != settings.get(name):
            raise StoreMismatch(
                f"{path.parent}: this campaign has {name} {shorten(stored.get(name), 80)}, and now it is "
                f"{shorten(settings.get(name), 80)}; give the same as before, or another --output"
            )


def count_pending(directory: Path) -> int:
    """Count the samples that are in the journal and in no Parquet file yet."""
    path = directory / JOURNAL
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def read_parts(directory: Path, columns: list[str] | None = None) -> Iterator[Any]:
    """Read the Parquet files of a campaign, each as a :class:`pyarrow.Table`.

    Args:
        directory: Folder of the campaign.
        columns: Columns to read; all by default.

    Raises:
        StoreMismatch: A file is damaged or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted((directory / PARTS).glob("part-*.parquet")):
        try:
            with pq.ParquetFile(path) as file:
                lacking = [name for name in Sample.model_fields if name not in file.schema_arrow.names]
                table = file.read(columns)
        except (pa.ArrowInvalid, OSError) as error:
            message = f"{path} is damaged ({one_line(error)}); if you delete it, its samples are drawn again"
            raise StoreMismatch(message) from error
        if lacking:
            raise StoreMismatch(f"{path} has no column {', '.join(lacking)}; another version of infalign made it")
        yield table


def write_atomically(path: Path, write: Any) -> None:
    """Write a file under another name and rename it, so that nobody ever sees a part of it.

    Args:
        path: The file.
        write: Function that writes to the path that it gets.

    Raises:
        DiskFull: It cannot be written. What was at ``path`` is still there.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        with explain_full_disk(path.parent):
            write(new)
            with new.open("rb+") as file:
                os.fsync(file.fileno())
            new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _lock(directory: Path) -> IO[bytes]:
    """Keep other processes from a folder, until this one ends or closes the file."""
    file = (directory / LOCK).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StoreMismatch(f"{directory}: another infalign probe is writing here") from error
    return file


def _write_all(file: FileIO, content: bytes) -> None:
    """Write all bytes. One call of ``write`` may write fewer."""
    while content:
        content = content[file.write(content) or 0 :]


@contextmanager
def explain_full_disk(directory: Path) -> Iterator[None]:
    """Turn errors of writing into one line.

    Args:
        directory: Where something is written.

    Raises:
        DiskFull: Something cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DiskFull(f"{directory}: {one_line(error)}; what was stored before is kept") from error
