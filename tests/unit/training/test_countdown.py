"""What a run says before each stage."""

import pytest

from training.countdown import Countdown
from training.stages import STAGES


def test_stages_are_counted_and_the_time_left_follows_from_what_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    countdown = Countdown()
    data, sft, reward, *_ = STAGES
    countdown.announce(data)
    countdown.expect({"sft": 10.0, "reward": 20.0, "ctrl": 20.0})
    countdown.announce(sft)
    countdown.finish(sft, 60.0)  # six times as long as it was estimated to take
    countdown.announce(reward)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("stage 1 of 10, data: ")
    assert lines[1] == f"stage 2 of 10, sft: {sft.purpose}"
    assert lines[2] == f"stage 3 of 10, reward: {reward.purpose} (about 4 min left)"
