"""Settings of the process that make small-model training on CPU quick, and its libraries quiet."""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue
from training import processes
from training.machine import has_gpu, keep_freed_memory
from training.memory import Pass, sequences

CHECKPOINTS, MEMORY = "checkpoints", "memory.json"


def prepare(report_to: Sequence[str] = (), from_hub: bool = False) -> None:
    """Call once, before torch is used; the hub is asked for nothing unless something is to come ``from_hub``.

    Raises:
        InvalidValue: a service in ``report_to`` has no package that is installed.
    """
    keep_freed_memory(True)
    for service in report_to:
        if find_spec(service) is None:
            raise InvalidValue("compute.report_to", service, f"an installed package (pip install {service})")
    if not from_hub:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def trainer_arguments(directory: Path, stage: str, seed: int, batch: int, need: Pass) -> dict[str, Any]:
    """What every TRL trainer here is told alike: where it runs, how it splits ``batch``, when it saves a checkpoint.

    What was chosen is written into ``memory.json``.

    Raises:
        InvalidValue: the batch cannot be split evenly.
        TooLittleMemory: not even one of the batch fits into memory.
    """
    compute, each = need.compute, sequences(stage, batch, need, processes.count())
    if processes.is_first():
        chosen = {"batch": batch, "sequences": each, "longest": need.length, "estimated_bytes": need.bytes(each)}
        (directory / MEMORY).write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    return {
        "output_dir": str(directory / CHECKPOINTS),
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": batch // (each * processes.count()),
        "use_cpu": not has_gpu(),
        "bf16": compute.precision == "bfloat16",
        "gradient_checkpointing": compute.gradient_checkpointing,
        "adam_beta2": 0.98,
        "save_strategy": "steps",
        "save_steps": compute.save_every,
        "save_total_limit": 1,
        "run_name": stage,
        "report_to": [service for service in compute.report_to if service != "tensorboard"] or "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": seed,
    }


def train(trainer: Any) -> None:
    """Train, from the last checkpoint that a killed run left whole, and remove the checkpoints at the end."""
    checkpoints = Path(trainer.args.output_dir)
    whole = [found for found in checkpoints.glob("checkpoint-*") if _is_whole(found)]
    last = max(whole, key=lambda found: int(found.name.rpartition("-")[2]), default=None)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    trainer.accelerator.wait_for_everyone()
    if processes.is_first():
        shutil.rmtree(checkpoints, ignore_errors=True)


def _is_whole(checkpoint: Path) -> bool:
    """The trainer's state is what a checkpoint is completed with."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
