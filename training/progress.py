"""Progress bars of the stages, and the metrics of a trainer as JSON lines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from training import processes
from training.interrupts import raise_interrupt


class Progress(TrainerCallback):  # type: ignore[misc]
    """A trainer callback that shows a bar and logs all metrics to ``metrics.jsonl``.

    Args:
        stage: Name of the stage, which the bar shows.
        figures: Names of the metrics that the bar shows.
        metrics: File that all metrics are appended to.
    """

    def __init__(self, stage: str, figures: tuple[str, ...], metrics: Path) -> None:
        self.stage, self.figures, self.metrics = stage, figures, metrics
        self.bar: Bar | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar, and drop what a killed run logged after its last checkpoint, since it is logged again."""
        self.bar = make_bar(self.stage, state.max_steps, state.global_step)
        drop_rows_after(self.metrics, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the bar."""
        if self.bar:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Append the metrics to the file and show some of them."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}, default=float) + "\n")
        if self.bar:
            self.bar.set_postfix({key: f"{float(logs[key]):.3f}" for key in self.figures if key in logs})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, if there is one. A bar that is left open writes a line when Python ends."""
        if self.bar:
            self.bar.close()


def attach_progress(
    trainer: Any, stage: str, figures: tuple[str, ...], directory: Path, report_to: Sequence[str] = ()
) -> None:
    """Replace the trainer's printed dictionaries by a bar and a metrics file.

    Args:
        trainer: One of TRL's trainers.
        stage: Name of the stage.
        figures: Names of the metrics that the bar shows.
        directory: Directory of the stage.
        report_to: Services that metrics are sent to as well.
    """
    trainer.remove_callback(PrinterCallback)
    if not processes.is_first():
        return
    trainer.add_callback(Progress(stage, figures, directory / "metrics.jsonl"))
    if "tensorboard" in report_to:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(directory / "tensorboard"))))


def drop_rows_after(metrics: Path, step: int) -> None:
    """Drop what a killed run logged after its last checkpoint, since it is logged again.

    Args:
        metrics: File of JSON lines, which need not exist.
        step: Step of the checkpoint.
    """
    if metrics.exists():
        rows = [row for row in read_rows(metrics) if row["step"] <= step]
        metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(metrics: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, but for a last line that was not written to its end."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Bar(tqdm):  # type: ignore[type-arg]  # tqdm has no type parameters when it runs
    """A progress bar that raises an interrupt again that something dropped."""

    def update(self, n: float | None = 1) -> bool | None:
        """Advance the bar by ``n`` steps.

        Raises:
            KeyboardInterrupt: An interrupt came and something dropped it.
        """
        raise_interrupt()
        return super().update(n)


class Finished:
    """What vLLM takes for a progress bar of its own. It advances another bar when responses are finished.

    Args:
        bar: The bar that is advanced.
        options: What vLLM's bar would show.
    """

    def __init__(self, bar: Bar, **options: Any) -> None:
        self._bar, self.n, self.postfix = bar, 0, ""

    @property
    def format_dict(self) -> dict[str, Any]:
        """The state of the bar, of which vLLM reads the time."""
        return {"elapsed": max(self._bar.format_dict["elapsed"], 1e-3)}

    def update(self, n: int) -> None:
        """Advance the bar by ``n`` responses.

        Raises:
            KeyboardInterrupt: An interrupt came and something dropped it.
        """
        self.n += n
        self._bar.update(n)

    def refresh(self) -> None:
        """Do nothing. The bar that is advanced shows itself."""

    def close(self) -> None:
        """Do nothing. The bar goes on with the next prompts."""


def make_bar(stage: str | None, total: int, initial: int = 0) -> Bar:
    """Make a progress bar.

    Args:
        stage: Name of the stage; None shows no bar.
        total: Number of steps.
        initial: Number of steps that are already done.
    """
    layout = "{desc} {percentage:3.0f}%|{bar:30}| {elapsed}<{remaining} {postfix}"
    return Bar(
        total=total,
        initial=initial,
        desc=f"{stage or '':>10}",
        bar_format=layout,
        mininterval=1.0,
        disable=stage is None,
    )
