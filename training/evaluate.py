"""Stage ``evaluate``: what the policy reached on prompts it was not trained on."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from infalign.calibration import CalibrationTable
from infalign.procedures import Procedure, Standard
from infalign.templates import Message, prompt_key, render_prompt
from training.rollouts import Sampler, Scorer

Floats = NDArray[np.float64]
Judge = Callable[[str, str], float]
"""(question, answer) -> ground-truth score."""


def evaluate(
    policy: Sampler,
    reference: Sampler,
    scorer: Scorer,
    table: CalibrationTable,
    prompts: Sequence[Sequence[Message]],
    procedure: Procedure,
    draws: int,
    seed: int,
    judge: Judge,
) -> dict[str, float]:
    """Figures on fresh draws, ``draws`` (a multiple of the procedure's n) per prompt and model.

    ``kl`` is the mean log-ratio of the policy's own draws, in nats per response; a win rate is the probability that the
    policy's selected candidate has the higher reward than the reference's, both decoded by the procedure, ties half.
    """
    repeated = [messages for messages in prompts for _ in range(draws)]
    drawn = policy.draw(repeated, seed, "evaluate")
    ratio = policy.log_probability(repeated, drawn) - reference.log_probability(repeated, drawn)
    per_prompt = ratio.reshape(-1, draws).mean(axis=1)
    answers = {
        "policy": policy.text(drawn),
        "reference": reference.text(reference.draw(repeated, seed + 1, "evaluate")),
    }
    rewards = {
        who: scorer.score(repeated, texts).astype(np.float64).reshape(-1, draws) for who, texts in answers.items()
    }
    scores = {
        who: np.array([judge(m[-1]["content"], text) for m, text in zip(repeated, texts, strict=True)]).reshape(
            -1, draws
        )
        for who, texts in answers.items()
    }
    keys = [prompt_key(render_prompt(policy.tokenizer, messages)) for messages in prompts]
    quantiles = np.array([table.lookup(key).quantile(row) for key, row in zip(keys, rewards["policy"], strict=True)])
    selected = {who: _select(rewards[who], procedure) for who in answers}
    return {
        "kl": float(per_prompt.mean()),
        "kl_standard_error": float(per_prompt.std(ddof=1) / np.sqrt(len(prompts))),
        "mean_quantile": float(quantiles.mean()),
        "win_rate_standard": _win_rate(rewards, Standard()),
        f"win_rate_{procedure}": _win_rate(rewards, procedure),
        "judge_reference": float(scores["reference"].mean()),
        "judge_policy": float(scores["policy"].mean()),
        f"judge_reference_{procedure}": float(_take(scores["reference"], selected["reference"]).mean()),
        f"judge_policy_{procedure}": float(_take(scores["policy"], selected["policy"]).mean()),
    }


def _groups(values: Floats, n: int) -> Floats:
    """(P, M) draws -> (P, M // n, n) independent groups."""
    return values.reshape(len(values), -1, n)


def _select(rewards: Floats, procedure: Procedure) -> NDArray[np.intp]:
    """Index within its group of each group's selected candidate, shape (P, groups)."""
    groups = _groups(rewards, procedure.n)
    return np.array([[procedure.ranking(group)[0] for group in row] for row in groups])


def _take(values: Floats, selected: NDArray[np.intp]) -> Floats:
    groups = _groups(values, values.shape[1] // selected.shape[1])
    return np.take_along_axis(groups, selected[..., None], axis=2)[..., 0]


def _win_rate(rewards: dict[str, Floats], procedure: Procedure) -> float:
    """Every selected reward of the policy against every one of the reference, prompt by prompt."""
    chosen = {who: _take(values, _select(values, procedure)) for who, values in rewards.items()}
    difference = chosen["policy"][:, :, None] - chosen["reference"][:, None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
