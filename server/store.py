"""Calibrations that were drawn on demand, kept across restarts: an SQLite file with a bounded memory in front of it."""

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
from server.metrics import Metrics

log = logging.getLogger("infalign.server")
T = TypeVar("T")
Rewards = NDArray[np.float32]
"""(M, K): raw rewards of the K reference responses to one prompt by each of M models."""

IN_MEMORY = 16 << 20
"""Bytes of rewards that are kept in memory."""
UNSAVED_USES = 256
"""Uses that the file is not told of before it is written to for some other reason."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS calibrations (
    context TEXT NOT NULL, prompt TEXT NOT NULL, rewards BLOB NOT NULL, used REAL NOT NULL,
    PRIMARY KEY (context, prompt)
);
CREATE INDEX IF NOT EXISTS calibrations_by_use ON calibrations (used);
"""


class Store:
    """Rewards by prompt key, of one context; the file may hold those of others, and be shared by several processes.

    What goes wrong with the file is logged once and counted, never raised: the memory goes on.

    Args:
        path: the file; it and its directory are made when they are first needed, for their owner alone.
        limit: bytes that the file may have; what was not used for longest is dropped.
        context: digest of all that a calibration depends on beside its prompt.
        shape: (M, K).
    """

    def __init__(self, path: Path, limit: int, context: str, shape: tuple[int, int], metrics: Metrics) -> None:
        self._path, self._limit, self._context, self._shape, self._metrics = path, limit, context, shape, metrics
        self._memory: OrderedDict[str, Rewards] = OrderedDict()
        self._room = max(1, IN_MEMORY // (4 * shape[0] * shape[1]))
        self._uses: dict[str, float] = {}
        self._logged: set[str] = set()
        self._connection: sqlite3.Connection | None = None  # belongs to the thread
        self._thread = ThreadPoolExecutor(1, "calibrations")

    async def get(self, key: str) -> Rewards | None:
        """The rewards of a prompt, if they are kept."""
        found = self._memory.get(key)
        if found is None:
            found = await self._attempt("read", partial(self._read, key))
            if found is None:
                return None
        self._remember(key, found)
        self._uses[key] = time.time()
        if len(self._uses) >= UNSAVED_USES:
            await self._attempt("write", partial(self._save_uses, self._taken_uses()))
        return found

    async def put(self, key: str, rewards: Rewards) -> None:
        """Keep the rewards of a prompt, in memory if not in the file."""
        self._remember(key, rewards)
        await self._attempt("write", partial(self._write, key, rewards, self._taken_uses()))

    async def close(self) -> None:
        """Let go of the file."""
        if self._uses:
            await self._attempt("write", partial(self._save_uses, self._taken_uses()))
        await self._attempt("close", self._disconnect)
        self._thread.shutdown()

    def _remember(self, key: str, rewards: Rewards) -> None:
        self._memory[key] = rewards
        self._memory.move_to_end(key)
        if len(self._memory) > self._room:
            self._memory.popitem(last=False)

    def _taken_uses(self) -> dict[str, float]:
        taken, self._uses = self._uses, {}
        return taken

    async def _attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """What ``work`` returns, in the thread; None if it fails."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._tried, what, work)

    def _tried(self, what: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            self._metrics.store_errors.inc()
            if what not in self._logged:
                self._logged.add(what)
                log.error("cannot %s calibrations in %s (%s); going on in memory", what, self._path, one_line(error))
            self._disconnect()  # by the next time there may be another file
            return None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._create()
            connection = sqlite3.connect(self._path, timeout=1)
            try:
                if not self._pages(connection, "page_count"):
                    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has no effect after the first table
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
        """Make the file if there is none. SQLite gives the files beside it (-wal, -shm) its mode."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if "mode" not in self._logged or not self._path.exists():
            self._logged.add("mode")  # one warning of a file that others may read is enough
            os.close(open_private(self._path, os.O_RDONLY | os.O_CREAT))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self, key: str) -> Rewards | None:
        if self._connection is None and not self._path.exists():
            return None
        query = "SELECT rewards FROM calibrations WHERE context = ? AND prompt = ?"
        row = self._connected().execute(query, (self._context, key)).fetchone()
        if row is None:
            return None
        models, samples = self._shape
        if isinstance(row[0], bytes) and len(row[0]) == 4 * models * samples:
            rewards = np.frombuffer(row[0], dtype="<f4").reshape(self._shape)
            if np.all(np.isfinite(rewards)):
                return rewards
        raise sqlite3.DatabaseError(f"what is kept of prompt {key} is not {models} x {samples} rewards")

    def _write(self, key: str, rewards: Rewards, uses: dict[str, float]) -> None:
        connection = self._connected()
        row = self._context, key, rewards.astype("<f4").tobytes(), time.time()
        with connection:
            connection.execute("INSERT OR REPLACE INTO calibrations VALUES (?, ?, ?, ?)", row)
        self._save_uses(uses)
        self._bound(connection)
        self._measure(connection)

    def _save_uses(self, uses: dict[str, float]) -> None:
        rows = [(used, self._context, key) for key, used in uses.items()]
        with self._connected() as connection:
            connection.executemany("UPDATE calibrations SET used = ? WHERE context = ? AND prompt = ?", rows)

    def _bound(self, connection: sqlite3.Connection) -> None:
        """Drop what was not used for longest, a sixteenth at a time, until the rest fits."""
        drop = """DELETE FROM calibrations WHERE rowid IN (SELECT rowid FROM calibrations ORDER BY used
            LIMIT (SELECT (count(*) + 15) / 16 FROM calibrations))"""
        dropped = 0
        while self._pages(connection, "page_count") - self._pages(connection, "freelist_count") > self._limit:
            with connection:
                dropped = connection.execute(drop).rowcount
            if not dropped:
                break
        if dropped:
            with closing(connection.execute("PRAGMA incremental_vacuum")) as steps:
                steps.fetchall()

    def _measure(self, connection: sqlite3.Connection) -> None:
        self._metrics.store_bytes.set(self._pages(connection, "page_count"))

    def _pages(self, connection: sqlite3.Connection, count: str) -> int:
        """Bytes of the pages that ``count`` counts."""
        pages, size = (connection.execute(f"PRAGMA {what}").fetchone()[0] for what in (count, "page_size"))
        return int(pages * size)
