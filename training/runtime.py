"""Prepares the process for training, and runs TRL's trainers."""

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
from infalign.quiet import keep_libraries_quiet
from training import processes
from training.machine import has_gpu, keep_freed_memory
from training.memory import Pass, fit_sequences

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints."""


def prepare_process(report_to: Sequence[str] = (), from_hub: bool = False) -> None:
    """Set up libraries for training small models quickly and quietly. Call it once, before torch is used.

    Args:
        report_to: Services that metrics are sent to.
        from_hub: Whether something is to be fetched from the hub. If not, libraries do not ask the hub for anything.

    Raises:
        InvalidValue: The package of a service is not installed.
    """
    keep_libraries_quiet()
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
    """Return the arguments that all of TRL's trainers share.

    They say where the trainer runs, how it splits the batch and when it saves checkpoints.

    Args:
        directory: Directory of the stage.
        stage: Name of the stage.
        seed: Seed of the trainer.
        batch: Rows of a step, over all processes.
        need: What a pass takes.

    Raises:
        InvalidValue: The batch cannot be split evenly.
        TooLittleMemory: Not even one row fits into memory.
    """
    compute, each = need.compute, fit_sequences(directory, stage, batch, need, processes.count())
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


def run_trainer(trainer: Any) -> None:
    """Train, starting from the last complete checkpoint if there is one, and then remove the checkpoints.

    Args:
        trainer: One of TRL's trainers.
    """
    from training.progress import Progress  # it imports transformers, which must wait for prepare_process

    checkpoints = Path(trainer.args.output_dir)
    complete = [path for path in checkpoints.glob("checkpoint-*") if _is_complete(path)]
    last = max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Progress):
                callback.close()
    trainer.accelerator.wait_for_everyone()
    if processes.is_first():
        shutil.rmtree(checkpoints, ignore_errors=True)


def _is_complete(checkpoint: Path) -> bool:
    """Say whether a checkpoint has the trainer's state, which is written last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
