"""Several reward models in one stage: each in its place, each sign checked, all scores side by side."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infalign import Calibration, CalibrationTable, Combination, Identity, InvalidValue, beta_for_kl
from infalign.files import reward_models
from infalign.mixture import Mixture
from infalign.procedures import Standard
from infalign.storage import load_calibration
from infalign.templates import prompt_key, render_prompt
from tests.tiny import tiny_job
from training.calibrate import write_calibration
from training.config import Classifier, Compute, Reward
from training.configs import load_config
from training.data import HELD_OUT
from training.reward_model import accuracy_figures, make_reward_models, read_accuracy
from training.rollouts import read_rollouts, write_rollouts
from training.scorer import CombinedScorer, Scorer, Scorers
from training.shards import RolloutJob
from training.solvers.regression import read_groups
from training.solvers.rloo import SteerKL, make_reward_function
from training.solvers.task import Task

PROMPTS = [[{"role": "user", "content": f"{word} {number}?"}] for word in ("Why", "How") for number in range(12)]
RESPONSES = ("a b c", "d")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> RolloutJob:
    return tiny_job(tmp_path_factory.mktemp("models"), samples=3, max_tokens=4)


@pytest.fixture(scope="module")
def held_out(job: RolloutJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data whose held-out comparisons the tiny reward model decides rightly, every one."""
    directory = tmp_path_factory.mktemp("data")
    scores = [Scorer.load(job.reward).score(PROMPTS, [text] * len(PROMPTS)) for text in RESPONSES]
    rows = []
    for prompt, first, second in zip(PROMPTS, *scores, strict=True):
        sides = RESPONSES if first > second else RESPONSES[::-1]
        better, worse = ([{"role": "assistant", "content": text}] for text in sides)
        rows.append({"prompt": prompt, "chosen": better, "rejected": worse})
    (directory / HELD_OUT).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def make(job: RolloutJob, held_out: Path, directory: Path, **signs: Any) -> Path:
    """The stage's directory, of the tiny reward model under as many names."""
    named = [Classifier(path=str(job.reward), name=name, higher_is=sign) for name, sign in signs.items()]
    known = Reward(classifiers=tuple(named))
    make_reward_models(directory, data=held_out, reference=job.reference, config=known, compute=Compute(), seed=0)
    return directory


def test_one_model_is_the_directory_itself(job: RolloutJob, held_out: Path, tmp_path: Path) -> None:
    made = make(job, held_out, tmp_path, only="better")
    assert reward_models(made / "model") == {"reward": made / "model"}
    assert read_accuracy(made)[""].value == 1
    assert accuracy_figures(read_accuracy(made))["reward_accuracy"] == 1


def test_each_of_several_has_its_place_and_its_accuracy(job: RolloutJob, held_out: Path, tmp_path: Path) -> None:
    made = make(job, held_out, tmp_path, one="better", another="better")
    assert reward_models(made / "model") == {name: made / "model" / name for name in ("another", "one")}
    assert {name: accuracy.value for name, accuracy in read_accuracy(made).items()} == {"another": 1, "one": 1}
    assert accuracy_figures(read_accuracy(made))["reward_accuracy_one"] == 1


def test_the_model_whose_sign_is_contradicted_is_named(job: RolloutJob, held_out: Path, tmp_path: Path) -> None:
    message = r"reward\.classifiers\[harm\]\.higher_is: got 'worse', accepted: the other sign"
    with pytest.raises(InvalidValue, match=message):
        make(job, held_out, tmp_path, fine="better", harm="worse")


