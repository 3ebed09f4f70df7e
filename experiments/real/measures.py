"""What is measured of reward models and policies."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.real.configs import inputs, policy_config
from experiments.real.tasks import METHODS, Method, Settings, Task
from infalign import Estimate, over_prompts
from infalign.home import home


def measure_models(task: Task, reward: Path, judge: Path, settings: Settings) -> dict[str, Estimate]:
    """Measure how often each model decides comparisons of held-out prompts rightly."""
    from training.data import HELD_OUT, read_rows
    from training.pipeline import run_stages
    from training.reward_model import compute_accuracy
    from training.scorer import Scorer

    data = run_stages(policy_config(task, METHODS[0], settings), home() / "runs", until="data").data
    rows = read_rows(data / HELD_OUT)
    models = {"reward": reward, "judge": judge}
    return {part: compute_accuracy(Scorer.load(model), rows) for part, model in models.items()}


def measure(task: Task, method: Method | None, reward: Path, judge: Path, settings: Settings) -> dict[str, Any]:
    """Draw responses to the test prompts, and score them with the reward model and the judge.

    Args:
        task: The task.
        method: Method of the policy that draws, or None for the reference.
        reward: Directory of the reward model.
        judge: Directory of the judge.
        settings: What the command line says.

    Returns:
        ``rewards`` and ``judged`` of shape (P, M), ``tokens``, the mean length of a response, and ``kl`` of shape (P,)
        and ``solved`` for a policy.
    """
    from training.data import read_prompts
    from training.evaluation.draws import KL_DRAWS
    from training.likelihoods import sequence_kl
    from training.pipeline import run_stages
    from training.sampler import Sampler, load_pair
    from training.scorer import Scorer
    from training.seeds import derive_seed

    config = policy_config(task, method or METHODS[0], settings, reward)
    artifacts = run_stages(config, home() / "runs", until="ctrl" if method else "calibrate")
    made_from = (artifacts.directories["ctrl" if method else "calibrate"], judge.parent)
    file = inputs(task) / f"{'-'.join(directory.name for directory in made_from)}-{settings.draws}.npz"
    if not file.is_file():
        repeats = [prompt for prompt in read_prompts(artifacts.data, "test") for _ in range(settings.draws)]
        figures: dict[str, Any] = {}
        if method:
            policy, reference = load_pair(artifacts.policy, artifacts.reference, config.law)
        else:
            policy = Sampler.load(artifacts.reference, config.law)
        tokens = policy.draw(repeats, derive_seed(0, "policy" if method else "reference"), "draws")
        if method:
            rows = [row for row in range(len(repeats)) if row % settings.draws < KL_DRAWS]
            kl = sequence_kl(policy, reference, [repeats[row] for row in rows], [tokens[row] for row in rows])
            figures["kl"] = kl.reshape(-1, min(KL_DRAWS, settings.draws)).mean(axis=1)
        texts = policy.text(tokens)
        for name, model in (("rewards", artifacts.reward), ("judged", judge)):
            figures[name] = Scorer.load(model).score(repeats, texts).astype(np.float64).reshape(-1, settings.draws)
        figures["tokens"] = np.mean([len(response) for response in tokens])
        part = file.with_suffix(".part.npz")
        np.savez(part, **figures)
        part.rename(file)
        with (inputs(task) / f"{file.stem}.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(text) + "\n" for text in texts)
    figures = dict(np.load(file))
    if method:
        figures["solved"] = json.loads((artifacts.policy.parent / "solved.json").read_text(encoding="utf-8"))
    return figures


def compute_agreement(rewards: Any, judged: Any) -> Estimate:
    """Compute how often the judge prefers that of two responses to a prompt which has the higher reward."""
    first, second = np.triu_indices(rewards.shape[1], 1)
    ours, theirs = (np.sign(scores[:, first] - scores[:, second]) for scores in (rewards, judged))
    return over_prompts((1 + ours * theirs).mean(axis=1) / 2)


def describe_reference(drawn: dict[str, Any]) -> dict[str, Any]:
    """Compute what the responses of the reference say about the models: see :func:`compute_agreement`.

    Args:
        drawn: What :func:`measure` returned for the reference.
    """
    return {
        "agreement": compute_agreement(drawn["rewards"], drawn["judged"]),
        "reference_tokens": float(drawn["tokens"]),
    }
