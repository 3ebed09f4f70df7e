"""The README's snippets run as they are printed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def blocks(language: str, mark: str = "") -> list[str]:
    return [text for found, text in BLOCKS if found == language and mark in text]


@pytest.mark.parametrize("snippet", blocks("sh", "curl"))
def test_curl_examples(server: str, snippet: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    script = snippet.replace("http://127.0.0.1:8000", server)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"quantile"' in done.stdout
    assert '"error"' not in done.stdout


@pytest.mark.parametrize("snippet", blocks("python"))
def test_python_examples(server: str, snippet: str) -> None:
    program = snippet.replace("http://127.0.0.1:8000", server)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"serve", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_local_link_leads_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link
