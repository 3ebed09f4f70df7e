"""A policy that misses its target KL says so."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from training import pipeline
from training.configs import load_config
from training.reached import describe_miss


def solve(kl: float, scale: float = 1.25) -> dict[str, Any]:
    return {"beta": 0.1, "scale": scale, "kl": {"value": kl, "low": kl, "high": kl, "level": 0.95}}


def test_a_kl_near_the_target_needs_no_mention() -> None:
    assert describe_miss(solve(0.46), 0.5) is None
    assert describe_miss(solve(0.54), 0.5) is None


def test_a_miss_names_target_and_result_and_what_helps() -> None:
    low = describe_miss(solve(0.3), 0.5)
    assert low is not None
    assert "0.300" in low
    assert "ctrl.target_kl is 0.5" in low
    assert "scaled by 1.25" in low
    assert "higher ctrl.learning_rate" in low
    high = describe_miss(solve(0.7), 0.5)
    assert high is not None
    assert "smaller ctrl.learning_rate" in high


@pytest.mark.parametrize(("kl", "lines"), [(0.3, 1), (0.5, 0)])
def test_a_run_says_on_stderr_that_it_missed(
    kl: float, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "solved.json").write_text(json.dumps(solve(kl)))
    monkeypatch.setattr(pipeline, "_check", Mock())
    runner: Any = SimpleNamespace(dry=False, stages=[SimpleNamespace(name="ctrl")], run=Mock(return_value=tmp_path))
    pipeline._run_stages(load_config("demo"), runner)
    assert capsys.readouterr().err.count("ctrl: The policy has reached a KL of 0.3") == lines
