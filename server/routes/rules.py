"""Creates the stopping rule that a request asks for, and checks if candidates can be rejected early."""

from infalign.controlled import ServedProcedure
from infalign.cost import Cost
from infalign.errors import shorten
from infalign.procedures import BestOfN, WorstOfN
from infalign.stopping import StoppingRule, Target
from server.decoding.catalogue import Catalogue
from server.decoding.jobs import TokenCost
from server.errors import BadRequest
from server.protocol.requests import ControlledRequest, GenerationRequest
from server.routes.scorer import require_scorer
from server.routes.serving import Serving


def make_rule(
    body: GenerationRequest, catalogue: Catalogue, procedure: ServedProcedure
) -> StoppingRule | TokenCost | None:
    """Create the stopping rule from a request's fields and the model's name.

    Args:
        body: The request's body.
        catalogue: Reads the model's name.
        procedure: The procedure that answers the request.

    Returns:
        The rule; None if the request has none.

    Raises:
        BadRequest: The name and the fields disagree, the procedure draws one candidate, or ``target_bound`` has
            nothing to bound.
    """
    if isinstance(body, ControlledRequest):
        return None
    field, target = body.rule_field, catalogue.suffix_target(body.model)
    if target is not None and field is not None and target != body.target_quantile:
        asked = f"{field}: {getattr(body, field):g}"
        raise BadRequest(f"model: got {shorten(body.model or '')}, accepted: the rule of the request, {asked}", "model")
    quantile = body.target_quantile if target is None else target
    if body.target_bound is not None and quantile is None:
        raise BadRequest(
            f"target_bound: got {body.target_bound!r}, accepted: only with target_quantile", "target_bound"
        )
    if field is None and quantile is None:
        return None
    selection = _check_procedure(field or "model", "a stopping rule", procedure)
    if quantile is not None:
        return Target(selection, quantile, body.target_bound or "point")
    if body.cost_per_draw is not None:
        return Cost(selection, body.cost_per_draw)
    return TokenCost(selection, body.cost_per_token or 0.0)


def check_rejection(body: GenerationRequest, procedure: ServedProcedure, serving: Serving) -> bool:
    """Check if candidates can be rejected early, if a request asks for it.

    Args:
        body: The request's body.
        procedure: The procedure that answers the request.
        serving: The objects that serve requests.

    Returns:
        Whether the request asks for it.

    Raises:
        BadRequest: It does, but the procedure draws one candidate, several are selected, or there is no prefix scorer.
    """
    if isinstance(body, ControlledRequest) or not body.early_rejection:
        return False
    field = "early_rejection"
    _check_procedure(field, "true", procedure)
    if body.top > 1:
        raise BadRequest(f"{field}: got true with {body.TOP_FIELD}: {body.top}, accepted: only with 1", field)
    require_scorer(serving, f"{field}: got true, accepted: false", field)
    return True


def _check_procedure(field: str, value: str, procedure: ServedProcedure) -> BestOfN | WorstOfN:
    if not isinstance(procedure, BestOfN | WorstOfN):
        raise BadRequest(
            f"{field}: got {value} with {procedure} decoding, accepted: a procedure that draws several candidates, by "
            "best_of, worst_of or a model such as demo:best-of-16",
            field,
        )
    return procedure
