"""Batches: one answer to each row of a file, in the order of the file."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue
from infalign.procedures import BestOfN, FixedN, WorstOfN
from workbench.connection import Connection
from workbench.errors import RequestFailed, RequestRefused, StoreMismatch
from workbench.prompts import Prompt
from workbench.retries import persist
from workbench.rows import read_rows
from workbench.store import explain_full_disk, write_atomically

BATCH_KEYS = {"custom_id", "url", "body"}
"""Keys by which a row of OpenAI's batch format is recognised."""
BATCH_URLS = ("/v1/chat/completions", "/v1/completions", "/v1/best-of-n", "/v1/worst-of-n")
"""Endpoints that a batch may call."""
COLUMNS = ("text", "reward", "quantile", "quantile_low", "quantile_high", "finish_reason", "completion_tokens", "seed")
"""What is kept of the selected candidate."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A request, and how its row of the output is written."""

    url: str
    body: Mapping[str, Any]
    write: Callable[[Mapping[str, Any] | None, Exception | None], Row]
    """Makes a row of the answer, or of the error."""


def make_items(
    prompts: Sequence[Prompt], procedure: FixedN, fields: Mapping[str, Any], keeps_candidates: bool
) -> list[Item]:
    """Make a request for each prompt.

    Args:
        prompts: The prompts.
        procedure: How each is decoded.
        fields: Fields of each request.
        keeps_candidates: Write all candidates, and not the selected one alone.
    """
    url = "/v1/worst-of-n" if isinstance(procedure, WorstOfN) else "/v1/best-of-n"
    n = procedure.n if isinstance(procedure, BestOfN | WorstOfN) else 1
    return [
        Item(
            url,
            {**fields, "messages": prompt.messages, "n": n, "return_candidates": keeps_candidates},
            _make_writer(prompt, str(procedure)),
        )
        for prompt in prompts
    ]


def _make_writer(prompt: Prompt, procedure: str) -> Callable[[Mapping[str, Any] | None, Exception | None], Row]:
    def write(answer: Mapping[str, Any] | None, error: Exception | None) -> Row:
        row: Row = {"prompt": prompt.text, "procedure": procedure, "tags": dict(prompt.tags)}
        if answer is None:
            return {**row, **dict.fromkeys(COLUMNS), "scope": None, "tokens": None, "model": None, "error": str(error)}
        selected = answer["selected"][0]
        row |= {name: selected[name] for name in COLUMNS}
        row |= {"scope": answer["calibration"]["scope"], "tokens": answer["usage"]["completion_tokens"]}
        row |= {"model": answer["model"], "error": None}
        return row | ({"candidates": answer["candidates"]} if "candidates" in answer else {})

    return write


def is_batch_file(path: Path) -> bool:
    """Return whether a file is in OpenAI's batch format: rows with ``custom_id``, ``url`` and ``body``."""
    first = next(iter(read_rows(path, "PROMPTS")), (0, None))[1]
    return isinstance(first, dict) and first.keys() >= BATCH_KEYS


def read_batch(path: Path) -> list[Item]:
    """Read a file in OpenAI's batch format.

    Args:
        path: The file.

    Raises:
        InvalidValue: A row is not in that format, or two have the same ``custom_id``.
    """
    items, ids = [], set[str]()
    for number, row in read_rows(path, "PROMPTS"):
        if not isinstance(row, dict) or not row.keys() >= BATCH_KEYS or not isinstance(row["body"], dict):
            wanted = f"custom_id, url and body in each row, as in the first; row {number} differs"
            raise InvalidValue("PROMPTS", str(path), wanted)
        if row["url"] not in BATCH_URLS:
            raise InvalidValue("url", row["url"], f"in row {number} one of {', '.join(BATCH_URLS)}")
        if row["body"].get("stream"):
            raise InvalidValue("body.stream", True, f"false in row {number}: a batch has no streams")
        if row["custom_id"] in ids:
            raise InvalidValue("custom_id", row["custom_id"], f"each once; row {number} repeats it")
        ids.add(row["custom_id"])
        items.append(Item(row["url"], row["body"], _make_batch_writer(row["custom_id"])))
    return items


def _make_batch_writer(custom_id: str) -> Callable[[Mapping[str, Any] | None, Exception | None], Row]:
    def write(answer: Mapping[str, Any] | None, error: Exception | None) -> Row:
        row: Row = {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": None, "error": None}
        if answer is None:
            return {**row, "error": {"code": getattr(error, "code", "failed"), "message": str(error)}}
        return {**row, "response": {"status_code": 200, "request_id": answer.get("id"), "body": answer}}

    return write


class Batch:
    """The rows of the output that there are already, kept in a file beside it until all are there.

    Args:
        output: The output.
        items: What is asked.
        served: Hash of what the server serves.

    Raises:
        StoreMismatch: An earlier run that was interrupted asked something else, or another model.
    """

    def __init__(self, output: Path, items: Sequence[Item], served: str) -> None:
        self.output, self._path = output, output.with_name(f"{output.name}.partial")
        self.rows: dict[int, Row] = {}
        asked = json.dumps([[item.url, item.body] for item in items], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        head = json.dumps({"requests": len(items), "digest": digest, "served": served})
        lines = self._path.read_text(encoding="utf-8").split("\n") if self._path.is_file() else []
        if lines and lines[0] != head:
            raise StoreMismatch(
                f"{self._path} is of a run with other settings, or of another model: finish that one, or delete the "
                "file"
            )
        for line in lines[1:]:
            try:
                number, row = json.loads(line)
            except ValueError:  # a line that was cut; its row is asked for again
                continue
            self.rows[number] = row
        kept = [head, *(json.dumps([number, row]) for number, row in self.rows.items())]
        write_atomically(self._path, lambda new: new.write_text("\n".join(kept) + "\n", encoding="utf-8"))

    async def ask(self, connection: Connection, number: int, item: Item, retries: int) -> None:
        """Get a row of the output, with an answer or with why there is none.

        Args:
            connection: Connection to the server.
            number: Number of the row.
            item: What is asked.
            retries: How often a request that failed is sent again.

        Raises:
            WorkbenchError: The batch cannot go on.
            DiskFull: The row cannot be stored.
        """
        try:
            row = item.write(await persist(lambda: connection.post(item.url, dict(item.body)), retries), None)
        except (RequestFailed, RequestRefused) as error:
            row = item.write(None, error)
        with explain_full_disk(self.output.parent), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([number, row]) + "\n")
        self.rows[number] = row

    def finish(self) -> int:
        """Write the output, in the order of the input.

        Returns:
            The number of rows without an answer.
        """
        rows = [self.rows[number] for number in sorted(self.rows)]
        write_atomically(self.output, lambda new: _write_rows(new, rows, self.output.suffix))
        self._path.unlink()
        return sum(row["error"] is not None for row in rows)


def _flatten(name: str, value: Any) -> Any:
    """Write a value that a table has no type for as JSON."""
    return json.dumps(value) if name in ("tags", "candidates") and value is not None else value


def _write_rows(path: Path, rows: Sequence[Row], suffix: str) -> None:
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = dict.fromkeys(name for row in rows for name in row)  # a row with an error has no candidates
        columns = {name: [_flatten(name, row.get(name)) for row in rows] for name in names}
        pq.write_table(pa.table(columns), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
