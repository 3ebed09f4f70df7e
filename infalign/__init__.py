"""Inference-aware alignment: calibrate the reward, transform it for the decoding procedure, know what to expect.

The method of InfAlign (arXiv 2412.19792) as arrays in and numbers out; no torch, no vLLM, no HTTP. Names are
imported when first used, so that the command line does not wait for NumPy and SciPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infalign.bundle import Bundle, read_bundle
    from infalign.bundling import NewPolicy, join_bundles, write_bundle
    from infalign.calibration import Calibration, CalibrationTable, CompressedCalibration, Estimator
    from infalign.combination import Combination
    from infalign.errors import BundleError, InfAlignError, InvalidValue, NotConverged
    from infalign.estimators import Estimate, over_prompts
    from infalign.frontier import Point, beta_for_kl, point
    from infalign.goodness import Goodness
    from infalign.manifest import Alignment
    from infalign.optimum import Optimal, optimal
    from infalign.policies import AnchoredPolicies, Policy
    from infalign.procedures import BestOfN, BestOfPoisson, FixedN, Procedure, Standard, WorstOfN, parse_procedure
    from infalign.stopping import Cost, Fixed, StoppingRule, Target
    from infalign.transforms import Exponential, Gaussian, Identity, Log, Transformation, parse_transformation

_HOMES = {
    "bundle": ("Bundle", "read_bundle"),
    "bundling": ("NewPolicy", "join_bundles", "write_bundle"),
    "calibration": ("Calibration", "CalibrationTable", "CompressedCalibration", "Estimator"),
    "combination": ("Combination",),
    "errors": ("BundleError", "InfAlignError", "InvalidValue", "NotConverged"),
    "estimators": ("Estimate", "over_prompts"),
    "frontier": ("Point", "beta_for_kl", "point"),
    "goodness": ("Goodness",),
    "manifest": ("Alignment",),
    "optimum": ("Optimal", "optimal"),
    "policies": ("AnchoredPolicies", "Policy"),
    "procedures": ("BestOfN", "BestOfPoisson", "FixedN", "Procedure", "Standard", "WorstOfN", "parse_procedure"),
    "stopping": ("Cost", "Fixed", "StoppingRule", "Target"),
    "transforms": ("Exponential", "Gaussian", "Identity", "Log", "Transformation", "parse_transformation"),
}

__all__ = [
    "Alignment",
    "AnchoredPolicies",
    "BestOfN",
    "BestOfPoisson",
    "Bundle",
    "BundleError",
    "Calibration",
    "CalibrationTable",
    "Combination",
    "CompressedCalibration",
    "Cost",
    "Estimate",
    "Estimator",
    "Exponential",
    "Fixed",
    "FixedN",
    "Gaussian",
    "Goodness",
    "Identity",
    "InfAlignError",
    "InvalidValue",
    "Log",
    "NewPolicy",
    "NotConverged",
    "Optimal",
    "Point",
    "Policy",
    "Procedure",
    "Standard",
    "StoppingRule",
    "Target",
    "Transformation",
    "WorstOfN",
    "beta_for_kl",
    "join_bundles",
    "optimal",
    "over_prompts",
    "parse_procedure",
    "parse_transformation",
    "point",
    "read_bundle",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"infalign.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
