"""Stage ``evaluate``: what the policy reached on prompts it was not trained on."""

from collections.abc import Callable, Sequence

import numpy as np

from infalign import estimators
from infalign.calibration import CalibrationTable
from infalign.procedures import Procedure, Standard
from infalign.templates import Message, prompt_key, render_prompt
from training.rollouts import Sampler, Scorer

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
    judge: Judge | None,
) -> dict[str, float]:
    """Figures on fresh draws, ``draws`` per prompt and model, as many as the procedure needs or more.

    ``kl`` is in nats per response; win rates are those of :mod:`infalign.estimators`, and so are mean scores of the
    selected answer by an independent ``judge``, where there is one.
    """
    repeated = [messages for messages in prompts for _ in range(draws)]
    drawn = policy.draw(repeated, seed, "evaluate")
    log_probs = [model.log_probability(repeated, drawn).reshape(-1, draws) for model in (policy, reference)]
    kl = estimators.kl(*log_probs)
    answers = {
        "policy": policy.text(drawn),
        "reference": reference.text(reference.draw(repeated, seed + 1, "evaluate")),
    }
    rewards = {
        who: scorer.score(repeated, texts).astype(np.float64).reshape(-1, draws) for who, texts in answers.items()
    }
    keys = [prompt_key(render_prompt(policy.tokenizer, messages)) for messages in prompts]

    def wins(by: Procedure) -> float:
        return float(estimators.win_rate(rewards["policy"], rewards["reference"], by).mean())

    figures = {
        "kl": float(kl.mean()),
        "kl_standard_error": float(kl.std(ddof=1) / np.sqrt(len(prompts))),
        "mean_quantile": float(table.quantile(keys, rewards["policy"]).mean()),
        "win_rate_standard": wins(Standard()),
        f"win_rate_{procedure}": wins(procedure),
    }
    if judge:
        for who, texts in answers.items():
            judged = [judge(m[-1]["content"], text) for m, text in zip(repeated, texts, strict=True)]
            scores = np.reshape(judged, (-1, draws))
            for by, name in ((Standard(), f"judge_{who}"), (procedure, f"judge_{who}_{procedure}")):
                figures[name] = float(estimators.expected_judged(rewards[who], scores, by).mean())
    return figures
