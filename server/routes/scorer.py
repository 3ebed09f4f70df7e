"""Refuses requests that need the prefix scorer where there is none that can serve them."""

from server.decoding.prefixes import Prefixes
from server.errors import BadRequest
from server.protocol.fields import Calibrate
from server.routes.serving import Serving


def require_scorer(serving: Serving, refusal: str, field: str | None = None) -> Prefixes:
    """Return what reads prompts with the prefix scorer.

    Args:
        serving: The objects that serve requests.
        refusal: What is refused without a scorer, and what is accepted then.
        field: The request field that needs the scorer.

    Raises:
        BadRequest: There is no prefix scorer.
    """
    if serving.decoder.prefixes is None:
        raise BadRequest(
            f"{refusal}, as this server has no prefix scorer; its operator can serve a bundle that has one, and name "
            "its servers with --scorer-urls if the engines run elsewhere",
            field,
        )
    return serving.decoder.prefixes


def check_calibrate(serving: Serving, calibrate: Calibrate) -> None:
    """Check that a calibration can be predicted, if a request asks for it.

    Raises:
        BadRequest: There is no prefix scorer, or the bundle has several rewards. The scorer has learned what they
            combine to where the prompt is calibrated. For other prompts they combine on another scale.
    """
    if calibrate != "predict":
        return
    refusal = "calibrate: got 'predict', accepted: true or false"
    require_scorer(serving, refusal, "calibrate")
    if (rewards := len(serving.decoder.client.reward_models)) > 1:
        raise BadRequest(
            f"{refusal}, as this bundle has {rewards} rewards; what they combine to is known only for a prompt that is "
            "calibrated",
            "calibrate",
        )
