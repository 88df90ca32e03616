"""The connector under test: from what was typed to a class.

Three forms are understood: ``package.module:Class``, ``path/to/file.py:Class`` and ``vllm:RegisteredName``.

:func:`parse_target` answers early and without importing the module, so that a typing error costs no seconds and no
import of vLLM. :meth:`Target.load` imports it, in the process that is about to test it.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import pkgutil
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal

from kvconform.errors import EngineUnusableError, UsageError

Kind = Literal["module", "file", "registered"]

FORMS = "package.module:Class, path/to/file.py:Class or vllm:RegisteredName"
_FACTORY = "vllm.distributed.kv_transfer.kv_connector.factory"
_BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"


@dataclass(frozen=True)
class Target:
    """One connector to test. Names only; nothing is imported until :meth:`load`."""

    #: What was typed.
    spec: str
    kind: Kind
    #: Name that vLLM imports (``kv_connector_module_path``); None for a name of vLLM's own registry.
    module_path: str | None
    #: Class name, or the registered name (``kv_connector``).
    class_name: str
    #: Stands for the target in test ids and reports; the same on every machine.
    id: str
    #: Folder that has to be on ``sys.path`` for the import; None when it already is.
    search_path: Path | None = None

    def load(self) -> type[Any]:
        """Import and return the connector class, a subclass of vLLM's ``KVConnectorBase_V1``.

        Raises:
            UsageError: vLLM or the module cannot be imported, there is no such class or registered name, or it is not
                a connector class.
        """
        base: type[Any] = _import_from_vllm(self.spec, _BASE, "KVConnectorBase_V1")
        found = self._registered() if self.module_path is None else self._attribute(self.module_path, base)
        if not isinstance(found, type):
            raise UsageError(
                f"{self.spec}: '{self.class_name}' is {_describe(found)}, "
                "but a connector is a class: name the class itself."
            )
        if not issubclass(found, base):
            raise UsageError(
                f"{self.spec}: class {found.__qualname__} is not a subclass of vLLM's KVConnectorBase_V1 "
                f"({_BASE}), which every V1 KV connector has to be: derive it from that class or name another one."
            )
        return found

    def _attribute(self, module_path: str, base: type[Any]) -> Any:
        module = self._import(module_path)
        try:
            return getattr(module, self.class_name)
        except AttributeError:
            connectors = [
                name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)
            ]
            own = [name for name in connectors if vars(module)[name] is not base]
            raise UsageError(
                f"{self.spec}: module '{module_path}' has no attribute '{self.class_name}'; "
                f"{suggest(self.class_name, own, 'its connector classes are')}"
            ) from None

    def _import(self, module_path: str) -> Any:
        if self.search_path is not None and str(self.search_path) not in sys.path:
            sys.path.insert(0, str(self.search_path))
        try:
            return importlib.import_module(module_path)
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{self.spec}: module '{module_path}' cannot be imported: {_sentence(error)}; "
                f"it has to be importable where the tests run (try: python -c 'import {module_path}')."
            ) from error

    def _registered(self) -> Any:
        factory = _import_from_vllm(self.spec, _FACTORY, "KVConnectorFactory")
        # There is no public list of the registered names (vllm 0.21 to 0.33, factory.py).
        names: list[str] = sorted(factory._registry)
        if self.class_name not in names:
            close = difflib.get_close_matches(self.class_name, names, n=3, cutoff=0.5)
            hint = f"did you mean {_alternatives(close)}? " if close else ""
            raise UsageError(
                f"{self.spec}: vLLM has no connector registered as '{self.class_name}'; {hint}"
                f"Registered are {', '.join(names)}; a connector of your own is named package.module:Class."
            )
        try:
            return factory.get_connector_class_by_name(self.class_name)
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{self.spec}: vLLM cannot import its connector '{self.class_name}': {_sentence(error)}; "
                "install what it needs."
            ) from error


def parse_target(spec: str, directory: Path) -> Target:
    """Read one SPEC and check what can be checked without importing the connector's module.

    Args:
        spec: what was typed.
        directory: folder that a relative file path is relative to; modules are looked up there too when Python's own
            search path does not have them, because the ``pytest`` command, unlike ``python -m pytest``, does not put
            the current folder on it.

    Raises:
        UsageError: malformed, no such module, file or class.
    """
    kind, place, name = split_spec(spec)
    if kind == "registered":
        return Target(spec, "registered", None, name, f"vllm:{name}")
    if kind == "file":
        return _parse_file(spec, directory / place, name)
    return _parse_module(spec, place, name, directory)


def split_spec(spec: str) -> tuple[Kind, str, str]:
    """The form of a SPEC, what stands before its last colon, and the name after it; nothing is looked up.

    Raises:
        UsageError: malformed.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        example = f"{spec}:MyConnector" if not colon and spec else "my_package.my_module:MyConnector"
        raise UsageError(f"'{spec}' does not name a connector class: expected {FORMS}, for example {example}.")
    if place == "vllm":
        return "registered", place, name
    if place.endswith(".py") or "/" in place or "\\" in place:
        return "file", place, name
    if not all(part.isidentifier() for part in place.split(".")):
        raise UsageError(f"'{spec}': '{place}' is not a module name: expected {FORMS}.")
    return "module", place, name


