"""Every estimator of the solver ctrl has the exact gradient of a policy that is a table, on average over all draws."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from infalign.live import live_transformation
from infalign.mixture import Mixture
from infalign.procedures import BestOfN, Procedure, Standard, WorstOfN
from training.solvers.gradient import RIDGE, Gradient, History, logit_gradient
from training.solvers.objectives import Fixed, Group, Live, Objective, leave_one_out

END = 0
RESPONSES = [[END], [1, END], [1, 1], [1, 2], [2, END], [2, 1], [2, 2]]
"""All responses of a vocabulary of three tokens, of two tokens at most."""
QUANTILES = np.array([0.1, 0.9, 0.35, 0.6, 0.25, 0.75, 0.5])
BETA = 0.3
TABLE = torch.tensor([[0.2, -0.4, 0.9], [0.0, 0.3, -0.5], [0.7, 0.1, 0.2]], dtype=torch.float64)
REFERENCE = torch.tensor([[0.0, 0.5, 0.1], [0.4, -0.2, 0.1], [0.0, 0.6, -0.3]], dtype=torch.float64)
"""Logits of the first token, and of the second after tokens 1 and 2."""


def logits(table: torch.Tensor, response: list[int]) -> torch.Tensor:
    return table[[0, *response[:-1]]]


def log_probabilities(table: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [logits(table, tokens).log_softmax(-1)[range(len(tokens)), tokens].sum() for tokens in RESPONSES]
    )


REFERENCE_LAW = log_probabilities(REFERENCE).exp()


def exact_kl(table: torch.Tensor) -> torch.Tensor:
    ours, theirs = log_probabilities(table), log_probabilities(REFERENCE)
    return (ours.exp() * (ours - theirs)).sum()


def exact_gradient(value: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    table = TABLE.clone().requires_grad_()
    (value(log_probabilities(table).exp()) - BETA * exact_kl(table)).backward()
    return table.grad


def history(future: tuple[float, float] = (0.0, 0.0), slope: float = 0.0, kl: float = 0.0) -> History:
    memory = History(2)
    memory.sums = torch.tensor([*future, 1.0, 1.0, 1.0, kl, slope * (1 + RIDGE), 1.0])
    return memory


def mean_gradient(objective: Objective, size: int, memory: History, single: bool = False) -> torch.Tensor:
    """The gradient on average over all ways to draw ``size`` responses, as one prompt or as ``size`` prompts."""
    total = torch.zeros_like(TABLE)
    law = None if objective.law is None else objective.law.copy()
    probabilities = log_probabilities(TABLE).exp()
    for drawn in itertools.product(range(len(RESPONSES)), repeat=size):
        objective.law = law
        places = list(drawn)
        quantiles = QUANTILES[places].reshape((-1, 1) if single else (1, -1))
        advantages = objective.advantages(quantiles, quantiles, 0.0).ravel()
        table = TABLE.clone().requires_grad_()
        responses = [RESPONSES[place] for place in places]
        lengths = torch.tensor([len(tokens) for tokens in responses])
        ours = torch.cat([logits(table, tokens) for tokens in responses])
        gradient = logit_gradient(
            ours,
            torch.cat([logits(REFERENCE, tokens) for tokens in responses]),
            torch.tensor([token for tokens in responses for token in tokens]),
            torch.arange(int(lengths.max())) < lengths[:, None],
            torch.tensor(advantages),
            BETA,
            memory,
        )
        ours.backward(gradient.logits)
        total -= probabilities[places].prod() * table.grad / size
    return total


def transform(quantiles: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    return np.asarray(quantiles) ** 3


@pytest.mark.parametrize(
    "memory",
    [
        history(),
        history(future=(0.7, -0.2)),
        history(future=(0.7, -0.2), slope=0.2, kl=0.4),
        history(slope=BETA),
        history(slope=2.0),
    ],
    ids=["exact KL", "baseline", "both", "sampled KL", "steep"],
)
@pytest.mark.parametrize(("size", "single"), [(2, False), (3, False), (2, True)])
def test_a_fixed_transformation_has_its_gradient(size: int, single: bool, memory: History) -> None:
    expected = exact_gradient(lambda law: (law * torch.tensor(QUANTILES**3)).sum())
    torch.testing.assert_close(mean_gradient(Fixed(transform), size, memory, single), expected)


def test_annealing_begins_at_the_identity() -> None:
    expected = exact_gradient(lambda law: (law * torch.tensor(1.7 * QUANTILES)).sum())
    torch.testing.assert_close(mean_gradient(Fixed(transform, 0.5, 1.7), 2, history()), expected)


@pytest.mark.parametrize(
    ("procedure", "size"),
    [(BestOfN(2), 2), (BestOfN(2), 3), (BestOfN(3), 3), (WorstOfN(2), 3), (WorstOfN(3), 3)],
    ids=str,
)
def test_subsets_have_the_gradient_of_the_win_rate_of_the_procedure(procedure: Procedure, size: int) -> None:
    """The selected response wins against the decoded reference with probability G."""
    wins = procedure.cumulative(QUANTILES)
    order = np.argsort(QUANTILES)

    def win_rate(law: torch.Tensor) -> torch.Tensor:
        below = torch.cat([torch.zeros(1, dtype=law.dtype), law[order].cumsum(0)])
        selected = below**procedure.n if isinstance(procedure, BestOfN) else 1 - (1 - below) ** procedure.n
        return (selected.diff() * torch.tensor(wins[order])).sum()

    expected = exact_gradient(win_rate)
    torch.testing.assert_close(mean_gradient(Group(Mixture.of(procedure)), size, history()), expected)


@pytest.mark.parametrize("procedure", [Standard(), BestOfN(4), WorstOfN(4), BestOfN(16)], ids=str)
def test_the_live_transformation_is_the_derivative_of_the_win_rate(procedure: Procedure) -> None:
    """The win rate is 1 − ∫ G(F) g, here by a fine sum, and its derivative is taken by automatic differentiation."""
    ranks, fine = 5, 4000
    law = torch.tensor([0.3, 0.1, 0.25, 0.05, 0.3], dtype=torch.float64, requires_grad=True)
    u = (torch.arange(ranks * fine, dtype=torch.float64) + 0.5) / (ranks * fine)
    policy = torch.cumsum(law.repeat_interleave(fine) / fine, 0) - law.repeat_interleave(fine) / fine / 2
    n = procedure.n
    cumulative = 1 - (1 - policy) ** n if isinstance(procedure, WorstOfN) else policy**n
    (1 - (cumulative * torch.tensor(procedure.density(u.numpy()))).mean()).backward()
    ours = live_transformation(procedure, law.detach().numpy())
    np.testing.assert_allclose(ours, law.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_the_live_transformation_is_the_optimal_one_at_the_optimum() -> None:
    from infalign.drift import rank_law
    from infalign.optimum import optimal
    from infalign.policies import Policy

    samples = 400
    for procedure in (BestOfN(4), WorstOfN(4)):
        phi = optimal(procedure, kl=0.5)
        law = rank_law(Policy.of(phi, phi.beta), samples)
        centres = (np.arange(samples + 1) + 0.5) / (samples + 1)
        np.testing.assert_allclose(live_transformation(procedure, law), phi(centres), atol=0.02)


def test_live_takes_the_draws_into_its_law_after_they_are_valued() -> None:
    objective = Live(Mixture.of(BestOfN(4)), samples=4)
    quantiles = np.array([[0.9, 0.9, 0.1]])
    before = objective.law.copy()
    phi = live_transformation(BestOfN(4), before)
    expected = leave_one_out(phi[[4, 4, 0]][None] / (phi[4] - phi[0]))
    np.testing.assert_allclose(objective.advantages(quantiles, quantiles, 0.0), expected)
    np.testing.assert_allclose(objective.law, 0.9 * before + 0.1 * np.array([1 / 3, 0, 0, 0, 2 / 3]))


def test_the_history_is_of_earlier_steps() -> None:
    memory = History(3)
    assert (memory.future.tolist(), memory.kl, memory.slope) == ([0.0, 0.0, 0.0], 0.0, 0.0)
    mask = torch.tensor([[True, True], [True, False]])
    advantages = torch.tensor([1.0, -1.0])
    gradient = Gradient(
        logits=torch.empty(0),
        kl=torch.tensor([0.7, 0.1]),
        future=torch.tensor([[0.5, 0.0], [0.0, 0.0]]),
        log_ratio=torch.tensor([2.0, -2.0]),
    )
    memory.update(memory.summarise(gradient, mask, advantages))
    assert memory.future.tolist() == pytest.approx([0.25, 0.0, 0.0])
    assert memory.kl == pytest.approx(0.4)
    assert memory.slope == pytest.approx(0.5, rel=1e-3)


def test_the_control_variate_takes_all_noise_at_the_optimum() -> None:
    """There, the log-ratio is A/β less a constant, and every response has the same gradient: none."""
    values = torch.tensor(QUANTILES)
    optimum = (REFERENCE_LAW.log() + values / BETA).softmax(0)
    chosen = [place for place, tokens in enumerate(RESPONSES) if len(tokens) == 2]
    first = torch.stack([optimum[[p for p in range(7) if RESPONSES[p][0] == token]].sum() for token in range(3)]).log()
    second = torch.stack(
        [torch.stack([optimum[RESPONSES.index([token, last])] for last in range(3)]).log() for token in (1, 2)]
    )
    table = torch.cat([first[None], second])
    log_z = (REFERENCE_LAW * (values / BETA).exp()).sum().log()
    kl = float((optimum * (values / BETA - log_z)).sum())
    mean = float((optimum * values).sum())
    for place in chosen:
        tokens = RESPONSES[place]
        gradient = logit_gradient(
            logits(table, tokens),
            logits(REFERENCE, tokens),
            torch.tensor(tokens),
            torch.ones(1, 2, dtype=torch.bool),
            values[place : place + 1] - mean,
            BETA,
            history(slope=BETA, kl=kl),
        )
        torch.testing.assert_close(gradient.logits, torch.zeros_like(gradient.logits), atol=1e-6, rtol=0)
