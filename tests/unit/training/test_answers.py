"""Where a parser separates reasoning, rewards read answers alone: in rollouts, calibration, CTRL and evaluation."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from infalign import InvalidValue
from infalign.mixture import Mixture
from infalign.procedures import Standard
from infalign.reasoning import ATTEMPTS
from infalign.storage import load_calibration
from infalign.templates import prompt_key, render_prompt
from infalign.transforms import Identity
from tests.tiny import tiny_job
from training import answers
from training.answers import ScoredTexts
from training.calibrate import write_calibration
from training.config import Compute
from training.configs import load_config
from training.evaluation.draws import collect
from training.named_models import NamedModels
from training.rollouts import read_rollouts, write_rollouts
from training.sampler import Sampler, load_pair, tokenise_prompts
from training.scorer import CombinedScorer, Scorer
from training.shards import RolloutJob
from training.solvers import Task
from training.solvers.rloo import SteerKL, make_reward_function

PROMPTS = [[{"role": "user", "content": f"{word}?"}] for word in "abcd"]
K = 8
PARSER = "halves"


class Halves:
    """Reasoning goes on to the first token of the lower half of the vocabulary, or never ends."""

    ends = True

    def __init__(self, name: str, directory: Path) -> None:
        assert name == PARSER
        self.tokenizer = Sampler.load(directory, None).tokenizer  # type: ignore[arg-type]
        self.prompts: list[Sequence[int]] = []

    def read(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[str | None]:
        self.prompts += prompts
        return [self._read(list(response)) for response in responses]

    def _read(self, response: list[int]) -> str | None:
        ends = [place for place, token in enumerate(response) if token < 150] if self.ends else []
        return self.tokenizer.decode(response[ends[0] + 1 :], skip_special_tokens=True) if ends else None


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> RolloutJob:
    plain = tiny_job(tmp_path_factory.mktemp("models"), samples=K, max_tokens=4)
    return RolloutJob(plain.reference, plain.reward, plain.law, plain.engine, K, 0, PARSER)


@pytest.fixture(autouse=True)
def halves(monkeypatch: pytest.MonkeyPatch) -> type[Halves]:
    monkeypatch.setattr(answers, "AnswerProcess", Halves)
    monkeypatch.setattr(Halves, "ends", True)
    return Halves


@pytest.fixture
def drawn(job: RolloutJob, tmp_path: Path) -> Path:
    directory = tmp_path / "drawn"
    directory.mkdir()
    write_rollouts(directory, PROMPTS, job, len(PROMPTS))
    return directory


def test_answers_are_scored_and_unfinished_reasoning_is_drawn_again(
    job: RolloutJob, drawn: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    write_rollouts(whole, PROMPTS, RolloutJob(job.reference, job.reward, job.law, job.engine, K, 0), len(PROMPTS))
    texts, scorer = ScoredTexts.load(PARSER, job.reference), Scorer.load(job.reward)
    assert texts
    redrawn = 0
    for row, before in zip(read_rollouts(drawn), read_rollouts(whole), strict=True):
        assert row.responses == texts.read([row.prompt] * K, row.tokens)
        assert row.rewards == pytest.approx(scorer.score([row.prompt] * K, row.responses).tolist(), abs=1e-5)
        for now, first in zip(row.tokens, before.tokens, strict=True):
            unfinished = all(token >= 150 for token in first)
            assert (now != first) == unfinished
            redrawn += unfinished
    assert redrawn


def test_reasoning_that_never_ends_names_the_key(
    job: RolloutJob, halves: type[Halves], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halves, "ends", False)
    real, seeds = Sampler.draw, []

    def draw(self: Sampler, prompts: list, seed: int, stage: str) -> list[list[int]]:
        seeds.append(seed)
        return real(self, prompts, seed, stage)

    monkeypatch.setattr(Sampler, "draw", draw)
    with pytest.raises(InvalidValue, match=r"^rollouts\.max_tokens: got 4, accepted: more, for 32 of 32 responses"):
        write_rollouts(tmp_path, PROMPTS, job, len(PROMPTS))
    assert len(set(seeds)) == len(seeds) == ATTEMPTS
    assert not list(tmp_path.iterdir())


def test_ctrl_and_evaluation_score_answers_and_an_unfinished_one_is_empty(
    job: RolloutJob, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated = tmp_path / "calibrated"
    write_calibration(
        calibrated,
        rollouts=drawn,
        reference=job.reference,
        reward=job.reward,
        law=job.law,
        weights={},
        reasoning_parser=PARSER,
    )
    combination, record = load_calibration(calibrated)
    assert record.reasoning_parser == PARSER
    texts = ScoredTexts.load(record.reasoning_parser, job.reference)
    assert texts
    scorer = CombinedScorer.load(job.reward, combination, job.reference)
    scored: list[str] = []

    def score(prompts: list, responses: list[str]) -> np.ndarray:
        scored.extend(responses)
        return scorer.score(prompts, responses)

    watched = SimpleNamespace(score=score)
    task = Task(
        directory=tmp_path,
        prompts=PROMPTS,
        rollouts=drawn,
        reference=job.reference,
        scorer=watched,  # type: ignore[arg-type]
        combination=combination,
        procedure=Mixture.of(Standard()),
        transformation=Identity(),
        law=job.law,
        config=load_config("demo").ctrl,
        compute=Compute(),
        seed=0,
        texts=texts,
    )
    row = next(read_rollouts(drawn))
    tokens = [*row.tokens[:-1], [299] * 4]
    make_reward_function(task, SteerKL(0.1))(
        prompts=[row.prompt] * K,
        completions=[[{"role": "assistant", "content": "all of it"}]] * K,
        completion_ids=tokens,
        key=[prompt_key(render_prompt(texts.tokenizer, row.prompt))] * K,
        log_metric=lambda *_: None,
        trainer_state=SimpleNamespace(global_step=1000),
    )
    assert scored == [*row.responses[:-1], ""]
    scored.clear()
    policy, reference = load_pair(job.reference, job.reference, job.law)
    collect(policy, reference, watched, None, PROMPTS, 4, 0, texts=texts)  # type: ignore[arg-type]
    assert "" in scored
    assert len(scored) == 2 * 4 * len(PROMPTS)
    assert isinstance(texts.answers, Halves)
    assert texts.answers.prompts[:1] == tokenise_prompts(texts.tokenizer, [row.prompt])


def test_the_option_is_a_key_and_there_is_no_parser_by_default(job: RolloutJob) -> None:
    assert NamedModels(reasoning_parser="qwen3").keys() == {"rollouts.reasoning_parser": "qwen3"}
    assert load_config("demo").rollouts.reasoning_parser is None
    assert ScoredTexts.load(None, job.reference) is None