def test_rollouts_and_calibration_keep_every_model(job: RolloutJob, tmp_path: Path) -> None:
    turned = make(job, _nothing(tmp_path), tmp_path / "stage", up="better", down="worse") / "model"
    both = RolloutJob(job.reference, turned, job.law, job.engine, job.samples, job.seed)
    drawn, calibrated = tmp_path / "drawn", tmp_path / "calibrated"
    drawn.mkdir()
    write_rollouts(drawn, PROMPTS[:3], both, 2)
    weights = {"up": 3.0, "down": 1.0}
    write_calibration(calibrated, rollouts=drawn, reference=job.reference, reward=turned, law=job.law, weights=weights)
    rows = list(read_rollouts(drawn))
    combination, record = load_calibration(calibrated)
    assert record.reward_models is not None
    assert combination.weights == (1.0, 3.0)  # down, up
    for row, stored in enumerate(rows):
        assert isinstance(stored.rewards, dict)
        assert stored.rewards["down"] == [-reward for reward in stored.rewards["up"]]
        for model in (0, 1):
            assert combination.tables[model].rewards[row] == pytest.approx(stored.reward_matrix[:, model], abs=1e-6)
    scorer = CombinedScorer.load(turned, combination, job.reference)
    again = scorer.score([rows[1].prompt] * 3, rows[1].responses)
    assert again == pytest.approx(combination.table.rewards[1])


@pytest.mark.parametrize("weights", [{"up": 3.0, "down": 1.0}, {"up": 1.0, "down": 3.0}])
def test_both_solvers_learn_from_the_combined_reward(
    job: RolloutJob, tmp_path: Path, weights: dict[str, float]
) -> None:
    """The two models contradict each other, so that the heavier decides."""
    turned = make(job, _nothing(tmp_path), tmp_path / "stage", up="better", down="worse") / "model"
    both = RolloutJob(job.reference, turned, job.law, job.engine, 8, job.seed)
    drawn, calibrated = tmp_path / "drawn", tmp_path / "calibrated"
    drawn.mkdir()
    write_rollouts(drawn, PROMPTS[:2], both, 2)
    write_calibration(calibrated, rollouts=drawn, reference=job.reference, reward=turned, law=job.law, weights=weights)
    combination, _ = load_calibration(calibrated)
    task = Task(
        directory=tmp_path,
        prompts=PROMPTS[:2],
        rollouts=drawn,
        reference=job.reference,
        scorer=CombinedScorer.load(turned, combination, job.reference),
        combination=combination,
        procedure=Mixture.of(Standard()),
        transformation=Identity(),
        law=job.law,
        config=load_config("demo", ("ctrl.anneal=0.7",)).ctrl,
        compute=Compute(),
        seed=0,
    )
    rows = list(read_rollouts(drawn))
    for row, group in zip(rows, read_groups(task, task.scorer.tokenizer, beta=1.0), strict=True):
        assert isinstance(row.rewards, dict)
        heavier = np.array(row.rewards[max(weights, key=weights.__getitem__)])
        expected = Calibration(heavier).quantile(heavier)
        assert group.targets - group.targets[0] == pytest.approx(expected - expected[0])
        given = {
            "prompts": [row.prompt] * 8,
            "completions": [[{"role": "assistant", "content": text}] for text in row.responses],
            "completion_ids": row.tokens,
            "key": [prompt_key(render_prompt(task.scorer.tokenizer, row.prompt))] * 8,
        }
        steer = SteerKL(task.config.target_kl)
        steer.trainer = SimpleNamespace(beta=0.1)
        reward = make_reward_function(task, steer)
        begun, done = (
            np.array(reward(**given, log_metric=lambda *_: None, trainer_state=SimpleNamespace(global_step=step)))
            for step in (0, task.config.steps)
        )
        assert done == pytest.approx(expected)
        assert begun == pytest.approx(expected * 0.1 / beta_for_kl(Identity(), task.config.target_kl))


def test_one_models_reward_is_its_raw_one(job: RolloutJob) -> None:
    scorers = Scorers.load(job.reward, job.reference)
    tokenizer = scorers.models["reward"].tokenizer
    keys = tuple(prompt_key(render_prompt(tokenizer, prompt)) for prompt in PROMPTS)
    table = CalibrationTable(keys, np.zeros((len(keys), 2)))
    combined = CombinedScorer(scorers, Combination((table,)), tokenizer)
    texts = ["a"] * len(PROMPTS)
    assert np.array_equal(combined.score(PROMPTS, texts), Scorer.load(job.reward).score(PROMPTS, texts))


def _nothing(directory: Path) -> Path:
    """Data without comparisons."""
    (directory / "data").mkdir()
    (directory / "data" / HELD_OUT).touch()
    return directory / "data"
