"""The store of calibrations: bounded, shared, and never in the way when its file fails."""

import logging
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import server.decoding.store
from server.decoding.store import Rewards, Store
from server.observability.metrics import Metrics

pytestmark = pytest.mark.anyio
SHAPE = (2, 64)
CONNECT = sqlite3.connect


def rewards(seed: int) -> Rewards:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def key(number: int) -> str:
    return f"{number:032x}"


def store_at(path: Path, metrics: Metrics | None = None, calibration_digest: str = "context", mib: int = 1) -> Store:
    return Store(path, mib << 20, calibration_digest, SHAPE, metrics or Metrics())


def errors(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("infalign_calibration_store_errors_total")


def modes(directory: Path) -> dict[str, int]:
    """Permissions of the files in a directory."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


async def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "store.sqlite"
    first = store_at(path)
    assert await first.get(key(1)) is None
    assert not path.exists()  # looking makes no file
    await first.put(key(1), rewards(1))
    await first.close()
    second = store_at(path)
    np.testing.assert_array_equal(await second.get(key(1)), rewards(1))
    assert await second.get(key(2)) is None
    await second.close()


async def test_the_file_and_its_folder_are_their_owners_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, before = tmp_path / "home" / "store.sqlite", os.umask(0)
    try:
        first = store_at(path)
        await first.put(key(1), rewards(1))
        assert {name: mode for name, mode in modes(path.parent).items() if name.startswith("store")} == {
            "store.sqlite": 0o600,
            "store.sqlite-shm": 0o600,
            "store.sqlite-wal": 0o600,
        }
        await first.close()
    finally:
        os.umask(before)
    assert modes(tmp_path)["home"] == 0o700
    assert not caplog.records


async def test_a_file_that_others_may_read_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "store.sqlite"
    first = store_at(path)
    await first.put(key(1), rewards(1))
    await first.close()
    os.chmod(path, 0o644)
    again = store_at(path)
    for number in range(2):
        await again.put(key(number), rewards(number))
    await again.close()
    assert modes(tmp_path)["store.sqlite"] == 0o644
    assert caplog.text.count("can be read or written by others") == 1


async def test_contexts_do_not_mix(tmp_path: Path) -> None:
    ours, theirs = (
        store_at(tmp_path / "store", calibration_digest=calibration_digest) for calibration_digest in ("ours", "theirs")
    )
    await ours.put(key(1), rewards(1))
    assert await theirs.get(key(1)) is None
    await theirs.put(key(1), rewards(2))
    await ours.close()
    again = store_at(tmp_path / "store", calibration_digest="ours")
    np.testing.assert_array_equal(await again.get(key(1)), rewards(1))
    await theirs.close()
    await again.close()


async def test_processes_that_share_the_file_see_what_the_others_put(tmp_path: Path) -> None:
    one, other = store_at(tmp_path / "store"), store_at(tmp_path / "store")
    for number in range(0, 20, 2):
        await one.put(key(number), rewards(number))
        await other.put(key(number + 1), rewards(number + 1))
    for number in range(20):
        for reader in (one, other):
            np.testing.assert_array_equal(await reader.get(key(number)), rewards(number))
    await one.close()
    await other.close()


async def test_the_file_stays_within_its_limit_and_drops_what_was_not_used_for_longest(tmp_path: Path) -> None:
    path, metrics = tmp_path / "store", Metrics()
    store = store_at(path, metrics)
    for number in range(3000):  # about 2 MiB
        await store.put(key(number), rewards(number))
        await store.get(key(7))
    await store.close()
    assert path.stat().st_size <= 1 << 20
    assert metrics.registry.get_sample_value("infalign_calibration_store_bytes") == path.stat().st_size
    again = store_at(path)
    kept = [number for number in range(3000) if await again.get(key(number)) is not None]
    assert kept[0] == 7
    assert kept[1:] == list(range(3000 - len(kept) + 1, 3000))
    assert len(kept) > 800
    await again.close()


async def test_uses_are_saved_where_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.decoding.store, "UNSAVED_USES", 3)
    path = tmp_path / "store"
    first = store_at(path)
    for number in range(3):
        await first.put(key(number), rewards(number))
    await first.close()

    def by_use() -> list[str]:
        with CONNECT(path) as connection:
            return [row[0] for row in connection.execute("SELECT prompt FROM calibrations ORDER BY used")]

    second = store_at(path)
    for number in (2, 0, 1):
        await second.get(key(number))
    assert by_use() == [key(2), key(0), key(1)]
    await second.get(key(2))
    await second.close()
    assert by_use() == [key(0), key(1), key(2)]


async def test_the_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.decoding.store, "MEMORY_BYTES", 3 * rewards(0).nbytes)
    path = tmp_path / "directory"
    path.mkdir()  # no file, so that what is found is found in memory
    store = store_at(path)
    for number in range(3):
        await store.put(key(number), rewards(number))
    await store.get(key(0))
    await store.put(key(3), rewards(3))
    assert [await store.get(key(number)) is not None for number in range(4)] == [True, False, True, True]
    await store.close()


def corrupt(path: Path, _: Callable[..., Any]) -> None:
    path.write_bytes(b"this is no database " * 500)


def directory(path: Path, _: Callable[..., Any]) -> None:
    path.mkdir()


def below_a_file(path: Path, _: Callable[..., Any]) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


def foreign(path: Path, _: Callable[..., Any]) -> None:
    with CONNECT(path) as connection:
        connection.execute("CREATE TABLE calibrations (other TEXT)")


def full(path: Path, connecting: Callable[..., Any]) -> None:
    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = CONNECT(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    connecting(connect)


def locked(path: Path, connecting: Callable[..., Any]) -> None:
    holder = CONNECT(path, check_same_thread=False)
    holder.execute("CREATE TABLE held (x)")
    holder.execute("BEGIN EXCLUSIVE")

    def connect(at: Any, timeout: float) -> sqlite3.Connection:
        assert holder
        return CONNECT(at, timeout=0.01)

    connecting(connect)


@pytest.mark.parametrize("fault", [corrupt, directory, below_a_file, foreign, full, locked])
async def test_a_file_that_fails_is_logged_once_counted_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Callable[..., None]
) -> None:
    path, metrics = tmp_path / "its" / "store", Metrics()
    path.parent.mkdir()
    fault(path, lambda connect: monkeypatch.setattr("server.decoding.store.sqlite3.connect", connect))
    store = store_at(path, metrics)
    with caplog.at_level(logging.ERROR):
        for number in range(3):
            await store.put(key(number), rewards(number))
            np.testing.assert_array_equal(await store.get(key(number)), rewards(number))
        assert await store.get(key(9)) is None
        await store.close()
    assert (errors(metrics) or 0) >= 3
    logged = [record.getMessage() for record in caplog.records]
    assert len([message for message in logged if "cannot write" in message]) == 1
    assert len(logged) <= 2
    assert str(path) in logged[0]


async def test_a_read_only_file_is_read_and_the_rest_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, metrics = tmp_path / "store", Metrics()
    first = store_at(path)
    await first.put(key(1), rewards(1))
    await first.close()
    monkeypatch.setattr(
        "server.decoding.store.sqlite3.connect",
        lambda at, timeout: CONNECT(f"file:{at}?mode=ro", timeout=timeout, uri=True),
    )
    second = store_at(path, metrics)
    np.testing.assert_array_equal(await second.get(key(1)), rewards(1))
    assert errors(metrics) == 0
    await second.put(key(2), rewards(2))
    assert errors(metrics) == 1
    np.testing.assert_array_equal(await second.get(key(2)), rewards(2))
    await second.close()


@pytest.mark.parametrize("damaged", [b"", b"\x00" * 7, b"\x00\x00\xc0\x7f" * 128, "text", 5])
async def test_damaged_rewards_are_none_and_can_be_replaced(tmp_path: Path, damaged: Any) -> None:
    path, metrics = tmp_path / "store", Metrics()
    first = store_at(path)
    await first.put(key(1), rewards(1))
    await first.close()
    with CONNECT(path) as connection:
        connection.execute("UPDATE calibrations SET rewards = ?", (damaged,))
    second = store_at(path, metrics)
    assert await second.get(key(1)) is None
    assert errors(metrics) == 1
    await second.put(key(1), rewards(2))
    await second.close()
    third = store_at(path, metrics)
    np.testing.assert_array_equal(await third.get(key(1)), rewards(2))
    await third.close()


async def test_a_file_that_comes_back_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "store"
    corrupt(path, print)
    store = store_at(path)
    await store.put(key(1), rewards(1))
    path.unlink()
    await store.put(key(2), rewards(2))
    await store.close()
    again = store_at(path)
    np.testing.assert_array_equal(await again.get(key(2)), rewards(2))
    await again.close()
