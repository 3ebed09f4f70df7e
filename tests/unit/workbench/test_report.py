"""``infalign report``: its figures are right on samples whose answer is known, and its page is one file."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infalign import WorstOfN
from infalign.estimators import expected_value
from infalign.hits import hit_at_k
from server.app import create_app
from server.settings import Settings
from tests.fakes import FakeEngines, fake_served, recalibrated
from tests.http_server import serve_app
from tests.unit.workbench.conftest import Run, make_sample
from workbench.report.analysis import expect_reference
from workbench.report.gate import parse_gate
from workbench.samples import Sample
from workbench.store import Store

PROMPTS, SAMPLES = 30, 16


def make_campaign(directory: Path, shift: float = 0.0, bundle: str = "a-b") -> np.ndarray[Any, Any]:
    """Write a campaign with known rewards, and return these."""
    rewards = np.random.default_rng(0).normal(size=(PROMPTS, SAMPLES)) + shift
    store = Store(directory, {"model": "demo", "bundle": bundle, "seed": 0, "n": SAMPLES})
    for prompt in range(PROMPTS):
        store.add(
            Sample(
                prompt_id=f"{prompt:016x}",
                index=index,
                prompt=f"prompt <b>{prompt}</b>",
                text=f"<script>alert({index})</script> sorry" if index % 4 else "sure",
                reward=float(reward),
                quantile=float(1 / (1 + np.exp(-reward))),
                quantile_low=0.0,
                quantile_high=1.0,
                scope="global",
                anchors=9,
                completion_tokens=3,
                model="demo",
                bundle=bundle,
                tags=json.dumps({"kind": "odd" if prompt % 2 else "even", "harmful": str(reward < -1).lower()}),
            )
            for index, reward in enumerate(rewards[prompt])
        )
    store.close()
    return rewards


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray[Any, Any]]:
    directory = tmp_path_factory.mktemp("campaign")
    return directory, make_campaign(directory)


def read(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "report.json").read_text(encoding="utf-8")))


def test_the_figures_are_those_of_the_estimators(run: Run, campaign: tuple[Path, np.ndarray[Any, Any]]) -> None:
    directory, rewards = campaign
    result = run("report", directory, "--hit", "reward<-1", "--hit", "text~SURE")
    assert result.exit_code == 0
    assert "text ~ SURE: hit@1 0.250 [" in result.output
    report = read(directory)
    assert (report["prompts"], report["samples"], report["tokens"]) == (30, 480, 1440)
    for point in report["worst"]:
        assert point["reward"]["value"] == pytest.approx(expected_value(rewards, WorstOfN(point["n"])).mean())
        assert point["theory"] == pytest.approx((9 / (point["n"] + 1) + 0.5) / 10)
        assert point["reward"]["low"] <= point["reward"]["value"] <= point["reward"]["high"]
    hits, sure = report["hits"]
    for point in hits["curve"]:
        assert point["rate"]["value"] == pytest.approx(hit_at_k(list(rewards < -1), point["k"]).mean())
    assert hits["hits"] == int((rewards < -1).sum())
    assert [point["k"] for point in hits["forecast"]][-1] == 10_000
    assert {row["value"]: row["prompts"] for row in hits["tags"] if row["tag"] == "kind"} == {"odd": 15, "even": 15}
    assert {row["tag"] for row in hits["tags"]} == {"kind"}  # harmful differs within prompts
    assert sure["prompts_hit"] == 30
    assert report["shown"][0]["reward"] == pytest.approx(rewards.min())
    assert "infalign probe --calibrate" not in json.dumps(report["notes"])


def test_the_page_is_one_small_file_that_loads_nothing_and_runs_nothing(
    run: Run, campaign: tuple[Path, np.ndarray[Any, Any]]
) -> None:
    directory, _ = campaign
    assert run("report", directory).exit_code == 0
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "currentColor" in page
    assert "They may be offensive" in page
    assert "infalign probe --calibrate" in page  # quantiles of all prompts together
    assert "Not corrected." in page


def test_two_campaigns_are_compared_prompt_by_prompt(
    run: Run, campaign: tuple[Path, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    directory, rewards = campaign
    other = make_campaign(tmp_path / "other", shift=0.5, bundle="c-d")
    assert run("report", directory, "--compare", tmp_path / "other", "--hit", "reward<-1").exit_code == 0
    comparison = read(directory)["comparison"]
    assert (comparison["prompts"], comparison["only_one"]) == (30, 0)
    first = comparison["differences"][0]
    assert first["reward"]["value"] == pytest.approx(0.5)
    assert first["hits"]["reward < -1"]["value"] == pytest.approx((other < -1).mean() - (rewards < -1).mean())
    assert comparison["notes"] == [
        "The reward models or calibrations differ, so rewards and quantiles cannot be compared."
    ]


def test_labels_say_how_good_a_criterion_is(
    run: Run, campaign: tuple[Path, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    directory, rewards = campaign
    assert run("report", directory, "--hit", "reward<-0.5", "--hit", "labels", "--label", "harmful=true").exit_code == 0
    criterion, labels = read(directory)["hits"]
    agreement = criterion["agreement"]
    assert (agreement["true_positives"], agreement["false_negatives"]) == (int((rewards < -1).sum()), 0)
    assert agreement["false_positives"] == int((rewards < -0.5).sum() - (rewards < -1).sum())
    assert labels["agreement"] is None
    assert labels["hits"] == int((rewards < -1).sum())
    file = tmp_path / "labels.csv"
    file.write_text(
        "sample,hit\n" + "".join(f"{p:016x}-{i},{'yes' if i == 0 else 'no'}\n" for p in range(30) for i in range(16))
    )
    assert run("report", directory, "--hit", "labels", "--labels", file).exit_code == 0
    assert read(directory)["hits"][0]["hits"] == 30


def test_the_errors_of_a_detector_are_corrected(run: Run, campaign: tuple[Path, np.ndarray[Any, Any]]) -> None:
    directory, _ = campaign
    assert run("report", directory, "--hit", "text~sure", "--detector", "0.9,0.95,200,400").exit_code == 0
    [hits] = read(directory)["hits"]
    assert hits["curve"][0]["corrected"]["value"] == pytest.approx((0.25 - 0.05) / 0.85)
    assert "sensitivity of 0.9 and a specificity of 0.95, measured on 200 hits and 400 others" in hits["correction"]
    options = ("--hit", "labels", "--label", "harmful=true", "--detector", "0.9,0.95")
    assert run("report", directory, "--hit", "text~sure", *options).exit_code == 0
    criterion, labels = read(directory)["hits"]
    assert criterion["curve"][0]["corrected"] is not None
    assert labels["curve"][0]["corrected"] is None, "humans are no detector"
    assert labels["correction"].startswith("Not corrected.")


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ("hit@4 > 0.05", 1),
        ("hit@4 > 0.99", 0),
        ("hit@1.high > 0.16", 1),
        ("hit@1 > 0.16", 0),
        ("worst_reward@16 < -1", 1),
        ("worst_quantile@1.value<0.1", 0),
    ],
)
def test_a_gate_sets_the_exit_code(
    run: Run, campaign: tuple[Path, np.ndarray[Any, Any]], condition: str, status: int
) -> None:
    result = run("report", campaign[0], "--hit", "reward<-1", "--fail-if", condition)
    assert result.exit_code == status, result.output
    assert ("failed: " in result.output) == bool(status)


def test_a_gate_takes_the_end_that_chance_alone_does_not_reach() -> None:
    assert [parse_gate(text).end for text in ("hit@1>0.1", "worst_reward@2 < 0", "hit@1.value > 1e-3")] == [
        "low",
        "high",
        "value",
    ]


MISTAKES = {
    ("--hit", "rewards<1"): "--hit: got 'rewards<1', accepted: reward<X",
    ("--hit", "text~("): "--hit: got 'text~(', accepted: a regular expression after text~",
    ("--hit", "judge<1"): "--hit: got 'judge < 1', accepted: --judge URL beside it",
    ("--hit", "labels"): "--hit: got 'labels', accepted: --labels FILE or --label TAG=VALUE beside it",
    ("--label", "colour=red"): "--label: got 'colour=red', accepted: TAG=VALUE; there are the tags kind, harmful",
    ("--label", "harmful=True"): "--label: got 'harmful=True', accepted: a value that a sample has: ",
    ("--hit", "reward<1", "--hit", "text~x", "--detector", "0.9,0.9"): "accepted: one --hit beside it, and labels",
    ("--detector", "0.5"): "--detector: got '0.5', accepted: two rates, such as 0.9,0.95",
    ("--detector", "0.5,0.4"): "--detector: got '0.5,0.4', accepted:",
    ("--fail-if", "hit > 1"): "--fail-if: got 'hit > 1', accepted: FIGURE@K > NUMBER or <",
    ("--fail-if", "hit@99 > 1"): "--fail-if: got 'hit@99 > 1', accepted: a number after @ from 1 to 16",
    ("--least", 99): "--least: got 99, accepted: at most 16, the most samples of a prompt",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_named(
    run: Run, campaign: tuple[Path, np.ndarray[Any, Any]], arguments: tuple[object, ...]
) -> None:
    result = run("report", campaign[0], *arguments)
    assert result.exit_code == 2
    assert MISTAKES[arguments] in result.output


def test_prompts_that_needed_few_samples_are_not_left_out(run: Run, tmp_path: Path) -> None:
    for name, width, least in (("fixed", None, 9), ("narrow", 0.1, 2)):
        store = Store(tmp_path / name, {"model": "demo", "bundle": "a-b", "until_width": width})
        for prompt, count in (("p", 10), ("q", 2), ("r", 9)):
            store.add(make_sample(index, prompt) for index in range(count))
        store.close()
        assert run("report", tmp_path / name).exit_code == 0
        report = read(tmp_path / name)
        assert (report["least"], report["left_out"]) == (least, int(name == "fixed"))


def test_one_sample_of_each_prompt_is_reported_without_a_forecast(run: Run, tmp_path: Path) -> None:
    store = Store(tmp_path, {"model": "demo", "bundle": "a-b"})
    store.add(make_sample(0, prompt) for prompt in "pqr")
    store.close()
    assert run("report", tmp_path, "--hit", "reward<1").exit_code == 0
    [hits] = read(tmp_path)["hits"]
    assert (hits["curve"][0]["rate"]["value"], hits["forecast"]) == (1, [])


def test_a_folder_without_samples_is_named(run: Run, tmp_path: Path) -> None:
    assert "is not the folder of a campaign" in run("report", tmp_path).output
    Store(tmp_path, {"model": "demo", "bundle": "a-b"}).close()
    assert f"{tmp_path} has no samples yet: run infalign probe" in run("report", tmp_path).output


def test_a_second_judge_scores_the_samples_that_it_has_not_seen(
    run: Run, url: str, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "campaign"
    run("probe", questions, "--url", url, "--n", 4, "--output", out)
    for _ in range(2):
        assert run("report", out, "--judge", url, "--hit", "judge<5", "--hit", "reward<5").exit_code == 0
    [scores] = out.glob("judge-*.jsonl")
    assert len(scores.read_text().splitlines()) == 24
    judge, reward = read(out)["hits"]
    assert judge["curve"] == reward["curve"]  # the judge is the server itself
    with serve_app(create_app(Settings(), FakeEngines(), recalibrated(fake_served()))) as other:
        assert run("report", out, "--judge", other, "--hit", "judge<5").exit_code == 0
    assert len(list(out.glob("judge-*.jsonl"))) == 2, "another reward model has scores of its own, at any address"


def test_the_reference_is_not_better_than_itself() -> None:
    """With few anchors, the worst of many draws has a larger quantile than 1/(n + 1), also for the reference."""
    anchors, n = 16, 8
    random = np.random.default_rng(0)
    below = [np.sum(random.uniform(size=anchors) < random.uniform(size=n).min()) for _ in range(20_000)]
    assert expect_reference(n, np.full(3, anchors)) == pytest.approx((np.mean(below) + 0.5) / (anchors + 1), abs=2e-3)
