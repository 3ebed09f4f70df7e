"""How much a network of the policy's size can know: the reference, reweighted by what a reader says of whole responses.

A policy learns from scored draws which responses are good. So does a *reader*: a classifier that reads a whole response
and says how probable each quantile is. It is trained on the stored rollouts of training prompts. New responses of the
reference to test prompts are then reweighted by e^{E[Φ]/β}, where E[Φ] is the reader's expectation and β brings the KL
to the target. What this table wins is what its knowledge is worth, without any loss in learning to write. By the true
quantiles it wins as much as theory says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq

from experiments.gains.table import write_head, write_row
from experiments.reweighted import table_kl, table_win_rate
from infalign import Estimate, over_prompts, parse_transformation
from infalign.arrays import Floats
from infalign.procedures import BestOfN, Procedure, WorstOfN

BATCH, LEARNING_RATE, BINS = 64, 0.003, 64
DRAWS = 128
"""Responses per test prompt."""
PROCEDURES = (BestOfN(4), WorstOfN(4))


@dataclass(frozen=True)
class Responses:
    """Scored responses of the reference: M to each of P prompts, as rows."""

    tokens: list[list[int]]
    """(P M) token ids, with those of the prompt."""
    rewards: Floats
    """(P, M) rewards."""
    quantiles: Floats
    """(P, M) quantiles C: of rollouts among themselves, and of new responses among all those to the prompt."""


@dataclass(frozen=True)
class Knowledge:
    """What a reader knows."""

    quantile: float
    """Share of the variance of C that it explains, within prompts."""
    phi: float
    """The same for Φ(C)."""
    wins: Estimate
    """Win rate of the reference that is reweighted by it."""


def read_rollouts(artifacts: Any) -> Responses:
    """Read the rollouts of training prompts."""
    from transformers import AutoTokenizer

    from infalign.storage import load_calibration
    from training.prefix_rows import read_scored_prompts

    tokenizer = AutoTokenizer.from_pretrained(artifacts.reference)
    combination = load_calibration(artifacts.calibration)[0]
    prompts = read_scored_prompts(artifacts.data, "train", artifacts.rollouts, tokenizer, combination)
    return Responses(
        [[*prompt.tokens, *tokens] for prompt in prompts for tokens in prompt.responses],
        np.array([prompt.rewards for prompt in prompts]),
        np.array([prompt.quantiles for prompt in prompts]),
    )


def draw_responses(artifacts: Any, seed: int) -> Responses:
    """Draw new responses of the reference to test prompts."""
    from infalign.storage import load_calibration
    from training.data import read_prompts
    from training.sampler import Sampler, tokenise_prompts
    from training.scorer import CombinedScorer

    combination, record = load_calibration(artifacts.calibration)
    prompts = read_prompts(artifacts.data, "test")
    sampler = Sampler.load(artifacts.reference, record.sampling)
    repeats = [messages for messages in prompts for _ in range(DRAWS)]
    responses = sampler.draw(repeats, seed, "draws")
    scorer = CombinedScorer.load(artifacts.reward, combination, artifacts.reference)
    rewards = scorer.score(repeats, sampler.text(responses)).astype(np.float64).reshape(-1, DRAWS)
    starts = [tokens for tokens in tokenise_prompts(sampler.tokenizer, prompts) for _ in range(DRAWS)]
    quantiles = [(row[:, None] > row).mean(axis=1) + (row[:, None] == row).mean(axis=1) / 2 for row in rewards]
    tokens = [[*start, *response] for start, response in zip(starts, responses, strict=True)]
    return Responses(tokens, rewards, np.array(quantiles))


def train_reader(trunk: Path, rollouts: Responses, count: int, seed: int) -> Callable[[Any], Floats]:
    """Train a reader on ``count`` rollouts, as many of each prompt.

    Args:
        trunk: Directory of the model that it starts from: the reward model or the reference.
        rollouts: What it learns from.
        count: How many of them.
        seed: Seed of the order, and of the first weights of the head.

    Returns:
        A function that gives, for token ids of responses, the (responses, bins) probabilities of the quantiles.
    """
    import torch

    from training.models import new_classifier
    from training.optimisers import MuonAdam

    torch.manual_seed(seed)
    model = new_classifier(trunk, BINS)
    model.config.pad_token_id = 0
    optimiser = MuonAdam(model, LEARNING_RATE)
    rates = [group["lr"] for group in optimiser.param_groups]
    prompts, each = rollouts.quantiles.shape
    kept = (np.arange(prompts)[:, None] * each + np.arange(count // prompts)).ravel()
    labels = np.minimum((rollouts.quantiles.ravel() * BINS).astype(int), BINS - 1)
    steps = len(kept) // BATCH
    order = np.random.default_rng(seed).permutation(kept)
    model.train()
    for step in range(steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * min((step + 1) / 20, 1 - step / steps)
        logits = _read(model, [rollouts.tokens[row] for row in rows])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[rows]))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval()

    def read(tokens: Sequence[list[int]]) -> Floats:
        with torch.no_grad():
            parts = [
                _read(model, tokens[start : start + BATCH]).softmax(dim=-1) for start in range(0, len(tokens), BATCH)
            ]
        return np.asarray(torch.cat(parts).double())

    return read


def _read(model: Any, tokens: Sequence[list[int]]) -> Any:
    """Compute the logits at the last token of each response."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([torch.tensor(row) for row in tokens], batch_first=True)
    lengths = torch.tensor([len(row) for row in tokens])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    states = model.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return model.score(states[torch.arange(len(tokens)), lengths - 1])


