"""The progress bar of draws by vLLM."""

from functools import partial
from typing import Any

import pytest

from training.progress import Finished, make_bar


def test_vllm_advances_the_bar_of_a_stage_over_several_batches(capsys: pytest.CaptureFixture[str]) -> None:
    with make_bar("rollouts", 8) as bar:
        make: Any = partial(Finished, bar)
        for _ in range(2):
            finished = make(total=2, desc="Processed prompts", dynamic_ncols=True, postfix="")
            for _ in range(2):
                assert 1 / finished.format_dict["elapsed"] > 0
                finished.postfix = "est. speed"
                finished.update(2)
            finished.refresh()
            finished.close()
            assert finished.n == 4
        assert bar.n == 8
    shown = capsys.readouterr().err
    assert "rollouts 100%" in shown
    assert "est. speed" not in shown
