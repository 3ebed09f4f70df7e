"""Inference-aware alignment: calibrate the reward, transform it for the decoding procedure, predict the win rate.

This is the method of InfAlign (arXiv 2412.19792) on NumPy arrays, without torch, vLLM or HTTP. Names are imported on
first use, so that the command line does not wait for NumPy and SciPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infalign.budgets import allocate_draws
    from infalign.bundle import Bundle, read_bundle
    from infalign.bundling import NewPolicy, join_bundles, write_bundle
    from infalign.calibration import Calibration, CompressedCalibration, Estimator
    from infalign.combination import Combination
    from infalign.controlled import Controlled
    from infalign.cost import Cost
    from infalign.errors import BundleError, InfAlignError, InvalidValue, NotConverged
    from infalign.estimators import Estimate, over_prompts
    from infalign.frontier import Point, point
    from infalign.goodness import Goodness
    from infalign.judge_record import JudgeRecord
    from infalign.live import live_transformation
    from infalign.manifest import Alignment
    from infalign.mixture import Mixture
    from infalign.optimum import Optimal, optimal
    from infalign.overoptimisation import Support, find_fall, find_support, score_curve
    from infalign.parsing import parse_decoding, parse_mixture, parse_procedure, parse_transformation
    from infalign.poisson import BestOfPoisson
    from infalign.policies import AnchoredPolicies, Policy, beta_for_kl
    from infalign.pooling import PooledQuantiles
    from infalign.prefix_scorer import PrefixScorer
    from infalign.procedures import BestOfN, FixedN, Procedure, Standard, WorstOfN
    from infalign.quantile_law import QuantileLaw
    from infalign.rehearsal import Rehearsal
    from infalign.rejection import Rejection, RejectionRule, TargetRejection
    from infalign.rejection_fit import fit_rejection, fit_share
    from infalign.stopping import Fixed, StoppingRule, Target
    from infalign.table import CalibrationTable
    from infalign.transformation import Transformation
    from infalign.transforms import Exponential, Gaussian, Identity, Log

_HOMES = {
    "budgets": ("allocate_draws",),
    "bundle": ("Bundle", "read_bundle"),
    "bundling": ("NewPolicy", "join_bundles", "write_bundle"),
    "calibration": ("Calibration", "CompressedCalibration", "Estimator"),
    "combination": ("Combination",),
    "controlled": ("Controlled",),
    "cost": ("Cost",),
    "errors": ("BundleError", "InfAlignError", "InvalidValue", "NotConverged"),
    "estimators": ("Estimate", "over_prompts"),
    "frontier": ("Point", "point"),
    "goodness": ("Goodness",),
    "judge_record": ("JudgeRecord",),
    "manifest": ("Alignment",),
    "mixture": ("Mixture",),
    "live": ("live_transformation",),
    "optimum": ("Optimal", "optimal"),
    "overoptimisation": ("Support", "find_fall", "find_support", "score_curve"),
    "parsing": ("parse_decoding", "parse_mixture", "parse_procedure", "parse_transformation"),
    "poisson": ("BestOfPoisson",),
    "policies": ("AnchoredPolicies", "Policy", "beta_for_kl"),
    "pooling": ("PooledQuantiles",),
    "procedures": ("BestOfN", "FixedN", "Procedure", "Standard", "WorstOfN"),
    "stopping": ("Fixed", "StoppingRule", "Target"),
    "prefix_scorer": ("PrefixScorer",),
    "quantile_law": ("QuantileLaw",),
    "rehearsal": ("Rehearsal",),
    "rejection": ("Rejection", "RejectionRule", "TargetRejection"),
    "rejection_fit": ("fit_rejection", "fit_share"),
    "table": ("CalibrationTable",),
    "transformation": ("Transformation",),
    "transforms": ("Exponential", "Gaussian", "Identity", "Log"),
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
    "Controlled",
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
    "JudgeRecord",
    "Log",
    "Mixture",
    "NewPolicy",
    "NotConverged",
    "Optimal",
    "Point",
    "Policy",
    "PooledQuantiles",
    "PrefixScorer",
    "Procedure",
    "QuantileLaw",
    "Rehearsal",
    "Rejection",
    "RejectionRule",
    "Standard",
    "StoppingRule",
    "Support",
    "Target",
    "TargetRejection",
    "Transformation",
    "WorstOfN",
    "allocate_draws",
    "beta_for_kl",
    "find_fall",
    "find_support",
    "fit_rejection",
    "fit_share",
    "join_bundles",
    "live_transformation",
    "optimal",
    "over_prompts",
    "parse_decoding",
    "parse_mixture",
    "parse_procedure",
    "parse_transformation",
    "point",
    "read_bundle",
    "score_curve",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"infalign.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
