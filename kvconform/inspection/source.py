"""Modules found by path and parsed; nothing of them, or of their parent packages, is executed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvconform import engine
from kvconform.errors import UsageError
from kvconform.target import ask_finders, existing_file, module_of, parse_source, split_spec, suggest

#: The kit's own modules under vLLM's names: what a connector derives from, where no vLLM is installed.
STANDIN = Path(engine.__file__).parent / "embedded" / "standin"
_FACTORY = "vllm.distributed.kv_transfer.kv_connector.factory"


@dataclass(frozen=True, eq=False)
class Module:
    """A module's source. ``package`` is what its relative imports are relative to."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """Dotted name of the package that the module is, or lies in; empty for a module of its own."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Place:
    """Where a name leads to: a source file, folders of a package, both, or neither (a module without Python source)."""

    file: Path | None = None
    folders: tuple[Path, ...] = ()


class Sources:
    """Modules by name, each parsed once.

    Args:
        directory: the current folder; looked into after Python's own search path, as pytest --kvconform does.
        root: the folder that a file's module name is relative to, looked into first.
    """

    def __init__(self, directory: Path, root: Path | None = None) -> None:
        self.directory = directory
        own = [] if root is None else [root]
        self._search_path = [*own, *(Path(entry) if entry else directory for entry in sys.path)]
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """The module, or None if it can't be found, or has no Python source that can be parsed."""
        if name not in self._modules:
            place = self.place(name)
            tree = None if place is None or place.file is None else _parsed(place.file)
            found = None if place is None or place.file is None or tree is None else Module(name, place.file, tree)
            self._modules[name] = found
        return self._modules[name]

    def add(self, module: Module) -> None:
        """Take a module that was found and parsed in another way."""
        self._modules[module.name] = module

    def place(self, name: str) -> Place | None:
        """Where a module is; None if there is none of that name."""
        if not all(part.isidentifier() for part in name.split(".")):
            # A relative import where there is no package.
            return None
        top, *rest = name.split(".")
        found = self._top_level(top)
        for part in rest:
            if found is None:
                return None
            found = _in_folders(part, found.folders)
        return found

    def _top_level(self, name: str) -> Place | None:
        loaded = getattr(sys.modules.get(name), "__path__", None)
        if name == "kvconform" and loaded is not None:
            # A checkout has two of its subpackages elsewhere (kvconform/__init__.py).
            folders = tuple(Path(entry) for entry in loaded)
            return Place(folders[0] / "__init__.py", folders)
        found = _in_folders(name, self._search_path)
        if found is None or found.file is None:
            # Editable installs have finders of their own.
            found = _by_finders(name) or found
        if found is None:
            found = _in_folders(name, [self.directory])
        return found or _in_folders(name, [STANDIN])


def _in_folders(name: str, folders: Sequence[Path]) -> Place | None:
    """As Python's path finder looks: the first package or module wins over folders without __init__.py."""
    portions: list[Path] = []
    for folder in folders:
        package = folder / name
        if (package / "__init__.py").is_file():
            return Place(package / "__init__.py", (package,))
        if (folder / f"{name}.py").is_file():
            return Place(folder / f"{name}.py")
        if any(folder.glob(f"{name}.*so")) or (folder / f"{name}.pyc").is_file():
            return Place()
        if package.is_dir():
            portions.append(package)
    return Place(None, tuple(portions)) if portions else None


def _by_finders(name: str) -> Place | None:
    found = ask_finders(name, None)
    if found is None:
        return None
    origin = found.origin or ""
    folders = tuple(Path(entry) for entry in found.submodule_search_locations or ())
    return Place(Path(origin) if origin.endswith(".py") else None, folders)


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError):
        return None


@dataclass(frozen=True)
class Named:
    """What a SPEC names: a class name in a module. ``registered`` tells of a name in vLLM's own registry."""

    module: Module
    class_name: str
    sources: Sources
    registered: bool = False


def read_spec(spec: str, directory: Path) -> Named:
    """Find and parse the module that a SPEC names.

    Args:
        spec: ``package.module:Class``, ``path/file.py:Class`` or ``vllm:RegisteredName``.
        directory: folder that a relative path is relative to.

    Raises:
        UsageError: malformed, no such module, file or registered name, or no valid Python.
    """
    kind, place, name = split_spec(spec)
    if kind == "file":
        path = existing_file(spec, directory / place)
        module_name, root = module_of(path)
        sources = Sources(directory, root)
        module = Module(module_name, path, parse_source(spec, path))
        sources.add(module)
    else:
        sources = Sources(directory)
        if kind == "registered":
            place, name = _registered(spec, name, sources)
        module = Module(place, file := _file_of(spec, place, sources), parse_source(spec, file))
        sources.add(module)
    _compile(spec, module)
    return Named(module, name, sources, kind == "registered")


def _file_of(spec: str, name: str, sources: Sources) -> Path:
    """The file of the module that the SPEC names, or a sentence on what was looked for."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        prefix, part = ".".join(parts[:count]), parts[count - 1]
        found = sources.place(prefix)
        if found is None:
            parent = ".".join(parts[: count - 1])
            where = f"on Python's search path ({len(sys.path)} entries) and in {sources.directory}"
            if parent:
                folders = (sources.place(parent) or Place()).folders
                if not folders:
                    raise UsageError(f"'{spec}': '{parent}' is a module, not a package, so it has no '{part}'.")
                where = f"in {', '.join(str(folder) for folder in folders)}"
            raise UsageError(
                f"'{spec}': there is no module '{prefix}': neither {part}.py nor {part}/__init__.py was found {where}; "
                "check the name, install the package into this environment, or give the path of the file."
            )
    if found is None or found.file is None:
        raise UsageError(
            f"'{spec}': module '{name}' has no Python source that could be read; name the module that has the class."
        )
    return found.file


def _registered(spec: str, name: str, sources: Sources) -> tuple[str, str]:
    """Module and class that vLLM's factory registers under a name, from its source."""
    factory = sources.module(_FACTORY)
    if factory is None or factory.path.is_relative_to(STANDIN):
        raise UsageError(f"'{spec}': vLLM is not installed in this environment, so it has no registered connectors.")
    known: dict[str, tuple[str, str]] = {}
    for node in ast.walk(factory.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            values = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if node.func.attr == "register_connector" and len(values) == len(node.args) == 3:
                known[values[0]] = values[1], values[2]
    if name not in known:
        raise UsageError(
            f"'{spec}': vLLM registers no connector as '{name}'; {suggest(name, sorted(known), 'registered are')}"
        )
    return known[name]


def _compile(spec: str, module: Module) -> None:
    """Some errors, such as two parameters of one name, are found only by Python's compiler. Nothing is run."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(module.tree, str(module.path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UsageError(f"'{spec}': {module.path}{line} is not valid Python: {error}.") from error
