"""Keeps calibrations that were drawn on demand in an SQLite file, with a cache in memory."""

import asyncio
import logging
import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from infalign.errors import one_line
from server.access.files import open_private
from server.observability.metrics import Metrics

log = logging.getLogger("infalign.server")
T = TypeVar("T")
Rewards = NDArray[np.float32]
"""Raw rewards of K reference responses to one prompt by each of M models, of shape (M, K)."""

MEMORY_BYTES = 16 << 20
"""Size of the cache in memory."""
UNSAVED_USES = 256
"""How many uses are collected before they are written to the file. Any other write saves them too."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS calibrations (
    context TEXT NOT NULL, prompt TEXT NOT NULL, rewards BLOB NOT NULL, used REAL NOT NULL,
    PRIMARY KEY (context, prompt)
);
CREATE INDEX IF NOT EXISTS calibrations_by_use ON calibrations (used);
"""


class Store:
    """Stores reference rewards by prompt key.

    Several processes may share the file, also with other digests. Errors of the file are logged once and counted, but
    never raised: the store then works in memory alone.

    Args:
        path: The file. It and its directory are created when they are first needed, readable by their owner only.
        limit: The largest size of the file, in bytes. The rewards that were not used for the longest time are dropped.
        digest: Hash of everything that a calibration depends on, except its prompt.
        shape: (M, K), the number of reward models and of reference responses.
        metrics: Reports the file's size and counts its errors.
    """

    def __init__(self, path: Path, limit: int, digest: str, shape: tuple[int, int], metrics: Metrics) -> None:
        self._path, self._limit, self._digest, self._shape, self._metrics = path, limit, digest, shape, metrics
        self._memory: OrderedDict[str, Rewards] = OrderedDict()
        self._memory_limit = max(1, MEMORY_BYTES // (4 * shape[0] * shape[1]))
        self._uses: dict[str, float] = {}
        self._log_keys: set[str] = set()
        self._connection: sqlite3.Connection | None = None  # used in the thread only
        self._thread = ThreadPoolExecutor(1, "calibrations")

    async def get(self, key: str) -> Rewards | None:
        """Return the rewards of a prompt, if they are stored."""
        rewards = self._memory.get(key)
        if rewards is None:
            rewards = await self._run("read", partial(self._read, key))
            if rewards is None:
                return None
        self._remember(key, rewards)
        self._uses[key] = time.time()
        if len(self._uses) >= UNSAVED_USES:
            await self._run("write", partial(self._save_uses, self._pop_uses()))
        return rewards

    async def put(self, key: str, rewards: Rewards) -> None:
        """Store the rewards of a prompt. If the file fails, they are kept in memory."""
        self._remember(key, rewards)
        await self._run("write", partial(self._write, key, rewards, self._pop_uses()))

    async def close(self) -> None:
        """Close the file."""
        if self._uses:
            await self._run("write", partial(self._save_uses, self._pop_uses()))
        await self._run("close", self._disconnect)
        self._thread.shutdown()

    def _remember(self, key: str, rewards: Rewards) -> None:
        self._memory[key] = rewards
        self._memory.move_to_end(key)
        if len(self._memory) > self._memory_limit:
            self._memory.popitem(last=False)

    def _pop_uses(self) -> dict[str, float]:
        uses, self._uses = self._uses, {}
        return uses

    async def _run(self, what: str, work: Callable[[], T]) -> T | None:
        """Run ``work`` in the store's thread. Returns None if it fails."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run_guarded, what, work)

    def _run_guarded(self, what: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            self._metrics.store_errors.inc()
            if what not in self._log_keys:
                self._log_keys.add(what)
                log.error("cannot %s calibrations in %s (%s); going on in memory", what, self._path, one_line(error))
            self._disconnect()  # the file may have been replaced by the next time
            return None

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._create()
            connection = sqlite3.connect(self._path, timeout=1)
            try:
                if not self._pages(connection, "page_count"):
                    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect only before the first table
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(SCHEMA)
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
            self._measure(connection)
        return self._connection

    def _create(self) -> None:
        """Create the file if there is none. SQLite creates its files beside it (-wal, -shm) with the same mode."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if "mode" not in self._log_keys or not self._path.exists():
            self._log_keys.add("mode")  # open_private warns about a file that others may read; once is enough
            os.close(open_private(self._path, os.O_RDONLY | os.O_CREAT))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self, key: str) -> Rewards | None:
        if self._connection is None and not self._path.exists():
            return None
        query = "SELECT rewards FROM calibrations WHERE context = ? AND prompt = ?"
        row = self._connect().execute(query, (self._digest, key)).fetchone()
        if row is None:
            return None
        models, samples = self._shape
        if isinstance(row[0], bytes) and len(row[0]) == 4 * models * samples:
            rewards = np.frombuffer(row[0], dtype="<f4").reshape(self._shape)
            if np.all(np.isfinite(rewards)):
                return rewards
        raise sqlite3.DatabaseError(f"what is kept of prompt {key} is not {models} x {samples} rewards")

    def _write(self, key: str, rewards: Rewards, uses: dict[str, float]) -> None:
        connection = self._connect()
        row = self._digest, key, rewards.astype("<f4").tobytes(), time.time()
        with connection:
            connection.execute("INSERT OR REPLACE INTO calibrations VALUES (?, ?, ?, ?)", row)
        self._save_uses(uses)
        self._shrink(connection)
        self._measure(connection)

    def _save_uses(self, uses: dict[str, float]) -> None:
        rows = [(last_use, self._digest, key) for key, last_use in uses.items()]
        with self._connect() as connection:
            connection.executemany("UPDATE calibrations SET used = ? WHERE context = ? AND prompt = ?", rows)

    def _shrink(self, connection: sqlite3.Connection) -> None:
        """Drop the rewards that were not used for the longest time, a sixteenth at a time, until the rest fits."""
        drop = """DELETE FROM calibrations WHERE rowid IN (SELECT rowid FROM calibrations ORDER BY used
            LIMIT (SELECT (count(*) + 15) / 16 FROM calibrations))"""
        row_count = 0
        while self._pages(connection, "page_count") - self._pages(connection, "freelist_count") > self._limit:
            with connection:
                row_count = connection.execute(drop).rowcount
            if not row_count:
                break
        if row_count:
            with closing(connection.execute("PRAGMA incremental_vacuum")) as steps:
                steps.fetchall()

    def _measure(self, connection: sqlite3.Connection) -> None:
        self._metrics.store_bytes.set(self._pages(connection, "page_count"))

    def _pages(self, connection: sqlite3.Connection, count: str) -> int:
        """The size in bytes of the pages that the pragma ``count`` counts."""
        pages, size = (connection.execute(f"PRAGMA {what}").fetchone()[0] for what in (count, "page_size"))
        return int(pages * size)