def _parse_module(spec: str, module: str, name: str, directory: Path) -> Target:
    found, search_path = _find(spec, module, None), None
    if found is None and _find(spec, module.partition(".")[0], [str(directory)]) is not None:
        found, search_path = _find(spec, module, [str(directory)]), directory
    if found is None:
        raise UsageError(f"'{spec}': {_why_not_found(spec, module, directory)}")
    if found.origin is not None and found.origin.endswith(".py"):
        check_name(spec, Path(found.origin), parse_source(spec, Path(found.origin)), name)
    return Target(spec, "module", module, name, f"{module}:{name}", search_path)


def _parse_file(spec: str, path: Path, name: str) -> Target:
    path = existing_file(spec, path)
    module, root = module_of(path)
    if not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(
            f"'{spec}': vLLM imports a connector by module name, and '{module}' cannot be one: "
            "rename the file to letters, digits and underscores."
        )
    top = module.partition(".")[0]
    existing = _find(spec, top, None)
    if existing is not None and existing.origin is None and existing.submodule_search_locations is not None:
        existing = None  # only a namespace package (a folder without code) has the name: a real file wins
    if existing is not None and not _is_inside(existing, path):
        where = existing.origin or "the interpreter itself"
        raise UsageError(
            f"'{spec}': vLLM would import this file by the name '{top}', which already belongs to {where}: "
            "rename the file (or its package), or name the connector as package.module:Class."
        )
    check_name(spec, path, parse_source(spec, path), name)
    return Target(spec, "file", module, name, f"{module}:{name}", None if existing is not None else root)


def existing_file(spec: str, path: Path) -> Path:
    """The file that ``spec`` names, resolved.

    Raises:
        UsageError: there is none.
    """
    if not path.is_file():
        nearby = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UsageError(
            f"'{spec}': there is no file {path}; {suggest(path.name, nearby, 'the Python files there are')}"
        )
    return path.resolve()


def module_of(path: Path) -> tuple[str, Path]:
    """Dotted module name of a file and the folder it is relative to: the first one upwards without ``__init__.py``."""
    parts = [path.stem] if path.stem != "__init__" else []
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.parent != folder:
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), folder


def _is_inside(existing: ModuleSpec, path: Path) -> bool:
    """Whether the module that has the name already is the very file or package that was meant."""
    if existing.submodule_search_locations is not None:
        return any(path.is_relative_to(Path(place).resolve()) for place in existing.submodule_search_locations)
    return existing.origin is not None and Path(existing.origin).resolve() == path


