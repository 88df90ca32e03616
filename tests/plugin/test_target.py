"""SPECs: what is accepted, and the one sentence for what is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvconform.errors import UsageError
from kvconform.target import Target, parse_target


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with modules whose names nobody else has; what a test imports from it is forgotten afterwards."""
    files = {
        "kvt_single.py": "class Mine: pass\nclass Mint: pass\n",
        "kvt_package/__init__.py": "",
        "kvt_package/sub/__init__.py": "raise RuntimeError('only an import can tell')",
        "kvt_package/sub/connector.py": "class Deep: pass",
        "kvt_dynamic.py": "from os.path import *\n",
        "kvt_assigned.py": "class Base: pass\nif True:\n    Alias = Base\n"
        "try:\n    pass\nexcept ImportError:\n    class Late: pass\n",
        "kvt_globals.py": "globals()['Hidden'] = int\n",
        "kvt_syntax.py": "class Mine(:\n",
        "json.py": "class Mine: pass",
        "kvt-dash.py": "class Mine: pass",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("kvt_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("spec", "kind", "module", "name", "target_id"),
    [
        ("vllm:ExampleConnector", "registered", None, "ExampleConnector", "vllm:ExampleConnector"),
        ("kvt_single:Mine", "module", "kvt_single", "Mine", "kvt_single:Mine"),
        (
            "kvt_package.sub.connector:Deep",
            "module",
            "kvt_package.sub.connector",
            "Deep",
            "kvt_package.sub.connector:Deep",
        ),
        ("kvt_single.py:Mine", "file", "kvt_single", "Mine", "kvt_single:Mine"),
        (
            "./kvt_package/sub/connector.py:Deep",
            "file",
            "kvt_package.sub.connector",
            "Deep",
            "kvt_package.sub.connector:Deep",
        ),
        ("kvt_dynamic:Anything", "module", "kvt_dynamic", "Anything", "kvt_dynamic:Anything"),
        ("kvt_globals:Hidden", "module", "kvt_globals", "Hidden", "kvt_globals:Hidden"),
        ("kvt_assigned:Alias", "module", "kvt_assigned", "Alias", "kvt_assigned:Alias"),
        ("kvt_assigned:Late", "module", "kvt_assigned", "Late", "kvt_assigned:Late"),
    ],
)
def test_forms_are_read(folder: Path, spec: str, kind: str, module: str | None, name: str, target_id: str) -> None:
    target = parse_target(spec, folder)
    assert (target.kind, target.module_path, target.class_name, target.id) == (kind, module, name, target_id)
    assert module is None or module not in sys.modules


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("", "does not name a connector class: expected package.module:Class"),
        ("kvt_single", "for example kvt_single:MyConnector."),
        (":Mine", "does not name a connector class"),
        ("kvt_single:", "does not name a connector class"),
        ("kvt_single:not-a-name", "does not name a connector class"),
        ("kvt single:Mine", "'kvt single' is not a module name"),
        ("kvt_singel:Mine", "there is no module 'kvt_singel' on Python's search path or in"),
        ("kvt_singel:Mine", "did you mean 'kvt_single'"),
        ("kvt_package.subb:Deep", "package 'kvt_package' has no module 'subb'; did you mean 'sub'?"),
        ("kvt_single.inner:Mine", "'kvt_single' is a module, not a package, so it has no 'inner'"),
        ("kvt_single:Minee", "has no class 'Minee'; did you mean 'Mine' or 'Mint'?"),
        ("kvt_single.py:Completely", "has no class 'Completely'; its classes are Mine, Mint."),
        ("kvt_singl.py:Mine", "there is no file"),
        ("kvt_singl.py:Mine", "did you mean 'kvt_single.py'"),
        ("missing/folder.py:Mine", "there is none to choose from"),
        ("json.py:Mine", "by the name 'json', which already belongs to"),
        ("kvt-dash.py:Mine", "rename the file to letters, digits and underscores"),
        ("kvt_syntax.py:Mine", "line 1 is not valid Python: SyntaxError"),
    ],
)
def test_a_wrong_spec_gets_one_sentence(folder: Path, spec: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_target(spec, folder)
    text = str(error.value)
    assert sentence in text
    assert text.startswith(f"'{spec}'")
    assert text.endswith((".", "?"))
    assert "\n" not in text


def test_a_parent_package_is_imported_only_when_nothing_else_can_tell(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    with pytest.raises(UsageError, match="cannot be imported: RuntimeError: only an import can tell"):
        parse_target("kvt_package.sub.elsewhere:Deep", folder)


def test_a_file_is_found_as_the_installed_module_that_it_is(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    target = parse_target(str(folder / "kvt_package/sub/connector.py") + ":Deep", Path("/"))
    assert target.module_path == "kvt_package.sub.connector"
    assert target.search_path is None


def test_a_namespace_folder_of_the_same_name_is_no_collision(folder: Path) -> None:
    (folder / "elsewhere" / "kvt_single").mkdir(parents=True)
    sys.path.insert(0, str(folder / "elsewhere"))
    assert parse_target("kvt_single.py:Mine", folder).search_path == folder


def test_a_module_in_nested_namespace_packages_is_found(folder: Path) -> None:
    inner = folder / "kvt_outer" / "kvt_inner"
    inner.mkdir(parents=True)
    (inner / "kvt_module.py").write_text("class Mine: ...\n")
    sys.path.insert(0, str(folder))
    assert parse_target("kvt_outer.kvt_inner.kvt_module:Mine", folder).module_path == "kvt_outer.kvt_inner.kvt_module"
    assert "kvt_outer.kvt_inner.kvt_module" not in sys.modules
    with pytest.raises(UsageError, match="kvt_modul"):
        parse_target("kvt_outer.kvt_inner.kvt_modul:Mine", folder)


BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"

UNUSABLE = {
    "connector:NotAConnector": "class NotAConnector is not a subclass of vLLM's KVConnectorBase_V1",
    "connector:make": "'make' is a function, but a connector is a class",
    "dynamic:Nothing": "module 'dynamic' has no attribute 'Nothing'; its connector classes are Other.",
    "dynamic:Othr": "module 'dynamic' has no attribute 'Othr'; did you mean 'Other'?",
    "wants:Mine": "module 'wants' cannot be imported: ModuleNotFoundError: No module named 'lmstore';",
    "exits:Mine": "module 'exits' cannot be imported: SystemExit: 3",
    "vllm:ExampleConnecter": "no connector registered as 'ExampleConnecter'; did you mean 'ExampleConnector'",
    "vllm:Nothing": "Registered are BrokenConnector, ExampleConnector;",
    "vllm:BrokenConnector": "vLLM cannot import its connector 'BrokenConnector': ModuleNotFoundError: No module",
}


def test_unusable_targets_are_reported_once_each_and_the_others_run(project) -> None:
    project.write(
        {
            "dynamic.py": f"from os.path import *\nfrom {BASE} import KVConnectorBase_V1\n"
            "class Other(KVConnectorBase_V1): pass",
            "wants.py": "import lmstore\nclass Mine: pass",
            "exits.py": "raise SystemExit(3)\nclass Mine: pass",
            "test_own.py": "def test_1(kvconform_target): pass\ndef test_2(kvconform_target): pass",
        }
    )
    specs = [*UNUSABLE, "connector:MyConnector"]
    result = project.run("-p", "no:randomly", *(f"--kvconform={spec}" for spec in specs), "test_own.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    # Per bad target an error and a skip that points to it, and both tests of the good target.
    result.assert_outcomes(errors=len(UNUSABLE), skipped=len(UNUSABLE), passed=2)
    out = result.stdout.str()
    for spec, sentence in UNUSABLE.items():
        assert f"{spec}: " in out
        assert sentence in out
        assert f"NOT TESTED {spec}" in out
    assert "Traceback" not in out
    assert "def kvconform_target" not in out


def test_without_vllm_the_sentence_says_so(project) -> None:
    project.write({"test_own.py": "def test_own(kvconform_target): pass", "vllm/__init__.py": "import nothing_like_it"})
    result = project.run("--kvconform=vllm:ExampleConnector", "test_own.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    sentence = "cannot be imported as an engine needs it: ModuleNotFoundError: No module named 'nothing_like_it'"
    assert sentence in result.stdout.str()


def test_load_returns_the_class(folder: Path, project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write(
        {
            "test_own.py": """
            def test_module(kvconform_target):
                cls = kvconform_target.load()
                assert cls.__name__ == kvconform_target.class_name
            """,
            "src/filed.py": "from connector import MyConnector as Base\nclass Filed(Base): pass",
        }
    )
    result = project.run("--kvconform=connector:MyConnector", "--kvconform=src/filed.py:Filed", "test_own.py")
    result.assert_outcomes(passed=2)
    assert result.ret == 0


def test_the_target_is_a_plain_frozen_value() -> None:
    target = Target("a:B", "module", "a", "B", "a:B")
    with pytest.raises(AttributeError):
        target.id = "c:D"  # type: ignore[misc]
    assert target == Target("a:B", "module", "a", "B", "a:B")
