"""Stage ``judge``: finds the largest N up to which a judge supports the selection by the reward.

It asks about validation prompts, so that the test prompts stay unseen. The candidates are those of the model that is
served: fresh ones of the policy, or the stored rollouts where the policy is the reference itself.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from infalign.combination import Combination
from infalign.judge_record import JudgeRecord
from infalign.manifest import SamplingLaw
from infalign.overoptimisation import LEAST_PROMPTS
from infalign.storage import load_calibration
from infalign.templates import Message, prompt_key, render_prompt
from training.answers import ScoredTexts
from training.data import read_prompts
from training.evaluation.draws import Drawer, Side, score_side
from training.judges import Judge, load_judge
from training.rollouts import read_rollouts
from training.sampler import Sampler, load_policy
from training.scorer import CombinedScorer
from training.seeds import derive_seed

RECORD = "judged.json"
"""File of the record. There is none where the run has too few validation prompts."""


def write_judge_record(
    directory: Path,
    *,
    data: Path,
    policy: Path | None,
    reference: Path,
    reward: Path,
    calibration: Path,
    rollouts: Path | None,
    law: SamplingLaw,
    judge: str | Path,
    judge_output: int | None,
    draws: int,
    seed: int,
) -> None:
    """Ask the judge about candidates to the validation prompts, and write the record.

    Args:
        directory: Directory of the stage.
        data: Directory of the stage ``data``.
        policy: Directory of the policy: a model, or an adapter on the reference. None if it is the reference.
        reference: Directory of the reference model.
        reward: Directory of the reward model, or of several.
        calibration: Directory of the stage ``calibrate``.
        rollouts: Directory of the stage ``rollouts``, where there is no policy.
        law: Sampling law of the policy.
        judge: Judge, as :func:`training.judges.load_judge` takes it.
        judge_output: Which output of the judge is the score, if it has several.
        draws: Candidates of the policy to each prompt.
        seed: Seed of the draws.
    """
    prompts = read_prompts(data, "validation")
    if len(prompts) < LEAST_PROMPTS:
        count = f"{len(prompts)} validation prompts, and {LEAST_PROMPTS} are needed"
        print(f"judge: {count}: the bundle will not say how large N may be", file=sys.stderr)
        return
    scores = load_judge(str(judge), judge_output)
    combination, record = load_calibration(calibration)
    if policy is None:
        assert rollouts  # noqa: S101 - a run without a policy gives them
        side = judge_rollouts(rollouts, reference, combination, prompts, scores)
    else:
        sampler = load_policy(policy, reference, law)
        scorer = CombinedScorer.load(reward, combination, reference)
        texts = ScoredTexts.load(record.reasoning_parser, reference)
        side = judge_policy(sampler, scorer, scores, prompts, draws, seed, texts=texts)
    record_text = make_record(str(judge), side).model_dump_json(indent=1)
    (directory / RECORD).write_text(record_text + "\n", encoding="utf-8")


def read_judge_record(directory: Path) -> JudgeRecord | None:
    """Read what :func:`write_judge_record` has left; None if there were too few prompts."""
    file = directory / RECORD
    return JudgeRecord.model_validate_json(file.read_bytes()) if file.is_file() else None


def judge_policy(
    policy: Sampler,
    scorer: CombinedScorer,
    judge: Judge,
    prompts: Sequence[Sequence[Message]],
    draws: int,
    seed: int,
    drawer: Drawer | None = None,
    texts: ScoredTexts | None = None,
) -> Side:
    """Draw candidates of a policy and let reward and judge score them.

    Args:
        policy: The policy.
        scorer: The reward that selects.
        judge: The judge.
        prompts: Conversations.
        draws: Candidates of each prompt.
        seed: Seed of the draws.
        drawer: What draws from the policy. By default ``policy`` does.
        texts: Reads the answers that are scored. By default whole responses are.
    """
    repeats = [messages for messages in prompts for _ in range(draws)]
    tokens = (drawer or policy).draw(repeats, derive_seed(seed, "policy"), "policy")
    answers = texts.read_all(repeats, tokens) if texts else policy.text(tokens)
    return score_side(scorer, judge, repeats, answers, draws)


def judge_rollouts(
    rollouts: Path, reference: Path, combination: Combination, prompts: Sequence[Sequence[Message]], judge: Judge
) -> Side:
    """Let the judge score the stored rollouts to some of the prompts.

    Args:
        rollouts: Directory of the stage ``rollouts``.
        reference: Directory of the reference model.
        combination: How the rewards of several models are combined.
        prompts: Conversations.
        judge: The judge.
    """
    tokenizer = AutoTokenizer.from_pretrained(reference, trust_remote_code=False)
    wanted = {prompt_key(render_prompt(tokenizer, messages)) for messages in prompts}
    rewards, scores = [], []
    for row in read_rollouts(rollouts):
        key = prompt_key(render_prompt(tokenizer, row.prompt))
        if key in wanted:
            rewards.append(combination.combine([key], row.reward_matrix[None])[0])
            scores.append(judge([row.prompt] * len(row.responses), row.responses))
    return Side(np.array(rewards), np.array(scores))


def make_record(judge: str, side: Side) -> JudgeRecord:
    """Find the largest N that the judge supports.

    Args:
        judge: Judge, as :func:`training.judges.load_judge` takes it. The record holds the name without the folder.
        side: Rewards and the judge's scores of candidates to validation prompts.

    Raises:
        InvalidValue: There are too few prompts.
    """
    assert side.judge_scores is not None  # noqa: S101 - there is a judge
    return JudgeRecord.find(Path(judge).name, side.rewards, side.judge_scores)
