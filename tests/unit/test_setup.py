"""``make`` finds a Python that the locked requirements serve, or says what to do, and lets it keep bytecode."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = "#!/bin/sh\necho 1; exit 1\n"
"""A Python that is too old: it fails the check of its version."""


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "cat"):
        (tmp_path / "bin" / tool).symlink_to(f"/bin/{tool}")
    return tmp_path


def make_venv(folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [ROOT / "tools" / "venv.sh"],
        cwd=folder,
        env={"PATH": str(folder / "bin"), **variables},
        capture_output=True,
        text=True,
    )


def test_the_first_python_that_is_served_is_taken(folder: Path) -> None:
    program(folder / "bin", "python3.11", OLD)
    (folder / "bin" / "python3").symlink_to(sys.executable)
    done = make_venv(folder)
    assert done.returncode == 0, done.stderr
    version = subprocess.check_output([folder / ".venv" / "bin" / "python", "-V"], text=True)
    assert version == f"Python {sys.version.split()[0]}\n"


def test_without_python_uv_gets_one(folder: Path) -> None:
    program(folder / "bin", "python3", OLD)
    program(folder / "bin", "uv", f'#!/bin/sh\necho "$@" > asked\nexec "{sys.executable}" -m venv .venv\n')
    done = make_venv(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "asked").read_text() == "run --quiet --no-project --python 3.11 python -m venv .venv\n"
    assert "uv gets one" in done.stderr


def test_without_python_and_uv_the_ways_to_proceed_are_printed(folder: Path) -> None:
    program(folder / "bin", "python3", OLD)
    done = make_venv(folder)
    assert done.returncode == 1
    assert done.stderr.startswith("make: no Python 3.11, 3.12 or 3.13 on PATH. Any of these helps:\n")
    for way in ("apt-get install python3", "install uv", "PYTHON=/path/to/python3.11", "docker build"):
        assert way in done.stderr
    assert not (folder / ".venv").exists()


def test_a_python_that_was_named_is_taken_or_refused_by_name(folder: Path) -> None:
    (folder / "bin" / "python3").symlink_to(sys.executable)
    program(folder / "bin", "old", OLD)
    refusal = make_venv(folder, PYTHON=str(folder / "bin" / "old"))
    assert refusal.returncode == 1
    assert refusal.stderr == f"make: PYTHON={folder}/bin/old is not Python 3.11, 3.12 or 3.13\n"
    done = make_venv(folder, PYTHON=os.path.realpath(sys.executable))
    assert done.returncode == 0, done.stderr


def test_bytecode_is_kept_though_the_environment_forbids_it() -> None:
    makes = ["make", "--silent", "--eval", 'shown: ; @echo "<$$PYTHONDONTWRITEBYTECODE>"', "shown"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.check_output(makes, cwd=ROOT, env=environment, text=True) == "<>\n"
