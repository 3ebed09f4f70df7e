"""``/v1/budgets``: splits a budget of draws over prompts, before they are decoded."""

from fastapi import APIRouter, Request

from infalign.procedures import BestOfN, Standard
from server.decoding.budgets import Allocation, allocate
from server.decoding.catalogue import Choice
from server.decoding.reader import Conversation
from server.errors import BadRequest
from server.protocol.budgets import Budget, BudgetsAnswer, BudgetsRequest
from server.routes.dependencies import require_role
from server.routes.disconnects import run_while_connected
from server.routes.jobs import make_chat
from server.routes.scorer import require_scorer
from server.routes.serving import Serving, ServingDep

router = APIRouter(prefix="/v1", tags=["decoding"], dependencies=[require_role("generate")])


@router.post("/budgets", summary="Split a budget of draws over prompts")
async def budgets(body: BudgetsRequest, request: Request, serving: ServingDep) -> BudgetsAnswer:
    """Say how many candidates to draw for each of many prompts, if all together may draw ``total``.

    The bundle's prefix scorer predicts how the rewards of each prompt are spread. Prompts whose best response gains
    more by further draws get more of them. Nothing is drawn. Then send each prompt to ``/v1/best-of-n`` with its ``n``.
    """
    model = serving.catalogue.choose(body.model, Standard()).policy
    prefixes = require_scorer(serving, "budgets: cannot be split")
    most = _check_limits(serving, body, serving.largest_n(Choice(model, BestOfN())))
    conversations = {f"prompts.{place}": Conversation(prompt=prompt) for place, prompt in enumerate(body.prompts)}
    for place, messages in enumerate(body.conversations):
        conversations[f"conversations.{place}"] = make_chat(serving, body, messages)
    reader = serving.decoder.client.reader
    work = serving.run(lambda: allocate(reader, prefixes, conversations, body.total, body.least, most))
    allocation = await run_while_connected(request, work)
    serving.metrics.budget_prompts.inc(len(conversations))
    found = _describe(allocation)
    return BudgetsAnswer(
        model=model,
        prompts=found[: len(body.prompts)],
        conversations=found[len(body.prompts) :],
        total=sum(allocation.draws),
        expected_reward=sum(allocation.rewards) / len(found),
        even_reward=allocation.even_reward,
    )


def _check_limits(serving: Serving, body: BudgetsRequest, largest: int) -> int:
    """Check that the numbers fit each other and the operator's limit. Returns the most draws of a prompt."""
    most = largest if body.most is None else body.most
    serving.check_n("most", most, largest)
    if body.least > most:
        raise BadRequest(f"least: got {body.least}, accepted: at most {most}, the most draws of a prompt", "least")
    number = len(body.prompts) + len(body.conversations)
    if body.total < number * body.least:
        raise BadRequest(
            f"total: got {body.total}, accepted: at least {number * body.least}, as {number} prompts get at least "
            f"{body.least} draws each (least)",
            "total",
        )
    return most


def _describe(allocation: Allocation) -> list[Budget]:
    rows = zip(allocation.draws, allocation.rewards, allocation.means, strict=True)
    return [Budget(n=n, expected_reward=reward, gain=reward - mean) for n, reward, mean in rows]