def _find(spec: str, module: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Spec of a module, without importing its parent packages where possible (a parent may pull in vLLM)."""
    found: ModuleSpec | None = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        loaded = sys.modules.get(name)
        found = getattr(loaded, "__spec__", None) or ask_finders(name, path)
        if found is None:
            return _find_by_import(spec, module) if "." in name else None
        # A package may have extended its own search path while it was imported, as this one does.
        path = list(getattr(loaded, "__path__", None) or found.submodule_search_locations or ())
    return found


def ask_finders(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Spec of a module, without importing anything; ``path`` is that of its parent package."""
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        found: ModuleSpec | None = None
        # A namespace package inside another one looks for its parent among the imported ones (_NamespacePath).
        with contextlib.suppress(KeyError):
            found = find_spec(name, path) if find_spec is not None else None
        if found is not None:
            return found
    return None


def _find_by_import(spec: str, module: str) -> ModuleSpec | None:
    """The last resort: parents are imported, because only they know where their submodules are."""
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        # The parent is not importable from here, or the missing module is one that the parent wants.
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            return None
        parent = module.rpartition(".")[0]
        raise UsageError(f"'{spec}': package '{parent}' cannot be imported: {_sentence(error)}.") from error
    except (Exception, SystemExit) as error:
        parent = module.rpartition(".")[0]
        raise UsageError(f"'{spec}': package '{parent}' cannot be imported: {_sentence(error)}.") from error


def _why_not_found(spec: str, module: str, directory: Path) -> str:
    parent, found = "", None
    for part in module.split("."):
        name = f"{parent}.{part}" if parent else part
        if _find(spec, name, None) is None and _find(spec, name, [str(directory)]) is None:
            break
        parent = name
        found = _find(spec, name, None) or _find(spec, name, [str(directory)])
    missing = module[len(parent) :].lstrip(".").partition(".")[0]
    if found is None:
        siblings = [info.name for info in pkgutil.iter_modules([str(directory), *sys.path])]
        close = _did_you_mean(missing, siblings)
        return (
            f"there is no module '{missing}' on Python's search path or in {directory}; {close}"
            "install the package into this environment, or give the path of the file."
        )
    if found.submodule_search_locations is None:
        return f"'{parent}' is a module, not a package, so it has no '{missing}'; expected {FORMS}."
    siblings = [info.name for info in pkgutil.iter_modules(found.submodule_search_locations)]
    return f"package '{parent}' has no module '{missing}'; {suggest(missing, siblings, 'it has')}"


def parse_source(spec: str, path: Path) -> ast.Module:
    """The source of the module that ``spec`` names.

    Raises:
        UsageError: it cannot be read, or is not valid Python.
    """
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise UsageError(f"'{spec}': {path} cannot be read: {error.strerror or error}.") from error
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UsageError(f"'{spec}': {path}{line} is not valid Python: {_sentence(error)}.") from error


def check_name(spec: str, path: Path, tree: ast.Module, name: str) -> None:
    """Look the class up in the source; silent where only an import can tell.

    Raises:
        UsageError: no statement of the module binds the name.
    """
    names, complete = _top_level_names(tree.body)
    if name not in names and complete:
        classes = sorted(k for k, is_class in names.items() if is_class)
        raise UsageError(f"'{spec}': {path} has no class '{name}'; {suggest(name, classes, 'its classes are')}")


def _top_level_names(body: Iterable[ast.stmt]) -> tuple[dict[str, bool], bool]:
    """Names that a module's statements bind, whether by a class statement, and whether these can be all."""
    names: dict[str, bool] = {}
    complete = True
    for node in body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = True
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.setdefault(node.name, False)
            complete &= node.name != "__getattr__"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                complete &= alias.name != "*"
                names.setdefault(alias.asname or alias.name.partition(".")[0], False)
        else:
            # Bindings inside if, try, with, for and assignments count too: the question is only "can it be there?"
            inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            inner += [s for h in ast.iter_child_nodes(node) if isinstance(h, ast.ExceptHandler) for s in h.body]
            inner_names, inner_complete = _top_level_names(inner)
            names.update({k: v for k, v in inner_names.items() if v or k not in names})
            complete &= inner_complete
            for child in ast.walk(node):
                if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                    names.setdefault(child.id, False)
                elif isinstance(child, ast.Call) and _may_bind(child):
                    complete = False
    return names, complete


def _may_bind(call: ast.Call) -> bool:
    """globals()[...] = ..., setattr(module, ...), exec(...) bind names that no statement shows."""
    return isinstance(call.func, ast.Name) and call.func.id in {"globals", "vars", "setattr", "exec"}


def _import_from_vllm(spec: str, module: str, name: str) -> Any:
    try:
        # What vLLM and torch warn about while they are imported is no news to who tests a connector with -W error.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name == "vllm":
            raise UsageError(
                f"{spec}: vLLM is not installed in this environment, and a connector is tested with the real one: "
                "pip install vllm (without a GPU, see 'Installing vLLM' in kvconform's README)."
            ) from error
        raise EngineUnusableError(f"{spec}: the installed vLLM cannot be imported: {_sentence(error)}.") from error
    except (Exception, SystemExit) as error:
        raise EngineUnusableError(f"{spec}: the installed vLLM cannot be imported: {_sentence(error)}.") from error


def _sentence(error: BaseException) -> str:
    """Type and first line of an exception, without a final full stop."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _describe(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _alternatives(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    return f"did you mean {_alternatives(close)}? Otherwise " if close else ""


def suggest(name: str, known: Sequence[str], listing: str) -> str:
    """What to do about an unknown name: the close ones, or all when there are few, or nothing to offer."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    if close:
        return f"did you mean {_alternatives(close)}?"
    if not known:
        return "there is none to choose from: check the name."
    shown = sorted(set(known))
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return f"{listing} {', '.join(shown[:12])}{more}."
