"""The code that a function depends on, read from the source files: nothing is imported, nobody keeps a list.

From a function, every name is followed to its definition, through the modules of :data:`PACKAGES`, imports inside
functions included. What counts of a module is what is reached: its definitions by name, and whatever else runs when
it is imported. An edit of a definition that is not reached changes nothing. Two kinds of names are taken broadly: a
module that is used other than by its attributes counts whole, and a name counts even where a local variable hides it.

Beside the code count the data files (all but ``.py``) in the folders of the modules that are reached, and the names
that it uses of other packages. Comments, docstrings and layout do not count.

Not seen: names that are looked up in strings (``getattr(module, text)``), and what code outside these packages does.
"""

import ast
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGES = {name: Path(__file__).parents[1] / name for name in ("infalign", "training")}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass
class Code:
    """What a function depends on."""

    definitions: dict[str, str] = field(default_factory=dict)
    """Digests by ``module:name``; ``module:`` alone is what runs when the module is imported."""
    files: dict[str, str] = field(default_factory=dict)
    """Digests of data files, by their path in the package."""
    external: set[str] = field(default_factory=set)
    """What is used of other packages, by dotted names."""

    @property
    def libraries(self) -> set[str]:
        """The import names of the libraries that are used, those of Python aside."""
        return {name.partition(".")[0] for name in self.external} - sys.stdlib_module_names

    @property
    def modules(self) -> set[str]:
        """The modules that any of it is in."""
        return {name.partition(":")[0] for name in self.definitions}


class Module:
    """A source file: what its top level binds to which statements and imports."""

    def __init__(self, name: str, path: Path) -> None:
        self.path = path
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.definitions: dict[str, list[ast.stmt]] = defaultdict(list)
        self.imports: dict[str, str] = {}
        self.effects: list[ast.stmt] = []
        tree = _WithoutDocstrings().visit(ast.parse(path.read_text(encoding="utf-8")))
        for statement in tree.body:
            names = set(_names(statement))
            for bound in names:
                self.definitions[bound].append(statement)
            if not isinstance(statement, FUNCTIONS):
                imports = self.imports_in(statement)
                self.imports |= imports
                if not names and not imports:
                    self.effects.append(statement)

    def imports_in(self, node: ast.AST) -> dict[str, str]:
        """What the imports anywhere in ``node`` bind: dotted names of modules, or of what is in them."""
        found: dict[str, str] = {}
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import):
                for alias in inner.names:
                    first = alias.name.partition(".")[0]
                    found[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(inner, ast.ImportFrom):
                parents = self.package.split(".")
                base = parents[: len(parents) - inner.level + 1] if inner.level else []
                origin = ".".join([*base, *([inner.module] if inner.module else [])])
                found |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in inner.names}
        return found


class Sources:
    """Source files below the folders of ``packages``, each read once."""

    def __init__(self, packages: Mapping[str, Path] = PACKAGES) -> None:
        self.packages = packages
        self.module = cache(self._module)

    def code(self, function: str) -> Code:
        """What ``function``, written as ``module:name``, depends on; empty for one outside the packages."""
        module, _, name = function.partition(":")
        found = Code()
        self._follow(f"{module}.{name}", found)
        return found

    def _module(self, name: str) -> Module | None:
        package, *rest = name.split(".")
        if package not in self.packages:
            return None
        path = self.packages[package].joinpath(*rest)
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return Module(name, file) if file.is_file() else None

    def _follow(self, dotted: str, found: Code) -> None:
        """Add what a dotted name stands for."""
        parts = dotted.split(".")
        if parts[0] not in self.packages:
            found.external.add(dotted)
            return
        length = 1
        while length < len(parts) and self.module(".".join(parts[: length + 1])):
            length += 1
        for parent in range(1, length + 1):
            self._enter(".".join(parts[:parent]), found)
        name = ".".join(parts[:length])
        module = self.module(name)
        if module is None:
            return
        if length < len(parts):
            self._add(name, parts[length], found)
        else:
            for bound in [*module.definitions, *module.imports]:
                self._add(name, bound, found)

    def _enter(self, name: str, found: Code) -> None:
        """Add what happens when a module is imported, and the data files beside it."""
        module = self.module(name)
        if module is None or f"{name}:" in found.definitions:
            return
        found.definitions[f"{name}:"] = _digest(module.effects)
        for statement in module.effects:
            self._add_names(name, module, statement, found)
        for file in module.path.parent.iterdir():
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                key = f"{module.package}/{file.name}"
                found.files[key] = hashlib.sha256(file.read_bytes()).hexdigest()

    def _add(self, name: str, bound: str, found: Code) -> None:
        """Add what ``bound`` is in the module ``name``."""
        module = self.module(name)
        if module is None or f"{name}:{bound}" in found.definitions:
            return
        if bound in module.definitions:
            found.definitions[f"{name}:{bound}"] = _digest(module.definitions[bound])
            for statement in module.definitions[bound]:
                self._add_names(name, module, statement, found)
        if bound in module.imports:
            self._follow(module.imports[bound], found)

    def _add_names(self, name: str, module: Module, statement: ast.stmt, found: Code) -> None:
        """Add what the names in a statement stand for."""
        imports = module.imports | module.imports_in(statement)
        for base, *attributes in _references(statement):
            if base in imports:
                self._follow(".".join([imports[base], *attributes]), found)
            if base in module.definitions:
                self._add(name, base, found)


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def _names(statement: ast.stmt) -> Iterator[str]:
    """What a statement at the top level of a module binds, imports aside."""
    if isinstance(statement, FUNCTIONS):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, FUNCTIONS):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _references(node: ast.AST) -> Iterator[list[str]]:
    """Every name that is read in ``node``, with the attributes that are read of it."""
    attributes: list[str] = []
    inner = node
    while isinstance(inner, ast.Attribute):
        attributes.insert(0, inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        yield [inner.id, *attributes]
        return
    for child in ast.iter_child_nodes(node):
        yield from _references(child)


def _digest(statements: list[ast.stmt]) -> str:
    return hashlib.sha256("\n".join(map(ast.dump, statements)).encode()).hexdigest()
