"""The command ``infalign train`` before it trains."""

from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner

from infalign.cli import infalign
from training import pipeline


class Reached(Exception):
    """Training would begin."""


def test_a_missing_bundle_is_reported_once_and_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reach(*_: Any) -> NoReturn:
        raise Reached

    monkeypatch.setattr(pipeline, "train", reach)
    done = CliRunner().invoke(infalign, ["train", "demo", "--if-missing"], env={"INFALIGN_HOME": str(tmp_path)})
    assert isinstance(done.exception, Reached)
    missing = tmp_path / "bundles" / "demo"
    assert done.stderr == f"{missing}: no bundle here (no bundle.json); make one with `infalign train demo`; training\n"
