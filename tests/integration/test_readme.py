"""The snippets of the README and the documentation that need a server run as they are printed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SERVER = "# needs a running server"
"""First line of a Python snippet that is run here. Those without it are run by tests/unit/test_docs.py."""


def snippets(language: str, mark: str) -> list[tuple[str, str]]:
    """The blocks of a language that contain a text, each with its page."""
    return [
        (page.relative_to(ROOT).as_posix(), block)
        for page in PAGES
        for block in re.findall(
            rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        if mark in block
    ]


CURL = [(page, block) for page, block in snippets("sh", "curl") if "/v1/adapters" not in block]  # needs a second bundle
PYTHON = snippets("python", SERVER)


@pytest.mark.parametrize(("page", "snippet"), CURL, ids=[page for page, _ in CURL])
def test_curl_examples(server: str, page: str, snippet: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    script = re.sub(r"http://127\.0\.0\.1:800[01]", server, snippet)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"quantile"' in done.stdout or '"expected_reward"' in done.stdout
    assert '"error"' not in done.stdout


@pytest.mark.parametrize(("page", "snippet"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_examples(server: str, page: str, snippet: str) -> None:
    program = re.sub(r"http://127\.0\.0\.1:800[01]", server, snippet)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    prose = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = "\n".join(block for _, block in snippets("sh", "make "))
    named = {*re.findall(r"`make ([a-z-]+)", prose), *re.findall(r"^make ([a-z-]+)", shown, re.MULTILINE)}
    assert {"serve", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_local_link_leads_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link
