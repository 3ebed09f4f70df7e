"""What a function depends on is read from the sources: enough, or stale results are kept, and no more than that."""

import shutil
from pathlib import Path

import pytest

from training import stages
from training.sources import PACKAGES, Code, Sources

STAGES = {stage.name: stage.build for stage in stages.STAGES}
SOURCES = Sources()


@pytest.mark.parametrize(
    ("stage", "modules"),
    [
        ("data", ("training.data.corpus", "training.data.judge", "training.data.files", "training.tokenizer")),
        ("sft", ("training.models", "training.optimisers", "training.runtime", "training.memory", "training.progress")),
        ("reward", ("training.scorer", "training.models", "infalign.estimators", "infalign.templates")),
        ("rollouts", ("training.workers", "training.shards", "training.sampler", "training.scorer", "infalign.files")),
        ("calibrate", ("infalign.calibration", "infalign.combination", "training.shards")),
        ("ctrl", ("infalign.transforms", "infalign.calibration", "infalign.policies", "infalign.optimum")),
        ("ctrl", ("training.solvers.ctrl", "training.solvers.objectives", "training.solvers.gradient")),
        ("ctrl", ("training.solvers.rloo", "training.solvers.regression", "training.solvers.settling")),
        ("evaluate", ("training.evaluation.report", "infalign.plots", "infalign.frontier", "training.data.judge")),
    ],
)
def test_a_stage_depends_on_what_it_uses(stage: str, modules: tuple[str, ...]) -> None:
    assert set(modules) <= SOURCES.code(STAGES[stage]).modules


@pytest.mark.parametrize(
    ("stage", "package"),
    [
        *((stage, "training.evaluation") for stage in STAGES if stage not in ("evaluate", "judge")),
        *((stage, "training.solvers") for stage in STAGES if stage != "ctrl"),
        *((stage, "infalign.transforms") for stage in ("data", "sft", "reward", "rollouts", "calibrate")),
        *((stage, "infalign.plots") for stage in STAGES if stage != "evaluate"),
        *((stage, module) for stage in STAGES for module in ("training.pipeline", "training.planning", "training.cli")),
    ],
)
def test_a_stage_does_not_depend_on_what_it_cannot_reach(stage: str, package: str) -> None:
    reached = SOURCES.code(STAGES[stage]).modules
    assert not {module for module in reached if module == package or module.startswith(f"{package}.")}


def test_libraries_are_those_that_the_code_imports() -> None:
    assert {"torch", "transformers", "trl", "peft", "datasets"} <= SOURCES.code(STAGES["sft"]).libraries
    assert {"numpy", "scipy"} <= SOURCES.code(STAGES["ctrl"]).libraries
    assert "trl" not in SOURCES.code(STAGES["evaluate"]).libraries


def test_data_files_beside_the_modules_count() -> None:
    assert "training.data/helpdesk.yaml" in SOURCES.code(STAGES["data"]).files


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the packages, to be edited."""
    for name, directory in PACKAGES.items():
        shutil.copytree(directory, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def code(copy: Path, stage: str) -> Code:
    return Sources({name: copy / name for name in PACKAGES}).code(STAGES[stage])


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("infalign/transforms.py", "-np.log1p(-np", "-2 * np.log1p(-np", {"ctrl", "evaluate"}),
        ("infalign/errors.py", "class InfAlignError(Exception):", "class InfAlignError(ValueError):", set(STAGES)),
        ("training/evaluation/report.py", '"| "', '"|  "', {"evaluate"}),
        ("training/solvers/settling.py", "0.02, 6", "0.03, 6", {"ctrl"}),
        ("training/data/helpdesk.yaml", "\n", "\n\n", set(STAGES) - {"calibrate"}),
        ("training/optimisers.py", "0.95, 5", "0.95, 6", {"sft", "reward", "scorer", "ctrl"}),
        ("training/ctrl.py", "import asdict", "import astuple as asdict", {"ctrl"}),
        ("infalign/plots.py", "matplotlib.figure", "matplotlib .figure", set()),  # layout
        ("training/sft.py", '"""Stage ``sft``', '# A comment\n"""Stage ``sft``, said otherwise', set()),
    ],
)
def test_an_edit_changes_the_stages_that_reach_it(copy: Path, file: str, old: str, new: str, changed: set[str]) -> None:
    before = {stage: code(copy, stage) for stage in STAGES}
    path = copy / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert {stage for stage in STAGES if code(copy, stage) != before[stage]} == changed


def test_a_new_import_is_followed_from_then_on(copy: Path) -> None:
    path = copy / "training" / "sft.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("    set_seed(seed)\n", "    from training import noise\n\n    noise.add(seed)\n", 1))
    module = copy / "training" / "noise.py"
    module.write_text("import scipy\nSIZE = 1\ndef add(seed):\n    scipy.ones(SIZE)\ndef unused():\n    pass\n")
    before = code(copy, "sft")
    assert {"training.noise:add", "training.noise:SIZE"} <= before.definitions.keys()
    assert "training.noise:unused" not in before.definitions
    assert "scipy" in before.libraries
    module.write_text(module.read_text().replace("SIZE = 1", "SIZE = 2"))
    assert code(copy, "sft") != before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("from training.made import b\n\ndef f():\n    return b.g()\n", {"training.made.b:g"}),
        ("import training.made.b\n\ndef f():\n    return training.made.b.g()\n", {"training.made.b:g"}),
        ("import training.made.b as c\n\ndef f():\n    return c.g()\n", {"training.made.b:g"}),
        ("from training.made.b import g as h\n\ndef f(x=h):\n    return x\n", {"training.made.b:g"}),
        ("from .b import g\n\ndef f():\n    return g()\n", {"training.made.b:g"}),
        ("from . import b\n\n@b.g\ndef f():\n    pass\n", {"training.made.b:g"}),
        ("from training.made import g\n\ndef f():\n    return g()\n", {"training.made.b:g"}),
        ("from training.made import b\n\ndef f():\n    return getattr(b, 'g')\n", {"training.made.b:g"}),
        (
            "try:\n    from training.made.b import g\nexcept ImportError:\n    g = None\n\ndef f():\n    g()\n",
            {"training.made.a:g", "training.made.b:g"},
        ),
        ("from training.made import b\n\nb.g()\n\ndef f():\n    pass\n", {"training.made.b:g"}),
        (
            "X = 1\nX += 1\n\nclass A:\n    y = X\n\ndef f() -> A:\n    pass\n",
            {"training.made.a:A", "training.made.a:X"},
        ),
    ],
)
def test_every_way_to_name_something_is_followed(tmp_path: Path, text: str, names: set[str]) -> None:
    made = tmp_path / "training" / "made"
    made.mkdir(parents=True)
    (made.parent / "__init__.py").touch()
    (made / "__init__.py").write_text("from training.made.b import g\n")
    (made / "b.py").write_text("def g():\n    pass\n")
    (made / "a.py").write_text(text)
    found = Sources({"training": tmp_path / "training"}).code("training.made.a:f")
    assert names <= found.definitions.keys()
