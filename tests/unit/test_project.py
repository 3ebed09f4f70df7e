"""The project keeps its promises: imports point one way, models bring no code, locks name no registry, and so on."""

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import FIRST, SERVED

ROOT = Path(__file__).parents[2]
ALLOWED = {"infalign": set(), "server": {"infalign"}, "training": {"infalign"}, "workbench": {"infalign"}}


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    others = set(ALLOWED) - {package} - ALLOWED[package]
    for path in (ROOT / package).rglob("*.py"):
        assert not imports_of(path) & others, path


LAYERS = (
    {"errors", "settings", "concurrency"},
    {"observability"},
    {"access"},
    {"engines"},
    {"protocol"},
    {"decoding"},
    {"middleware"},
    {"routes"},
    {"app"},
    {"assembly"},
    {"connections", "options", "process", "cli", "ray"},
)
"""What is in server/, each layer built on those before it."""
MOST_ENTRIES = 18
"""What one can take in at a glance when one opens server/."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, paths: Mapping[str, Path]) -> Iterator[str]:
    """What a module imports, at its top or within a function; ``paths`` are the modules that there are."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" not in paths:
                    yield str(node.module)


def module_graph() -> dict[str, set[str]]:
    paths = {module_name(path): path for package in ALLOWED for path in (ROOT / package).rglob("*.py")}
    return {name: paths.keys() & set(imports(path, paths)) - {name} for name, path in paths.items()}


def test_no_modules_import_each_other_in_a_circle() -> None:
    order = list(TopologicalSorter(module_graph()).static_order())  # raises CycleError, which names the modules
    assert "server.app" in order


def test_the_server_imports_downwards() -> None:
    level = {entry: number for number, layer in enumerate(LAYERS) for entry in layer}
    for module, others in module_graph().items():
        for other in others:
            if module.startswith("server.") and other.startswith("server."):
                assert level[other.split(".")[1]] <= level[module.split(".")[1]], f"{module} imports {other}"


def test_the_server_is_taken_in_at_a_glance() -> None:
    entries = {path.name for path in (ROOT / "server").iterdir()} - {"__pycache__"}
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


ENGINES = {"AsyncEngineArgs", "EngineArgs", "LLM"}


def loads(call: ast.Call) -> bool:
    """Whether a call loads a model or tokenizer by an API that can run code which comes with it."""
    match call.func:
        case ast.Attribute(value=ast.Name(id=owner), attr="from_pretrained"):
            return owner.startswith("Auto")
        case ast.Name(id=name):
            return name in ENGINES
    return False


@pytest.mark.parametrize("package", ["server", "training"])
def test_nothing_that_is_loaded_brings_code(package: str) -> None:
    calls = [
        (path, node)
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and loads(node)
    ]
    assert calls
    for path, call in calls:
        trusted = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "trust_remote_code"]
        assert trusted == ["False"], f"{path}:{call.lineno}"


@pytest.mark.parametrize("lock", ["cpu.txt", "dev.txt", "gpu.txt", "torch-cpu.txt"])
def test_locks_are_hashed_and_name_no_registry(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    assert "://" not in text
    for requirement in re.split(r"\n(?=[a-z0-9])", text):
        assert re.match(r"[a-z0-9._-]+==\S+ ", requirement), requirement
        assert "--hash=sha256:" in requirement


def test_the_torch_of_the_first_install_is_the_locked_one() -> None:
    first = (ROOT / "requirements" / "torch-cpu.txt").read_text().splitlines()[:2]
    assert "\n".join(first) in (ROOT / "requirements" / "cpu.txt").read_text()


def test_development_adds_to_what_serving_takes() -> None:
    serving, development = (
        set(re.findall(r"^[a-z0-9._-]+==\S+", (ROOT / "requirements" / lock).read_text(), re.MULTILINE))
        for lock in ("cpu.txt", "dev.txt")
    )
    assert serving < development


def test_the_container_copies_what_exists() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert copied
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source


def test_no_test_imports_another_test() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) (tests\.\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not [name for name in imports if name.rpartition(".")[2].startswith("test_")], path


def test_one_process_runs_all_files_that_share_the_server() -> None:
    files = (ROOT / "tests" / "integration").glob("test_*.py")
    sharing = {
        path.relative_to(ROOT).as_posix()
        for path in files
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and {"server", "client"} & {argument.arg for argument in node.args.args}
    }
    assert all((ROOT / file).is_file() for file in FIRST)
    assert sorted(sharing) == sorted(SERVED)
