"""A second judge: the rewards of another server for samples that exist."""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from workbench.connection import Connection
from workbench.prompts import parse_messages
from workbench.report.table import SampleTable
from workbench.retries import persist
from workbench.runner import run_tasks

PER_REQUEST, RETRIES = 32, 5


class Judgments:
    """The scores of a judge, kept in a file, so that a report that is interrupted goes on where it was.

    Args:
        path: The file, JSON lines with ``sample`` and ``score``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.scores: dict[str, float] = {}
        for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
            with suppress(ValueError):  # a last line that was cut
                row = json.loads(line)
                self.scores[row["sample"]] = row["score"]

    async def complete(self, connection: Connection, table: SampleTable, workers: int) -> list[float]:
        """Score the samples that have no score yet.

        Args:
            connection: Connection to the judge's server.
            table: The samples.
            workers: Requests at a time.

        Returns:
            A score for each sample.

        Raises:
            WorkbenchError: The server cannot score a response.
        """
        ids, prompts, texts = table.sample_ids, table.texts("prompt"), table.texts("text")
        tasks = []
        for start, count in zip(table.starts, table.counts, strict=True):
            missing = [i for i in range(start, start + count) if ids[i] not in self.scores]
            for first in range(0, len(missing), PER_REQUEST):
                rows = missing[first : first + PER_REQUEST]
                tasks.append(
                    partial(self._score, connection, prompts[start], [ids[i] for i in rows], [texts[i] for i in rows])
                )
        await run_tasks(tasks, workers)
        return [self.scores[name] for name in ids]

    async def _score(self, connection: Connection, prompt: str, ids: Sequence[str], texts: Sequence[str]) -> None:
        body: dict[str, Any] = {"messages": parse_messages(prompt), "responses": texts}
        answer = await persist(lambda: connection.post("/v1/rewards", body), RETRIES)
        with self._path.open("a", encoding="utf-8") as file:
            for name, reward in zip(ids, answer["rewards"], strict=True):
                self.scores[name] = reward["reward"]
                file.write(json.dumps({"sample": name, "score": reward["reward"]}) + "\n")
