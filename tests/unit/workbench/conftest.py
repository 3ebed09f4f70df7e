from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.app import create_app
from server.settings import Settings
from tests.commands import run_here
from tests.fakes import FakeEngines, fake_served
from tests.http_server import serve_app
from workbench.samples import Sample


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    exit_code: int
    output: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("home")
        patch.setenv("INFALIGN_HOME", str(path))
        yield path


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with serve_app(create_app(Settings(max_n=16), FakeEngines(), fake_served())) as url:
        yield url


@pytest.fixture
def run() -> Run:
    """Runs a command line of ``infalign``."""

    def call(*arguments: object) -> Outcome:
        done = run_here(*map(str, arguments))
        return Outcome(done.returncode, done.stdout + done.stderr)

    return call


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.txt"
    path.write_text("".join(f"question {number}\n" for number in range(6)))
    return path


def make_sample(index: int, prompt_id: str = "p") -> Sample:
    return Sample(
        prompt_id=prompt_id,
        index=index,
        prompt=prompt_id,
        text="So.",
        reward=float(index),
        quantile=0.5,
        quantile_low=0.4,
        quantile_high=0.6,
        scope="prompt",
        anchors=16,
        model="demo",
        bundle="a-b",
    )
