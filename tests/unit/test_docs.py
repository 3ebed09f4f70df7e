"""The documentation keeps its promises: names exist, snippets run, links lead somewhere, figures are the code's."""

import importlib
import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pool
import pytest
import yaml

import infalign
from infalign import BestOfN, Cost, point
from infalign.cli import COMMANDS
from server.engines.overrides import FIXED, FIXED_DRAWS_ON_CPU, FIXED_ON_CPU, read_overrides
from server.settings import Settings
from tests.commands import run_here
from tools import reference
from tools.markdown import slug
from training.config import Config
from training.configs import SHIPPED

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = {DOCS / "reference" / name for name in reference.PAGES}
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(set(DOCS.rglob("*.md")) - GENERATED)]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
"""What people wrote, by its path. The other pages are the generator's (see test_site.py)."""
THEORY = TEXTS["docs/results/theory.md"]
SERVER = "# needs a running server"
"""First line of a snippet that tests/integration runs."""
ENGINES = "docs/guides/engines.md"
"""The page whose YAML is settings of engines."""
POOL = ROOT.parent / "shared" / "data" / "alpaca-eval-pool.jsonl.gz"


def exists(name: str) -> bool:
    """Whether a dotted name is an object of infalign, or of one of its modules."""
    found: object = infalign
    for part in name.removeprefix("infalign.").split("."):
        if part in getattr(found, "__dataclass_fields__", {}):
            return True
        try:
            found = getattr(found, part, None) or importlib.import_module(f"infalign.{part}")
        except ImportError:
            return False
    return True


def test_every_object_of_the_paper_is_where_the_table_says() -> None:
    table = re.findall(r"^\| [^|]+ \| (.+) \|$", THEORY.split("## 1.")[0], re.MULTILINE)
    named = re.findall(r"`([A-Za-z_.]+)(?:\([^`]*)?`", " ".join(table))
    assert {"Calibration.quantile", "BestOfN", "Policy.of", "optimal", "estimators.win_rate"} <= set(named)
    for name in named:
        assert exists(name), name


def blocks(language: str, page: str | None = None) -> list[str]:
    """The blocks of a language on one page, or on all."""
    text = TEXTS[page] if page else "\n".join(TEXTS.values())
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


ALONE = [(page, block) for page in TEXTS for block in blocks("python", page) if not block.startswith(SERVER)]


@pytest.mark.parametrize(("page", "snippet"), ALONE, ids=[page for page, _ in ALONE])
def test_the_snippets_that_need_no_server_run(
    page: str, snippet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "snippet.py").write_text(snippet, encoding="utf-8")
    runpy.run_path(str(tmp_path / "snippet.py"), run_name="__main__")
    written = capsys.readouterr().out
    assert written.strip()
    if page == "docs/results/theory.md":
        assert written.startswith("0.8715")


def test_the_frontier_commands_shown_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("infalign frontier ")]
    assert any(line in TEXTS["README.md"] for line in lines)
    written = ""
    for line in lines:
        done = run_here(*shlex.split(line, comments=True)[1:])
        assert done.returncode == 0, done.stderr
        written += done.stdout
    assert "optimal" in written
    assert (tmp_path / "frontier.svg").exists()


