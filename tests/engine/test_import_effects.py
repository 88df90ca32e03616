"""What counts as a side effect of an import."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvconform.engine.vllm_engine.construction import ImportEffects

WRITES = """
import os
from pathlib import Path

os.makedirs(Path(__file__).parent / "made", exist_ok=True)
(Path(__file__).parent / "written").write_text("x")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that was never imported before, and whose compiled modules Python keeps."""
    folder = tmp_path / "never_imported"
    folder.mkdir()
    (folder / "__init__.py").write_text("from . import inner")
    (folder / "inner.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    yield folder
    for name in [name for name in sys.modules if name.startswith("never_imported")]:
        del sys.modules[name]


def effects() -> tuple[str, ...]:
    watched = ImportEffects()
    with watched.watching():
        importlib.import_module("never_imported")
    return watched.of("never_imported")


@pytest.mark.parametrize("prefix", [None, "elsewhere"])
def test_what_python_keeps_of_a_first_import_is_none_of_its_doing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str | None
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", prefix and str(tmp_path / prefix))
    assert effects() == ()
    assert list((tmp_path / prefix if prefix else package).rglob("inner.*.pyc"))


def test_what_others_compile_may_be_kept_beside_it(package: Path) -> None:
    (package / "inner.py").write_text(WRITES.replace('"made"', '"__pycache__"').replace('"written"', '"__pycache__/x"'))
    assert effects() == ()
    assert (package / "__pycache__" / "x").exists()


def test_folders_and_files_that_a_module_makes_are(package: Path) -> None:
    (package / "inner.py").write_text(WRITES)
    assert effects() == (f"os.mkdir({package / 'made'})", f"wrote the file {package / 'written'}")
