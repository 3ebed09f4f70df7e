"""The prefix scorer: what it learns from, which model it starts from, and that it finds a signal that is there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from infalign import CalibrationTable, Combination, InvalidValue, QuantileLaw
from infalign.manifest import SamplingLaw
from infalign.prefix_scorer import PrefixScorer as Reader
from infalign.prefix_scorer import load_scorer
from infalign.templates import prompt_key, render_prompt
from tests.tiny import tiny_job
from training.calibrate import write_calibration
from training.card import write_scorer_section
from training.config import Compute, Lora, PrefixScorer
from training.data import PROMPTS
from training.prefix_figures import PLACES, Predictions, measure_scorer
from training.prefix_rows import (
    ScoredPrompt,
    count_rewards,
    find_edges,
    make_rows,
    read_scored_prompts,
)
from training.prefix_scorer import choose_trunk, make_prefix_scorer
from training.prefix_trainer import PrefixTrainer, collate, prefix_loss
from training.rollouts import read_rollouts
from training.shards import PromptRollouts, RolloutJob
from training.supervised import UNCOUNTED
from training.tokenizer import train_tokenizer

LAW = SamplingLaw(max_tokens=8)
COMPUTE = Compute()
CONFIG = PrefixScorer(learning_rate=0.01, batch=32, bins=4, responses=16, epochs=6, lora=None)
GOOD, BAD = 20, 21
"""Tokens with which a response begins that will have a high or a low reward."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> RolloutJob:
    return tiny_job(tmp_path_factory.mktemp("job"), samples=16, max_tokens=8)


