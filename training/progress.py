"""A progress bar for a trainer, and its figures as JSON lines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from training import processes


class Progress(TrainerCallback):  # type: ignore[misc]
    """One bar per stage with the figures worth watching; all are logged to ``metrics.jsonl``."""

    def __init__(self, stage: str, watched: tuple[str, ...], metrics: Path) -> None:
        self.stage, self.watched, self.metrics = stage, watched, metrics
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = bar(self.stage, state.max_steps, state.global_step)
        if self.metrics.exists():  # of a killed run: what it logged after its last checkpoint is logged again
            rows = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= state.global_step]
            self.metrics.write_text("".join(kept), encoding="utf-8")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}, default=float) + "\n")
        if self.bar:
            self.bar.set_postfix({key: f"{float(logs[key]):.3f}" for key in self.watched if key in logs})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar:
            self.bar.close()


def attach(trainer: Any, stage: str, watched: tuple[str, ...], directory: Path, report_to: Sequence[str] = ()) -> None:
    """Give ``trainer`` our bar and metrics file in place of its printed dictionaries."""
    trainer.remove_callback(PrinterCallback)
    if not processes.is_first():
        return
    trainer.add_callback(Progress(stage, watched, directory / "metrics.jsonl"))
    if "tensorboard" in report_to:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(directory / "tensorboard"))))


def bar(stage: str, total: int, done: int = 0) -> "tqdm[Any]":
    """A bar named after its stage."""
    layout = "{desc} {percentage:3.0f}%|{bar:30}| {elapsed}<{remaining} {postfix}"
    return tqdm(total=total, initial=done, desc=f"{stage:>10}", bar_format=layout, mininterval=1.0)
