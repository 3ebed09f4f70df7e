"""Inference-aware alignment: calibrate the reward, transform it for the decoding procedure, know what to expect.

The method of InfAlign (arXiv 2412.19792) as arrays in and numbers out; no torch, no vLLM, no HTTP. Names are
imported when first used, so that the command line does not wait for NumPy and SciPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infalign.bundle import Bundle, read_bundle, write_bundle
    from infalign.calibration import Calibration, CalibrationTable, Estimator
    from infalign.errors import BundleError, InfAlignError, InvalidValue
    from infalign.procedures import BestOfN, Procedure, Standard, WorstOfN, parse_procedure
    from infalign.transforms import Exponential, Identity, Log, Transformation, parse_transformation

_HOMES = {
    "bundle": ("Bundle", "read_bundle", "write_bundle"),
    "calibration": ("Calibration", "CalibrationTable", "Estimator"),
    "errors": ("BundleError", "InfAlignError", "InvalidValue"),
    "procedures": ("BestOfN", "Procedure", "Standard", "WorstOfN", "parse_procedure"),
    "transforms": ("Exponential", "Identity", "Log", "Transformation", "parse_transformation"),
}

__all__ = [
    "BestOfN",
    "Bundle",
    "BundleError",
    "Calibration",
    "CalibrationTable",
    "Estimator",
    "Exponential",
    "Identity",
    "InfAlignError",
    "InvalidValue",
    "Log",
    "Procedure",
    "Standard",
    "Transformation",
    "WorstOfN",
    "parse_procedure",
    "parse_transformation",
    "read_bundle",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"infalign.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