def compute_knowledge(
    probabilities: Floats, responses: Responses, transformation: str, procedure: Procedure, kl: float
) -> Knowledge:
    """Reweight the reference by what a reader says.

    Args:
        probabilities: (P M, bins) probabilities of the quantiles.
        responses: The responses.
        transformation: Φ.
        procedure: How both are decoded.
        kl: KL of the reweighted reference, in nats.
    """
    phi = parse_transformation(transformation, procedure, kl=kl).normalise()
    middles = (np.arange(probabilities.shape[1]) + 0.5) / probabilities.shape[1]
    shape = responses.quantiles.shape
    quantiles = (probabilities @ middles).reshape(shape)
    values = (probabilities @ phi(middles)).reshape(shape)

    def weigh(log_beta: float) -> Floats:
        return np.asarray(np.exp((values - values.max(axis=1, keepdims=True)) / np.exp(log_beta)))

    def miss(log_beta: float) -> float:
        return float(np.mean([table_kl(row) for row in weigh(log_beta)])) - kl

    weights = weigh(brentq(miss, -7, 4))
    rows = zip(responses.rewards, weights, strict=True)
    return Knowledge(
        _explained(responses.quantiles, quantiles),
        _explained(phi(responses.quantiles), values),
        over_prompts([table_win_rate(*row, procedure) for row in rows]),
    )


def write_knowledge(artifacts: Any, kl: float, seed: int) -> str:
    """Train readers on a quarter of the rollouts and on all, and write a page of what each is worth, in Markdown.

    Args:
        artifacts: Artifacts of a run.
        kl: KL of the reweighted reference, in nats.
        seed: Seed of the readers and of the draws.
    """
    rollouts, test = read_rollouts(artifacts), draw_responses(artifacts, seed)
    places = np.minimum((test.quantiles.ravel() * BINS).astype(int), BINS - 1)
    readers: dict[str, Floats] = {"the true quantiles": np.eye(BINS)[places]}
    for name, trunk in (("the reward model", artifacts.reward), ("the reference", artifacts.reference)):
        for count in (len(rollouts.tokens) // 4, len(rollouts.tokens)):
            read = train_reader(trunk, rollouts, count, seed)
            readers[f"{name}, {count:,} responses"] = read(test.tokens)
    lines = [
        "# What a network can know",
        "",
        "How much of theory's room is a matter of knowing which responses are good? A *reader* is a classifier of the "
        "policy's size. It reads a whole response and says how probable each quantile is. It has learned from rollouts "
        f"of training prompts. Then {DRAWS} new responses of the reference to each of {len(test.rewards)} test prompts "
        f"are reweighted by what it says, with a KL of {kl:g}. No network has to learn to write in the end, so this is "
        "what the knowledge alone is worth.",
        "",
        "A reader starts either from the reward model or from the reference, as a policy does. *Explained* is the "
        "share of the variance within a prompt. Made by `python -m experiments.gains reader --output docs/results`.",
        "",
        *write_head(
            ["reader", "under", "C explained", "Φ explained", "identity", "optimal", "gain", "share of the first"]
        ),
    ]
    for procedure in PROCEDURES:
        most = None
        for name, probabilities in readers.items():
            identity, best = (
                compute_knowledge(probabilities, test, text, procedure, kl) for text in ("identity", "optimal")
            )
            gain = best.wins.value - identity.wins.value
            most = most or gain
            explained = f"{identity.quantile:.2f}", f"{best.phi:.2f}"
            share = f"{gain / most:.0%}"
            lines.append(write_row([name, procedure, *explained, identity.wins, best.wins, f"{gain:.3f}", share]))
    return "\n".join(lines) + "\n"


def _explained(values: Floats, predictions: Floats) -> float:
    """Compute the share of the variance of values within prompts that predictions explain."""
    centred = values - values.mean(axis=1, keepdims=True)
    error = centred - (predictions - predictions.mean(axis=1, keepdims=True))
    return float(1 - np.square(error).mean() / np.square(centred).mean())
