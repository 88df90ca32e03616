"""What the installed vLLM has and the stand-in has not, by name; run it to write the stand-in's table anew."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "kvconform/engine/embedded"
STANDIN = PACKAGE / "standin"
TABLE = PACKAGE / "uncovered.json"
# What typing leaves in a generic class in some versions of Python.
_OF_TYPING = frozenset({"_is_protocol"})


def modules() -> list[str]:
    """Names of the stand-in's public modules."""
    found = []
    for file in sorted(STANDIN.rglob("*.py")):
        parts = file.relative_to(STANDIN).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            found.append(".".join(parts))
    return found


def names_of(module: Any) -> set[str]:
    """Public names, lazy ones too, and the module's own private ones; no modules that happen to be imported there."""
    names = {*dir(module), *getattr(module, "__all__", ())}
    return {name for name in names if not name.startswith("__") and not _is_module(vars(module).get(name))}


def _is_module(value: Any) -> bool:
    return isinstance(value, type(sys))


def attributes_of(cls: type) -> set[str]:
    """Attributes of instances: those of the class, its fields, and what its methods assign to ``self``."""
    found = {name for name in dir(cls) if not name.startswith("__")}
    for base in cls.__mro__:
        found |= set(getattr(base, "__dataclass_fields__", {})) | set(getattr(base, "__annotations__", {}))
        found |= _assigned(base)
    return found - _OF_TYPING


def _assigned(cls: type) -> set[str]:
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if not file or not cls.__module__.startswith("vllm"):
        return set()
    found: set[str] = set()
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            for inner in ast.walk(node):
                if (
                    isinstance(inner, ast.Attribute)
                    and isinstance(inner.ctx, ast.Store)
                    and isinstance(inner.value, ast.Name)
                    and inner.value.id == "self"
                ):
                    found.add(inner.attr)
    return found


_TREES: dict[str, ast.Module] = {}


def _tree(file: str) -> ast.Module:
    if file not in _TREES:
        _TREES[file] = ast.parse(Path(file).read_text())
    return _TREES[file]


def surface() -> dict[str, Any]:
    """Names of the modules and attributes of their classes, of whatever ``import vllm`` gives."""
    result: dict[str, Any] = {"modules": {}, "classes": {}}
    for name in modules():
        module = importlib.import_module(name)
        result["modules"][name] = sorted(names_of(module))
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == name:
                result["classes"][f"{name}.{value.__qualname__}"] = sorted(attributes_of(value))
    return result


def standin_surface() -> dict[str, Any]:
    """The stand-in's, from a process of its own."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from kvconform.engine.embedded import coverage, finder\n"
        "coverage.uncovered_names = finder.uncovered_names = lambda name: frozenset()\n"
        "coverage.uncovered_attributes = finder.uncovered_attributes = lambda name: frozenset()\n"
        "finder.install()\n"
        "import uncovered; print(json.dumps(uncovered.surface()))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def modules_in(folder: Path) -> set[str]:
    """Names of the modules and packages in a package's folder."""
    return {file.stem for file in folder.glob("*.py")} - {"__init__"} | {
        file.parent.name for file in folder.glob("*/*.py")
    }


def missing_modules() -> dict[str, list[str]]:
    """By package, the modules of vLLM that the stand-in lacks."""
    import vllm

    real = Path(vllm.__file__).parent
    found = {}
    for file in sorted(STANDIN.rglob("__init__.py")):
        package = file.parent.relative_to(STANDIN)
        lacking = modules_in(real / package.relative_to("vllm")) - modules_in(file.parent)
        if lacking:
            found[".".join(package.parts)] = sorted(lacking)
    return found


def missing() -> dict[str, dict[str, list[str]]]:
    """What the stand-in lacks."""
    from kvconform.api import prepare

    own = standin_surface()
    prepare("cpu")
    real = surface()
    names_and_attributes = {
        kind: {
            name: lacking
            for name, names in real[kind].items()
            if name in own[kind] and (lacking := sorted(set(names) - set(own[kind][name])))
        }
        for kind in ("modules", "classes")
    }
    return {"packages": missing_modules(), **names_and_attributes}


if __name__ == "__main__":
    TABLE.write_text(json.dumps(missing(), indent=0) + "\n")
