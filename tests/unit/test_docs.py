"""The documentation keeps its promises: names exist, snippets run, links lead somewhere, figures are the code's."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pool
import pytest
import yaml

import infalign
from infalign import BestOfN, Cost, point
from infalign.cli import COMMANDS
from training.config import Config
from training.configs import SHIPPED

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
METHOD = (DOCS / "method.md").read_text(encoding="utf-8")
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
    table = re.findall(r"^\| [^|]+ \| (.+) \|$", METHOD.split("## 1.")[0], re.MULTILINE)
    named = re.findall(r"`([A-Za-z_.]+)(?:\([^`]*)?`", " ".join(table))
    assert {"Calibration.quantile", "BestOfN", "Policy.of", "optimal", "estimators.win_rate"} <= set(named)
    for name in named:
        assert exists(name), name


def test_the_methods_snippet_runs() -> None:
    for snippet in re.findall(r"^```python\n(.*?)^```", METHOD, re.MULTILINE | re.DOTALL):
        done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("0.8715")


def test_the_readmes_frontier_commands_run(tmp_path: Path) -> None:
    blocks = re.findall(
        r"^```sh\n\. \.venv/bin/activate\n(infalign frontier.*?)^```",
        (ROOT / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert blocks
    script = f'infalign() {{ "{sys.executable}" -c "from infalign.cli import main; main()" "$@"; }}\n' + "".join(blocks)
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "optimal" in done.stdout
    assert (tmp_path / "frontier.svg").exists()


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_local_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


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
    assert stopping["K = 16 anchors"][0] == pytest.approx(Cost(BestOfN(64), 0.3).expected(16), abs=1e-4)


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
    written = (DOCS / "pool.md").read_text()
    source = written.split("Candidates: ")[1].split("\n")[0]
    pool.main([str(POOL), "--output", str(tmp_path / "pool.md"), "--source", source], standalone_mode=False)
    assert (tmp_path / "pool.md").read_text() == written


def blocks(language: str) -> list[str]:
    """The blocks of a language in README and docs."""
    pages = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_command_shown_has_the_options_it_is_shown_with() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    shown = [
        shlex.split(found[1], comments=True) for line in lines if (found := re.search(r"\binfalign (\w+ .*)", line))
    ]
    assert {command for command, *_ in shown} == {"evaluate", "frontier", "join", "key", "serve", "train"}
    for command, *arguments in shown:
        home, _ = COMMANDS[command]
        getattr(importlib.import_module(home), command).make_context(command, arguments)


def test_every_part_of_a_config_shown_is_one() -> None:
    demo = yaml.safe_load((SHIPPED / "demo.yaml").read_text(encoding="utf-8"))
    assert blocks("yaml")
    for block in blocks("yaml"):
        shown = yaml.safe_load(block)
        instead = {key: value for key, value in shown.items() if key in ("data", "model", "reward")}
        within = {key: demo.get(key, {}) | value for key, value in shown.items() if key not in instead}
        Config.model_validate(demo | instead | within)
