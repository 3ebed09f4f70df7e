import json
from pathlib import Path

from training.curves import draw_curves


def test_watched_figures_are_drawn_and_kept_as_numbers(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 1, "loss": 2.0, "lr": 0.1},
        {"step": 2, "loss": 1.0, "beta": 0.3},
        {"step": 2, "train_runtime": 3.0},
    ]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = draw_curves(metrics)
    assert picture is not None
    assert picture.read_text().count('<g id="axes_') == 1
    assert json.loads(picture.with_suffix(".json").read_text()) == {"loss": [[1, 2.0], [2, 1.0]]}


def test_nothing_to_draw_is_no_error(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0}\n')
    assert draw_curves(metrics) is None
    assert not metrics.with_name("curves.svg").exists()
