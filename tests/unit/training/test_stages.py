"""Stages: a killed one begins anew, or goes on from what it left where it says that it can."""

from pathlib import Path

import pytest

from training.stages import Stages


def killed(directory: Path) -> None:
    (directory / "part").write_text("of the killed run")
    raise KeyboardInterrupt


@pytest.mark.parametrize("resumes", [False, True])
def test_a_stage_that_resumes_finds_what_was_left(tmp_path: Path, resumes: bool) -> None:
    stages = Stages(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stages.run("stage", killed, (), 1, resumes=resumes)
    found: list[str] = []

    def build(directory: Path) -> None:
        found.extend(path.name for path in directory.iterdir())

    stages.run("stage", build, (), 2, resumes=resumes)
    assert found == []  # made from something else
    assert stages.run("stage", build, (), 1, resumes=resumes).is_dir()
    assert found == (["part"] if resumes else [])
