"""A run of the pipeline that takes seconds."""

import os
import shutil
import sys
from pathlib import Path

INFALIGN = str(Path(sys.executable).parent / "infalign")

TINY = {
    "data.helpdesk.answers": 1,
    "data.helpdesk.pairs": 1,
    "data.helpdesk.held_out": 60,
    "rollouts.samples": 4,
    "rollouts.max_tokens": 16,
    "ctrl.steps": 12,
    "ctrl.prompts": 2,
    "ctrl.generations": 2,
    "compute.save_every": 2,
    "evaluation.draws": 16,
    "model.scratch.hidden": 32,
    "model.scratch.layers": 1,
}


def command(output: Path) -> list[str]:
    overrides = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    return [INFALIGN, "train", "demo", *overrides, "--output", str(output)]


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"INFALIGN_HOME": str(home), "OMP_NUM_THREADS": "1"}


def copy_stages(home: Path, target: Path, *stages: str) -> None:
    """Give a run in another home the stages that are done in this one."""
    for stage in stages:
        [made] = home.glob(f"runs/demo/{stage}-*")
        shutil.copytree(made, target / "runs" / "demo" / made.name)