@pytest.fixture(scope="module")
def run(job: RolloutJob, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rollouts whose reward is known after their first token, and higher for every prompt that has an a."""
    root = tmp_path_factory.mktemp("run")
    random = np.random.default_rng(0)
    prompts, rows = [], []
    for number in range(48):
        easy = number % 2
        text = f"why {'a' if easy else 'b'} {' '.join(random.choice(list('cde'), 5))} {number}"
        messages = [{"role": "user", "content": text}]
        prompts.append({"prompt": messages, "split": "train" if number < 36 else "validation"})
        good = random.permuted(np.arange(16) % 2)
        tokens = [[GOOD if each else BAD, *random.integers(30, 200, random.integers(3, 8)).tolist()] for each in good]
        rewards = (5.0 * easy + good + 0.1 * random.normal(size=16)).tolist()
        rows.append(PromptRollouts(messages, [f"{number} {k}" for k in range(16)], tokens, rewards))
    for folder in ("data", "rollouts"):
        (root / folder).mkdir()
    (root / "data" / PROMPTS).write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    (root / "rollouts" / "00000.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    given = {"rollouts": root / "rollouts", "reference": job.reference, "reward": job.reward}
    write_calibration(root / "calibration", **given, law=LAW, weights={})
    return given | {"data": root / "data", "calibration": root / "calibration"}


def make(directory: Path, run: dict[str, Path], config: PrefixScorer = CONFIG, compute: Compute = COMPUTE) -> Path:
    directory.mkdir(exist_ok=True)
    make_prefix_scorer(directory, **run, law=LAW, config=config, compute=compute, seed=0)
    return directory / "model"


@pytest.fixture(scope="module")
def scorer(run: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("scorer"), run)


def test_a_signal_that_is_there_is_learnt(scorer: Path) -> None:
    _, record = load_scorer(scorer)
    figures = record.measured
    assert figures["r2_quarter"] > 0.5  # the first token halves the range: it explains 3/4 of the variance
    assert figures["log_score_quarter"] > 0.1
    assert abs(figures["r2_start"]) < 0.1
    assert figures["calibration_predicted"] < 0.8 * figures["calibration_pooled"]
    assert figures["calibration_coverage"] > 0.85
    assert 4 <= record.anchors <= 30  # the prompts have 16 responses, by which the error is measured
    assert list(record.rejection) == [f"{family}-of-{n}" for family in ("best", "worst") for n in (4, 8, 16)]
    assert record.rejection["best-of-16"].saved > 0.2
    assert record.rejection["worst-of-16"].saved > 0.2
    assert all(share.share > 0 and share.tokens_high < 0.9 for share in record.shares.values())
    assert all(found.loss_high <= CONFIG.limit for found in record.rejection.values())


def test_a_scorer_that_has_learnt_nothing_is_reported(
    run: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "scorer", run, CONFIG.model_copy(update={"epochs": 1, "learning_rate": 1e-9}))
    assert (
        "scorer: for whole responses to validation prompts it is no better than a uniform law"
        in capsys.readouterr().err
    )


def test_the_scorer_is_a_classifier_with_two_outputs_for_each_bin(scorer: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(scorer)
    tokenizer = AutoTokenizer.from_pretrained(scorer)
    start = tokenizer("why", add_special_tokens=False)["input_ids"]
    reader, record = load_scorer(scorer)
    with torch.inference_mode():
        good, bad = (model(input_ids=torch.tensor([[*start, token, 40]])).logits[0].numpy() for token in (GOOD, BAD))
    assert good.shape == (8,)
    assert reader.quantile_law(good).mean > 0.6 > 0.4 > reader.quantile_law(bad).mean
    assert (record.trunk, record.checkpoint) == ("reward", 1)


def test_the_card_says_how_sharp_it_is(scorer: Path) -> None:
    _, record = load_scorer(scorer)
    text = write_scorer_section(record)
    assert f"| 1/2 | {record.measured['r2_half']:.3f} [" in text
    assert "| worst-of-4 | " in text
    assert "nan" not in text
    figures = json.loads((scorer / "figures.json").read_text())
    assert len(figures["reliability"]) == 5


def test_a_killed_stage_goes_on_and_reaches_the_same_weights(
    run: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"epochs": 1, "lora": Lora(rank=2, alpha=4)})
    compute = Compute(save_every=2)
    whole = make(tmp_path / "whole", run, config, compute)
    compute_loss, calls = PrefixTrainer.compute_loss, []

    def fail(self: Any, *values: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return compute_loss(self, *values, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PrefixTrainer, "compute_loss", fail)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "killed", run, config, compute)
    assert list((tmp_path / "killed" / "checkpoints").iterdir())
    resumed = make(tmp_path / "killed", run, config, compute)
    first, second = (load_file(model / "model.safetensors") for model in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole / "scorer.json").read_text() == (resumed / "scorer.json").read_text()


def test_a_run_without_validation_prompts_is_refused(run: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / PROMPTS).write_text((run["data"] / PROMPTS).read_text().replace("validation", "test"))
    with pytest.raises(InvalidValue, match="scorer: got 'no validation prompts'"):
        make(tmp_path / "scorer", run | {"data": data})


def test_the_reward_model_is_where_it_starts_if_it_reads_the_same_tokens(job: RolloutJob, tmp_path: Path) -> None:
    assert choose_trunk(job.reward, job.reference) == ("reward", job.reward)
    tokenizer = AutoTokenizer.from_pretrained(job.reference)
    encoder = BertForSequenceClassification(
        BertConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    AutoModelForSequenceClassification.from_pretrained(job.reward).save_pretrained(tmp_path / "others")
    train_tokenizer(["quite other words"], 290).save_pretrained(tmp_path / "others")
    for name in ("one", "two"):
        AutoModelForSequenceClassification.from_pretrained(job.reward).save_pretrained(tmp_path / "several" / name)
    (tmp_path / "function").mkdir()
    (tmp_path / "function" / "reward.json").write_text("{}")
    for reward in ("encoder", "others", "several", "function"):
        assert choose_trunk(tmp_path / reward, job.reference) == ("reference", job.reference)


def test_it_can_start_from_the_reference(run: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "function").mkdir()
    (tmp_path / "function" / "reward.json").write_text("{}")
    config = CONFIG.model_copy(update={"epochs": 1})
    _, record = load_scorer(make(tmp_path / "scorer", run | {"reward": tmp_path / "function"}, config))
    assert record.trunk == "reference"


def test_several_rewards_are_learned_as_the_combined_one(run: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run["reference"])
    rows = list(read_rollouts(run["rollouts"]))
    keys = tuple(prompt_key(render_prompt(tokenizer, row.prompt)) for row in rows)
    rewards = np.array([row.rewards for row in rows])
    combination = Combination((CalibrationTable(keys, rewards), CalibrationTable(keys, -7 * rewards)), (3.0, 1.0))
    lines = [
        json.dumps(vars(row) | {"rewards": {"a": row.rewards, "b": [-7 * r for r in row.rewards]}}) for row in rows
    ]
    (tmp_path / "00000.jsonl").write_text("\n".join(lines) + "\n")
    found = read_scored_prompts(run["data"], "validation", tmp_path, tokenizer, combination)
    assert len(found) == 12
    assert np.allclose(found[0].rewards, combination.table.rewards[36])
    assert np.array_equal(np.argsort(found[0].quantiles), np.argsort(rewards[36]))


def test_every_prefix_is_labelled_with_the_bin_of_the_quantile() -> None:
    prompt = ScoredPrompt([1, 2, 3], [[4, 5], [6]], np.array([0.5, -1.0]), np.array([0.99, 0.2]))
    first, second = make_rows([prompt], 5, (-2.0, 0.0, 1.0))
    assert first == {"input_ids": [1, 2, 3, 4, 5], "labels": [UNCOUNTED] * 3 + [1] * 2, "counts": [1, 1]}
    assert second == {"input_ids": [1, 2, 3, 6], "labels": [UNCOUNTED] * 3 + [0], "counts": [1, 1]}
    assert len(list(make_rows([prompt], 1, (-2.0, 0.0, 1.0)))) == 1


def test_bins_of_rewards_are_equally_likely() -> None:
    rewards = np.random.default_rng(0).normal(size=(5, 80))
    prompts = [ScoredPrompt([1], [], row, row) for row in rewards]
    edges = find_edges(prompts, 8)
    assert count_rewards(rewards.ravel(), edges).tolist() == [50] * 8
    assert count_rewards(np.array([-99.0, 99.0]), edges).tolist() == [1, 0, 0, 0, 0, 0, 0, 1]


def test_the_loss_is_that_of_two_laws() -> None:
    rows = [
        {"input_ids": [1, 2, 3, 4], "labels": [UNCOUNTED, UNCOUNTED, 0, 0], "counts": [3, 1]},
        {"input_ids": [1, 2, 3], "labels": [UNCOUNTED, UNCOUNTED, 1], "counts": [0, 4]},
    ]
    batch = collate(rows, 9)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [1, 2, 3, 9]]
    outputs = torch.zeros(2, 4, 4)

    def loss() -> float:
        return prefix_loss(outputs, batch["labels"], batch["counts"]).item()

    assert loss() == pytest.approx(3 * np.log(2))
    outputs[0, 1, 2] = 20.0  # the law of the first prompt's rewards: all in the lower bin
    assert loss() == pytest.approx(2 * np.log(2) + (20 / 4 + np.log(2)) / 2, abs=1e-3)
    outputs[0, 2, 0] = outputs[0, 3, 0] = outputs[1, 2, 1] = 50.0  # every quantile is known after one token
    assert loss() == pytest.approx(np.log(2) + (20 / 4 + np.log(2)) / 2, abs=1e-3)


def test_a_perfect_scorer_and_one_that_knows_nothing_are_told_apart(run: dict[str, Path]) -> None:
    random = np.random.default_rng(0)
    quantiles = (random.permuted(np.tile(np.arange(16), (20, 1)), axis=1) + 0.5) / 16
    rewards = random.normal(size=(20, 16))
    combination = Combination((CalibrationTable(tuple(map(str, range(20))), rewards),))
    known = np.eye(8)[(quantiles * 8).astype(int)][:, :, None].repeat(len(PLACES), axis=2)
    predictions = Predictions(
        quantiles=quantiles,
        rewards=list(rewards),
        lengths=np.full((20, 16), 8),
        places=QuantileLaw(known),
        checkpoints=QuantileLaw(known[:, :, :1]),
        step=4,
        scorer=Reader(np.quantile(rewards, np.linspace(0, 1, 9))),
        prompts=np.zeros((20, 16)),
    )
    figures = measure_scorer(predictions, combination)
    assert figures.places["half"]["r2"].value > 0.98
    assert figures.places["half"]["log_score"].value == pytest.approx(np.log(8))
    assert figures.places["half"]["correlation"].value > 0.98
    assert figures.reliability[0]["observed"] == 0
    blind = replace(predictions, places=QuantileLaw(np.full_like(known, 1 / 8)))
    figures = measure_scorer(blind, combination)
    assert figures.places["half"]["r2"].value == pytest.approx(0)
    assert figures.places["half"]["log_score"].value == pytest.approx(0)
    assert figures.places["half"]["correlation"].value == 0
    assert figures.calibration["predicted"].value == pytest.approx(figures.calibration["pooled"].value, abs=0.05)
