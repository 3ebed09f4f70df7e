"""Bundles of directories that look like models."""

from pathlib import Path
from typing import Any

import numpy as np

from infalign import Alignment, CalibrationTable, Combination, Estimator, NewPolicy, write_bundle
from infalign.bundle import SHARED_PARTS
from infalign.files import directory_digest
from infalign.manifest import CalibrationRecord, SamplingLaw
from infalign.reproduction import RewardExample, save_examples
from infalign.storage import save_calibration

LAW = SamplingLaw(max_tokens=16)

TEMPLATE_SHA = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # of "hello"

MEASURED = {"kl": 0.5, "win_rate_best-of-4": 0.8}

ALIGNED = {"procedure": "best-of-4", "transformation": "exp(10)", "beta": 0.3, "measured": MEASURED}


def parts(root: Path, reward: str = "reward") -> dict[str, Path]:
    """Directories that look like models to the bundle, and a calibration made for them."""
    for name in ("policy", "reference", "reward", "evaluation"):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "config.json").write_text(f'{{"model": "{name}"}}')
        (root / name / "chat_template.jinja").write_text("hello")
    (root / "reward" / "weights").write_text(reward)
    table = CalibrationTable(("ab" * 16, "cd" * 16), np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]]))
    record = CalibrationRecord(
        reference=directory_digest(root / "reference"),
        reward_model=directory_digest(root / "reward"),
        chat_template=TEMPLATE_SHA,
        sampling=LAW,
        samples=3,
        prompts=2,
        estimator=Estimator.JEFFREYS,
        resolution=1e-4,
    )
    save_calibration(root / "calibration", Combination((table,)), record)
    save_examples(root / "calibration", [example("reward")])
    return {name: root / name for name in (*SHARED_PARTS, "policy", "evaluation")}


def example(*models: str) -> RewardExample:
    prompt = ({"role": "user", "content": "Why?\u2028\n"},)
    return RewardExample(prompt=prompt, response="So.\x85", rewards=dict.fromkeys(models, 0.1))


def write(target: Path, sources: dict[str, Path], adapter: bool = False, **changes: Any) -> None:
    fields = {
        "name": "demo",
        "created": "2026-01-01T00:00:00+00:00",
        "sampling": LAW,
        "libraries": {"infalign": "0"},
    } | changes
    policy = NewPolicy(
        sources["policy"],
        sources["evaluation"],
        adapter,
        Alignment(**ALIGNED),
    )
    shared = {part: sources[part] for part in SHARED_PARTS}
    write_bundle(target, shared, {fields["name"]: policy}, "# card\n", **fields)
