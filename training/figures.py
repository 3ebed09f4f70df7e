"""Figures in the form in which the manifest of a bundle holds them."""

from collections.abc import Mapping

from infalign.estimators import Estimate


def flatten_estimates(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Convert estimates for a manifest.

    Args:
        estimates: Estimates by their keys.

    Returns:
        Values by these keys, and the limits of their intervals by ``KEY_low`` and ``KEY_high``. What is unknown (NaN)
        is left out.

    Example:
        >>> flatten_estimates({"kl": Estimate(0.5, 0.4, float("nan"))})
        {'kl': 0.5, 'kl_low': 0.4}
    """
    flat: dict[str, float] = {}
    for key, estimate in estimates.items():
        flat |= {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
    return {key: value for key, value in flat.items() if value == value}
