"""Finds the code that a function depends on, by reading source files. Nothing is imported.

Starting from a function, every name is followed to its definition, through the modules of :data:`PACKAGES` and through
imports inside functions. Of a module, only what is reached counts: definitions by name, and statements that run when
the module is imported. An edit of a definition that is not reached changes nothing. Two kinds of names are taken
broadly. A module that is used other than by its attributes counts as a whole, and a name counts even where a local
variable hides it.

Data files (all but ``.py``) in the folders of these modules count too, and so do the names that are used of other
packages. Comments, docstrings and layout do not count.

Two things are not seen: names that are looked up as strings (``getattr(module, text)``), and what code outside the
packages does.
"""

import ast
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

PACKAGES = {name: Path(__file__).parents[1] / name for name in ("infalign", "training")}
"""Folders of the packages that names are followed through."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
"""Kinds of statements that define one name."""


@dataclass
class Code:
    """What a function depends on."""

    definitions: dict[str, str] = field(default_factory=dict)
    """Digests of definitions by ``module:name``. ``module:`` alone is what runs when the module is imported."""
    files: dict[str, str] = field(default_factory=dict)
    """Digests of data files by their path in the package."""
    external: set[str] = field(default_factory=set)
    """Dotted names that are used of other packages."""

    @property
    def libraries(self) -> set[str]:
        """Import names of the libraries that are used, except Python's own."""
        return {name.partition(".")[0] for name in self.external} - sys.stdlib_module_names

    @property
    def modules(self) -> set[str]:
        """Names of the modules that the code is in."""
        return {name.partition(":")[0] for name in self.definitions}


@dataclass(frozen=True)
class Uses:
    """What statements of a module say."""

    digest: str
    """Digest of the statements."""
    imported: list[str]
    """Dotted names that they use by imports."""
    own: list[str]
    """Names that they use of their own module."""


class Module:
    """A source file, with the statements and imports that bind each of its names.

    ``uses(name)`` says what the statements use that bind a name, ``uses(None)`` what those use that bind none.

    Args:
        name: Dotted name of the module.
        path: Its file.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.path = path
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.definitions: dict[str, list[ast.stmt]] = defaultdict(list)
        self.imports: dict[str, str] = {}
        self.effects: list[ast.stmt] = []
        self.uses = cache(self._uses)
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

    def _uses(self, bound: str | None) -> Uses:
        statements = self.effects if bound is None else self.definitions[bound]
        followed, added = set(), set()
        for statement in statements:
            imports = self.imports | self.imports_in(statement)
            for base, *attributes in _references(statement):
                if base in imports:
                    followed.add(".".join([imports[base], *attributes]))
                if base in self.definitions:
                    added.add(base)
        digest = hashlib.sha256("\n".join(map(ast.dump, statements)).encode()).hexdigest()
        return Uses(digest, sorted(followed), sorted(added))

    def imports_in(self, node: ast.AST) -> dict[str, str]:
        """Find what imports bind, anywhere in ``node``.

        Args:
            node: A statement.

        Returns:
            Dotted names of modules, or of what is in them, by the name that they are bound to.
        """
        names: dict[str, str] = {}
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import):
                for alias in inner.names:
                    first = alias.name.partition(".")[0]
                    names[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(inner, ast.ImportFrom):
                parents = self.package.split(".")
                base = parents[: len(parents) - inner.level + 1] if inner.level else []
                origin = ".".join([*base, *([inner.module] if inner.module else [])])
                names |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in inner.names}
        return names


class Sources:
    """The source files of packages. Each is read once.

    Args:
        packages: Folders by the name of the package.
    """

    def __init__(self, packages: Mapping[str, Path] = PACKAGES) -> None:
        self.packages = packages
        self.module = cache(self._module)

    def code(self, function: str) -> Code:
        """Find the code that a function depends on.

        Args:
            function: The function, written ``module:name``.

        Returns:
            The code. It is empty for a function outside the packages.
        """
        module, _, name = function.partition(":")
        code = Code()
        self._follow(f"{module}.{name}", code)
        return code

    def _module(self, name: str) -> Module | None:
        package, *rest = name.split(".")
        if package not in self.packages:
            return None
        path = self.packages[package].joinpath(*rest)
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.is_file():
            return None
        status = file.stat()
        return _read_module(name, file, status.st_mtime_ns, status.st_size)

    def _follow(self, dotted: str, code: Code) -> None:
        """Add what a dotted name stands for."""
        parts = dotted.split(".")
        if parts[0] not in self.packages:
            code.external.add(dotted)
            return
        length = 1
        while length < len(parts) and self.module(".".join(parts[: length + 1])):
            length += 1
        for parent in range(1, length + 1):
            self._enter(".".join(parts[:parent]), code)
        name = ".".join(parts[:length])
        module = self.module(name)
        if module is None:
            return
        if length < len(parts):
            self._add(name, parts[length], code)
        else:
            for bound in [*module.definitions, *module.imports]:
                self._add(name, bound, code)

    def _enter(self, name: str, code: Code) -> None:
        """Add what runs when a module is imported, and the data files beside it."""
        module = self.module(name)
        if module is None or f"{name}:" in code.definitions:
            return
        self._add_uses(name, "", module.uses(None), code)
        for file in module.path.parent.iterdir():
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                key = f"{module.package}/{file.name}"
                code.files[key] = hashlib.sha256(file.read_bytes()).hexdigest()

    def _add(self, name: str, bound: str, code: Code) -> None:
        """Add what a name is bound to in a module."""
        module = self.module(name)
        if module is None or f"{name}:{bound}" in code.definitions:
            return
        if bound in module.definitions:
            self._add_uses(name, bound, module.uses(bound), code)
        if bound in module.imports:
            self._follow(module.imports[bound], code)

    def _add_uses(self, name: str, bound: str, uses: Uses, code: Code) -> None:
        """Add statements of a module, and what the names in them stand for."""
        code.definitions[f"{name}:{bound}"] = uses.digest
        for dotted in uses.imported:
            self._follow(dotted, code)
        for own in uses.own:
            self._add(name, own, code)


@lru_cache(maxsize=1000)
def _read_module(name: str, file: Path, modified: int, size: int) -> Module:
    """Read a source file. One that has not changed since is read once in a process."""
    return Module(name, file)


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
