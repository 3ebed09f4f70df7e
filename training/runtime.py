"""Settings of the process that make small-model training on CPU quick, and its libraries quiet."""

import ctypes
import json
import logging
import os
import shutil
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue
from training import processes
from training.config import Compute, Config

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
CHECKPOINTS = "checkpoints"


def prepare(config: Config | None = None) -> None:
    """Call once, before torch is used; the hub is asked for nothing unless ``config`` names something on it.

    Keeping freed memory instead of handing it back to the kernel takes a quarter off SFT's time: glibc's
    defaults map and unmap every activation anew.

    Raises:
        InvalidValue: the config reports to a service whose package is not installed.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
            libc.mallopt(M_TOP_PAD, 1 << 28)
    for service in config.compute.report_to if config else ():
        if find_spec(service) is None:
            raise InvalidValue("compute.report_to", service, f"an installed package (pip install {service})")
    if config is None or not config.from_hub:
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


def trainer_arguments(directory: Path, stage: str, seed: int, compute: Compute, batch: int) -> dict[str, Any]:
    """What every TRL trainer here is told alike: where it runs, how it splits ``batch``, when it saves a checkpoint.

    Raises:
        InvalidValue: the batch cannot be split evenly.
    """
    import torch

    sharing = processes.count()
    each = min(compute.sequences or batch, batch // sharing)
    if not each or batch % (each * sharing):
        shares = f"a divisor of the batch of {batch} in {stage}, shared by {sharing} processes"
        raise InvalidValue("compute.sequences", compute.sequences, shares)
    return {
        "output_dir": str(directory / CHECKPOINTS),
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": batch // (each * sharing),
        "use_cpu": not torch.cuda.is_available(),
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
