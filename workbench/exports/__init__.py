"""Exports campaigns to the log formats of other tools."""

from collections.abc import Callable, Mapping
from pathlib import Path

from workbench.criteria import Flags
from workbench.exports.garak import write_garak
from workbench.exports.inspect_log import write_inspect
from workbench.report.figures import Report
from workbench.report.table import SampleTable

Export = Callable[[Path, Report, SampleTable, Mapping[str, Flags]], None]
"""Writes a file: path, figures, samples, and which samples are hits by each criterion."""
EXPORTS: dict[str, tuple[str, Export]] = {
    "garak": ("garak.report.jsonl", write_garak),
    "inspect": ("inspect.json", write_inspect),
}
"""File name and function of each export."""
