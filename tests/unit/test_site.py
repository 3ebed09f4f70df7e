"""The documentation as a site: its reference is what the code says, and it is built without a warning or a network."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import infalign
from tools import reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_reference_is_what_the_code_says(name: str) -> None:
    written = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert written == reference.PAGES[name](), "make reference writes it anew"


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sorted(re.findall(r": (\S+\.md)$", menu, re.MULTILINE)) == sorted(pages)


def test_docstrings_have_sections_that_the_site_knows() -> None:
    for path in (ROOT / "infalign").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^ +Example:$", text, re.MULTILINE), f"{path.name}: Examples:, also for a single one"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built."""
    if missing := [name for name in ("mkdocs", "material", "mkdocstrings") if not find_spec(name)]:
        pytest.skip(f"the site is not built: {', '.join(missing)} not installed (the extra dev has them)")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_page_and_a_search(site: Path) -> None:
    built = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")}
    assert {path.relative_to(DOCS) for path in DOCS.rglob("*.md")} <= built
    assert "best-of-n" in (site / "search" / "search_index.js").read_text(encoding="utf-8")


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=\"?([^\"\s>]+)", text)
        assert not [address for address in loaded if "//" in address], page


def test_the_api_shows_every_public_name(site: Path) -> None:
    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'<h\d id="infalign\.(\w+\.\w+)"', text))
    assert {name.split(".")[1] for name in shown} >= set(infalign.__all__)
    assert not re.search(r":(?:class|func|meth):", text)
