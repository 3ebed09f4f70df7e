"""Samples survive whatever ends the process."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infalign import InfAlignError
from infalign.errors import DiskFull
from tests.unit.workbench.conftest import make_sample
from workbench import store as module
from workbench.errors import StoreMismatch
from workbench.samples import Sample, make_schema
from workbench.store import Failure, Failures, Store, count_pending, read_parts, write_atomically

SETTINGS = {"n": 4, "seed": 0, "model": "demo"}


def stored(directory: Path) -> list[int]:
    return [index for table in read_parts(directory) for index in table["index"].to_pylist()]


def test_a_killed_run_goes_on_from_its_journal(tmp_path: Path) -> None:
    killed = Store(tmp_path, SETTINGS)
    killed.add([make_sample(0), make_sample(2)])
    with pytest.raises(StoreMismatch, match="another infalign probe is writing here"):
        Store(tmp_path, SETTINGS)
    del killed  # never closed
    assert count_pending(tmp_path) == 2
    again = Store(tmp_path, SETTINGS)
    assert again.done("p") == {0, 2}
    again.add([make_sample(1), make_sample(2)])
    again.close()
    assert stored(tmp_path) == [0, 2, 1]
    assert len(Store(tmp_path, SETTINGS)) == 3


def test_a_row_that_was_cut_is_drawn_again(tmp_path: Path) -> None:
    Store(tmp_path, SETTINGS).add([make_sample(0)])
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"prompt_id": "p", "ind')
    again = Store(tmp_path, SETTINGS)
    assert again.notes == ["journal.jsonl: the last line was cut; its sample is drawn again"]
    again.add([make_sample(1)])
    again.close()
    assert stored(tmp_path) == [0, 1]


def test_a_kill_between_part_and_journal_repeats_nothing(tmp_path: Path) -> None:
    first = Store(tmp_path, SETTINGS)
    first.add([make_sample(0)])
    journal = (tmp_path / "journal.jsonl").read_bytes()
    first.close()
    (tmp_path / "journal.jsonl").write_bytes(journal)  # the part is there, and the journal was not emptied
    Store(tmp_path, SETTINGS).close()
    assert stored(tmp_path) == [0]


def test_long_journals_become_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 2)
    store = Store(tmp_path, SETTINGS)
    for index in range(5):
        store.add([make_sample(index)])
    assert [table.num_rows for table in read_parts(tmp_path)] == [2, 2]
    store.close()
    assert [table.num_rows for table in read_parts(tmp_path)] == [2, 2, 1]
    (tmp_path / "samples" / "part-00000.parquet").unlink()  # the name of the next part must not be one that exists
    store = Store(tmp_path, SETTINGS)
    store.add([make_sample(0)])
    store.close()
    assert stored(tmp_path) == [2, 3, 4, 0]


def test_more_samples_may_be_asked_for_and_nothing_else_may_change(tmp_path: Path) -> None:
    Store(tmp_path, SETTINGS).close()
    Store(tmp_path, {**SETTINGS, "n": 8}).close()
    with pytest.raises(StoreMismatch, match="this campaign has seed 0, and now it is 1; give the same as before"):
        Store(tmp_path, {**SETTINGS, "seed": 1})


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "campaign.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(StoreMismatch, match="format 99, accepted: 1; another version of infalign made this folder"):
        Store(tmp_path, SETTINGS)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    store.add([make_sample(0)])
    store.close()
    part = tmp_path / "samples" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(
        StoreMismatch, match=r"part-00000.parquet is damaged .*; if you delete it, its samples are drawn again"
    ):
        Store(tmp_path, SETTINGS)


def test_a_part_without_all_columns_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    store.add([make_sample(0)])
    store.close()
    part = tmp_path / "samples" / "part-00000.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["anchors"]), part)
    with pytest.raises(StoreMismatch, match=r"part-00000\.parquet has no column anchors; another version of infalign"):
        list(read_parts(tmp_path))


class FullFile:
    """A journal on a disk that has room for ten bytes more."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, content: bytes) -> int:
        self.file.write(content[:10])
        raise OSError(28, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    store.add([make_sample(0)])
    journal = store._journal
    store._journal = FullFile(journal)  # type: ignore[assignment]
    with pytest.raises(DiskFull, match="No space left on device; what was stored before is kept"):
        store.add([make_sample(1)])
    store._journal = journal
    store.add([make_sample(1)])
    store.close()
    assert stored(tmp_path) == [0, 1]


def test_a_file_that_does_not_fit_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("former")

    def write(new: Path) -> None:
        new.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFull, match="No space left on device"):
        write_atomically(path, write)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"report.html": "former"}


def test_only_failures_for_good_are_remembered(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    for permanent in (True, False):
        store.add_failure(
            Failure(prompt_id="p", prompt="Why?", indices=[1], code="c", message="m", attempts=1, permanent=permanent)
        )
    assert [failure.permanent for failure in Failures(tmp_path).read()] == [True, False]
    store.close()
    assert [failure.permanent for failure in Store(tmp_path, SETTINGS).failures] == [True]


def test_every_column_is_described() -> None:
    schema = make_schema()
    assert schema.names == list(Sample.model_fields)
    assert all(field.metadata[b"description"] for field in schema)
    assert not schema.field("reward").nullable
    assert schema.field("seed").nullable
    assert issubclass(StoreMismatch, InfAlignError)
