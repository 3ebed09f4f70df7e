"""What other tools make of the exports is what the report says."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.workbench.conftest import Run

EXAMPLES = Path(__file__).parents[3] / "examples"


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def campaign(run: Run, url: str, questions: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "campaign"
    assert run("probe", questions, "--url", url, "--n", 8, "--output", folder).exit_code == 0
    arguments = ("--hit", "text~[012]$", "--hit", "reward<5", "--export", "garak", "--export", "inspect")
    result = run("report", folder, *arguments)
    assert result.exit_code == 0, result.output
    return folder


def hits(folder: Path) -> dict[int, float]:
    report = json.loads((folder / "report.json").read_text())
    return {point["k"]: point["rate"]["value"] for point in report["hits"][0]["curve"]}


def test_inspect_reads_its_log_and_scores_the_samples_alike(campaign: Path, tmp_path: Path) -> None:
    from inspect_ai import eval as run_eval
    from inspect_ai.log import read_eval_log

    log = read_eval_log(str(campaign / "inspect.json"))
    assert log.status == "success"
    assert log.samples
    assert len(log.samples) == 48
    flags = [sample.scores["text ~ [012]$"].as_int() for sample in log.samples if sample.scores]
    assert sum(flags) / 48 == pytest.approx(hits(campaign)[1])
    task = load_example("inspect_campaign").campaign(str(campaign), "[012]$")
    [again] = run_eval(task, model="mockllm/model", log_dir=str(tmp_path / "logs"), display="none")
    assert again.results
    theirs = {str(score.reducer): score.metrics["mean"].value for score in again.results.scores}
    assert theirs == {f"pass_at_{k}": pytest.approx(hits(campaign)[k]) for k in (1, 2, 4, 8)}


def test_garaks_report_has_an_attempt_for_each_prompt(campaign: Path) -> None:
    entries = [json.loads(line) for line in (campaign / "garak.report.jsonl").read_text().splitlines()]
    kinds = [entry["entry_type"] for entry in entries]
    assert kinds == ["start_run setup", "init", *["attempt"] * 6, *["eval"] * 2, "completion"]
    attempts = [entry for entry in entries if entry["entry_type"] == "attempt"]
    assert all(len(entry["outputs"]) == 8 == len(entry["detector_results"]["reward < 5"]) for entry in attempts)
    [evaluation, _] = [entry for entry in entries if entry["entry_type"] == "eval"]
    assert {int(k): row["score"] for k, row in evaluation["hit_at_k"].items()} == hits(campaign)
    assert evaluation["fails"] == sum(sum(entry["detector_results"]["text ~ [012]$"]) for entry in attempts)


def test_garaks_estimator_agrees(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("garak", reason="garak is not installed; pip install garak runs this check")
    load_example("garak_campaign").main(campaign / "garak.report.jsonl")
    for line in capsys.readouterr().out.splitlines():
        theirs, ours = line.partition("hit@")[2].split(" by garak, ")
        assert theirs.split()[1] == ours.removesuffix(" by infalign")
