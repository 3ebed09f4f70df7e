"""The gradient of E[A] − β KL(π‖π_ref) from responses that the policy itself has drawn.

There are two unbiased estimates of the gradient of the KL. Both are sums over the tokens of the responses.

- *Exact*: the KL of a policy is the expected sum of the KL of the next-token distributions. Each of these changes, and
  so does how often the policy gets to them. The first part is exact for every token. The second is a policy gradient
  whose return is the KL that is still to come (Rao–Blackwell; Amini et al., arXiv 2504.10637).
- *Sampled*: a policy gradient whose return is the log-ratio log π/π_ref of the whole response.

The exact one has less noise by itself. But the log-ratio also tells good responses from bad ones: at the optimum,
A = β log π/π_ref, so that A − β log π/π_ref has no noise at all. The difference of the two is zero on average, so any
multiple γ of it may be added: it is a *control variate*. γ is the slope of A over the log-ratio in earlier steps.
"""

from dataclasses import dataclass, field

import torch

MEMORY = 0.9
"""Weight of the past in what is remembered of earlier steps."""
RIDGE = 1e-3
"""Variance that is added to that of the log-ratio, which is zero before the policy has moved."""


@dataclass
class History:
    """What is remembered of the draws of earlier steps. It does not depend on the draws of the present one.

    Args:
        size: Most tokens of a response.
        sums: Running sums, of shape (2 size + 4,); see :meth:`summarise`.
    """

    size: int
    sums: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(2 * self.size + 4)

    @property
    def future(self) -> torch.Tensor:
        """(size,) the mean KL that is still to come after each token; 0 where no response has got to."""
        return self.sums[: self.size] / self.sums[self.size : 2 * self.size].clamp(min=1e-9)

    @property
    def kl(self) -> float:
        """The mean KL."""
        count, kl, _, _ = self.sums[-4:].tolist()
        return float(kl / max(count, 1e-9))

    @property
    def slope(self) -> float:
        """γ, the slope of the advantages over the log-ratios."""
        count, _, products, squares = self.sums[-4:].tolist()
        return float(products / (squares + RIDGE * count + 1e-9))

    def summarise(self, gradient: "Gradient", mask: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        """Sum up some responses, in the form of ``sums``.

        Args:
            gradient: Their gradient.
            mask: (responses, tokens) which places hold a token.
            advantages: (responses,) their advantages.
        """
        width, sums = mask.shape[1], torch.zeros_like(self.sums)
        sums[:width] = gradient.future.sum(dim=0)
        sums[self.size : self.size + width] = mask.sum(dim=0)
        ratio = gradient.log_ratio - self.kl
        ends = (len(mask), gradient.kl.sum(), (ratio * advantages).sum(), ratio.square().sum())
        sums[-4:] = torch.tensor([float(end) for end in ends])
        return sums

    def update(self, sums: torch.Tensor) -> None:
        """Take the responses of a step into the memory.

        Args:
            sums: Their sums.
        """
        self.sums = MEMORY * self.sums + (1 - MEMORY) * sums


@dataclass(frozen=True)
class Gradient:
    """The gradient of −A log π + β KL, summed over some responses."""

    logits: torch.Tensor
    """(N, vocabulary) gradient by the policy's logits."""
    kl: torch.Tensor
    """(responses,) KL of each response: the sum over its tokens."""
    future: torch.Tensor
    """(responses, tokens) KL after each token, aligned at the first token."""
    log_ratio: torch.Tensor
    """(responses,) log π/π_ref of each response."""


@torch.no_grad()
def logit_gradient(
    policy: torch.Tensor,
    reference: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    beta: float,
    history: History,
) -> Gradient:
    """Compute the gradient by the logits in closed form, which takes a third of the time of automatic differentiation.

    With p and q the next-token distributions of policy and reference, R the return of the drawn token, and β' = β − γ,
    it is p (β' (log p − log q − KL(p‖q)) + R) − R [token was drawn].

    Args:
        policy: (N, vocabulary) logits of the policy for the N tokens of all responses, in order.
        reference: Logits of the reference, of the same shape.
        tokens: (N,) the tokens that were drawn.
        mask: (responses, tokens) which places hold a token. Rows begin at the first token.
        advantages: (responses,) advantages A.
        beta: KL penalty β.
        history: What is remembered of earlier steps.
    """
    ratio = policy.log_softmax(dim=-1)
    law = ratio.exp()
    ratio -= reference.log_softmax(dim=-1)
    exact = torch.linalg.vecdot(law, ratio)
    kl = exact.new_zeros(mask.shape).masked_scatter(mask, exact)
    future = (kl.sum(dim=1, keepdim=True) - kl.cumsum(dim=1)) * mask
    drawn = ratio.gather(1, tokens[:, None])[:, 0]
    log_ratio = exact.new_zeros(mask.shape).masked_scatter(mask, drawn).sum(dim=1)
    slope, expected = history.slope, history.future[: mask.shape[1]].to(exact)
    later = (beta - slope) * (future - expected)
    returns = (advantages - slope * (log_ratio - history.kl))[:, None] - later
    returns = returns[mask][:, None]
    gradient = ratio.sub_(exact[:, None]).mul_(beta - slope).add_(returns).mul_(law)
    return Gradient(gradient.scatter_add_(1, tokens[:, None], -returns), kl.sum(dim=1), future, log_ratio)