def anchors(page: Path) -> set[str]:
    """What a link to a page can name behind its #."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *sorted(GENERATED)], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_local_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s:]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_figures_are_what_the_code_draws() -> None:
    curves = json.loads((DOCS / "figures" / "frontier.json").read_text())["curves"]
    for row in curves[5::29]:
        if row["kl"]:
            again = point(row["transformation"], infalign.parse_procedure(row["procedure"]), kl=row["kl"])
            assert again.win_rate == pytest.approx(row["win_rate"], abs=1e-6)
    anchors = json.loads((DOCS / "figures" / "anchors.json").read_text())
    again = point("exp(10)", BestOfN(4), kl=1.0, anchors=anchors["anchors"][2])
    assert again.win_rate == pytest.approx(anchors["exp(10)"]["win_rate"][2], abs=1e-4)
    stopping = json.loads((DOCS / "figures" / "stopping.json").read_text())
    assert stopping["K = 16 anchors"][0] == pytest.approx(Cost(BestOfN(64), 0.3).expectation(16), abs=1e-4)


def test_a_pool_report_is_made_of_any_pool(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"responses": [{"score": float(score)} for score in rng.normal(size=13).round(1)]} for _ in range(40)]
    source = tmp_path / "pool.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    pool.main([str(source), "--output", str(tmp_path / "report.md")], standalone_mode=False)
    report = (tmp_path / "report.md").read_text()
    assert "40 prompts with 12 scored candidates" in report
    assert (tmp_path / "figures" / "report.svg").exists()
    assert "| best-of-4 |" in report
    assert "| best-of-8 |" not in report


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        '{"responses": [{"text": "x"}]}',
        '{"responses": []}',
        '{"responses": [{"score": "x"}]}',
        '{"responses": [{"score": 1}, {"score": NaN}, {"score": 2}, {"score": 3}]}',
        '{"responses": ' + "[" * 3000,
        "",
    ],
)
def test_a_pool_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    source = tmp_path / "pool.jsonl"
    source.write_text(text)
    with pytest.raises(infalign.InvalidValue, match="POOL: got"):
        pool.read_pool(source)


@pytest.mark.skipif(not POOL.exists(), reason="the real pool of candidates is not beside this checkout")
def test_the_pool_report_is_reproduced(tmp_path: Path) -> None:
    written = (DOCS / "results" / "pool.md").read_text()
    source = written.split("Candidates: ")[1].split("\n")[0]
    pool.main([str(POOL), "--output", str(tmp_path / "pool.md"), "--source", source], standalone_mode=False)
    assert (tmp_path / "pool.md").read_text() == written


def test_every_command_shown_has_the_options_it_is_shown_with() -> None:
    typed, sessions = ("\n".join(blocks(language)).replace("\\\n", " ").splitlines() for language in ("sh", "console"))
    typed += [re.sub(r"^\w+=\$\((.*)\)$", r"\1", line[2:]) for line in sessions if line.startswith("$ ")]
    calls = [re.search(r".*\binfalign (\w+ .*)", line.partition(" #")[0]) for line in typed]
    shown = [shlex.split(call[1]) for call in calls if call]
    assert {command for command, *_ in shown} == set(COMMANDS)
    for command, *arguments in shown:
        home, _ = COMMANDS[command]
        getattr(importlib.import_module(home), command).make_context(command, arguments)


def test_every_file_of_engine_settings_shown_is_one(tmp_path: Path) -> None:
    shown = blocks("yaml", ENGINES)
    assert shown
    for block in shown:
        (tmp_path / "engines.yaml").write_text(block)
        read_overrides(
            Settings(engines=tmp_path / "engines.yaml"), ("reward", "safety"), has_reference=True, has_scorer=True
        )


def test_every_fixed_engine_setting_shown_is_one() -> None:
    table = TEXTS[ENGINES].split("These settings cannot be changed")[1].split("##")[0]
    shown = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))
    assert shown
    assert set(shown) <= FIXED.keys() | FIXED_ON_CPU.keys() | FIXED_DRAWS_ON_CPU.keys()


def test_every_part_of_a_config_shown_is_one() -> None:
    demo = yaml.safe_load((SHIPPED / "demo.yaml").read_text(encoding="utf-8"))
    assert blocks("yaml")
    for block in set(blocks("yaml")) - set(blocks("yaml", ENGINES)):
        shown = yaml.safe_load(block)
        instead = {key: value for key, value in shown.items() if key in ("data", "model", "reward")}
        within = {
            key: demo.get(key, {}) | value if isinstance(value, dict) else value
            for key, value in shown.items()
            if key not in instead
        }
        Config.model_validate(demo | instead | within)


def test_every_reason_of_a_refusal_is_in_the_table_of_metrics() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "server").rglob("*.py"))
    calls = " ".join(re.findall(r"rejected\.labels\((.+)\)\.inc", code))
    table = TEXTS["docs/reference/metrics.md"].split("The reasons of")[1].split("##")[0]
    assert set(re.findall(r'"(\w+)"', calls)) == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
