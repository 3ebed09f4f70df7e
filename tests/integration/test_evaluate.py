"""`infalign evaluate` on the demo, drawn by vLLM: it finds again what training measured."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from infalign import Bundle, JudgeRecord, read_bundle
from tests.commands import run_here
from tests.integration.conftest import INFALIGN


def test_vllm_finds_what_training_measured(bundle: Bundle, tmp_path: Path) -> None:
    plot = tmp_path / "win_rate.svg"
    options = ("--draws", "16", "--limit", "32", "--judge", "helpdesk", "--json", "--plot", str(plot))
    done = subprocess.run([INFALIGN, "evaluate", str(bundle.path), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["prompts"] == 32
    measured = bundle.policy().record.measured
    assert found["kl"]["value"] == pytest.approx(measured["kl"], abs=0.1)
    rows = {row["procedure"]: row for row in found["decoded"]}
    assert set(rows) == {"standard", *(f"{kind}-of-{n}" for kind in ("best", "worst") for n in (2, 4, 8))}
    for procedure in ("standard", "best-of-4"):
        win_rate = rows[procedure]["win_rate"]
        assert win_rate["low"] - 0.05 < measured[f"win_rate_{procedure}"] < win_rate["high"] + 0.05
        assert rows[procedure]["judge_policy"]["value"] > rows[procedure]["judge_reference"]["value"]
    assert rows["best-of-4"]["theory"] > rows["worst-of-4"]["theory"]
    assert found["overselection"]["ns"] == [1, 2, 4, 8, 16]
    assert plot.exists()


def test_the_judges_record_is_written_into_the_bundle(tiny_home: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_home / "bundle", tmp_path / "bundle")
    trained = read_bundle(copy).policy().record.judged
    assert trained
    assert (trained.judge, trained.prompts, trained.draws) == ("helpdesk", 20, 128)
    options = ("--judge", "helpdesk", "--record", "--draws", "8", "--engine", "transformers")
    done = run_here("evaluate", str(copy), *options, "--json")
    assert done.returncode == 0, done.stderr
    record = read_bundle(copy).policy().record.judged
    assert record == JudgeRecord.model_validate_json(done.stdout)
    assert record.draws == 8
    assert (copy / "README.md").read_text().count("## How large N may be: demo") == 1
    tested = str(copy / "evaluation" / "demo" / "prompts.jsonl")
    done = run_here("evaluate", str(copy), tested, *options)
    assert "accepted: none of the bundle's test prompts" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: no bundle here"),
        (("{bundle}", "missing.jsonl"), "data: got 'missing.jsonl'"),
        (("{bundle}", "--judge", "nobody"), "judge: got 'nobody', accepted: helpdesk, or the directory"),
        (("{bundle}", "--draws", "4"), "draws: got 4, accepted: enough for best-of-8"),
        (("{bundle}", "--plot", "picture.gif"), "--plot: got 'picture.gif'"),
        (("{bundle}", "-n", "1"), "-n"),
        (("{bundle}", "--record"), "--record: got 'true', accepted: a judge to go with it: --judge"),
        (("{bundle}", "--judge", "helpdesk", "--record", "-n", "4"), "accepted: no -n beside it"),
        (("{bundle}", "--judge", "helpdesk", "--record"), "PROMPTS: got '2 prompts', accepted: at least 20"),
    ],
)
def test_a_mistake_is_one_line(bundle: Bundle, arguments: tuple[str, ...], message: str) -> None:
    given = [argument.format(bundle=bundle.path) for argument in arguments]
    done = run_here("evaluate", *given, "--engine", "transformers", "--limit", "2")
    assert done.returncode == 2, done.stderr
    last = done.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("infalign: ")
    assert message in last
