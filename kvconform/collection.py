"""Which tests are collected, and what a vendor's conftest.py means for the shipped ones."""

from __future__ import annotations

import fnmatch
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

_SUITE_FILES = "test_*.py"


def suites_directory() -> Path:
    """Folder of the shipped suites: in the wheel, or beside the package in a checkout."""
    found = importlib.util.find_spec("kvconform.suites")
    if found is None or not found.submodule_search_locations:
        raise pytest.UsageError("kvconform's suites are missing from this installation: install kvconform again.")
    return Path(next(iter(found.submodule_search_locations)))


def collect_suites_by_default(config: pytest.Config) -> None:
    """Make the shipped suites what is collected when the command line names no test."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(suites_directory())]
        config.args_source = pytest.Config.ArgsSource.ARGS


def collect_suite_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a shipped suite's module although the vendor's ``python_files`` doesn't match it."""
    if file_path.parent != suites_directory() or not fnmatch.fnmatch(file_path.name, _SUITE_FILES):
        return None
    patterns: list[str] = parent.config.getini("python_files")
    if any(fnmatch.fnmatch(file_path.name, pattern) for pattern in patterns):
        return None  # pytest collects it itself
    module: pytest.Collector = pytest.Module.from_parent(parent, path=file_path)
    return module


def share_conftest_fixtures(config: pytest.Config) -> None:
    """Make the fixtures of a vendor's conftest.py visible to the shipped suites.

    pytest limits a conftest's fixtures to the tests below its folder, and the shipped suites are elsewhere. Those in
    the root directory are visible everywhere (pytest 8 and 9), so only folders between it and where pytest was
    started need help: their fixtures, autouse ones too, are registered once more as those of an ordinary plugin.
    """
    for conftest in _vendor_conftests(config):
        folder = _folder(conftest)
        if folder == config.rootpath:
            continue
        proxy = ModuleType(f"kvconform_fixtures_of_{conftest.__name__}")
        hooks = {name for name in vars(conftest) if name.startswith("pytest_")}
        vars(proxy).update({k: v for k, v in vars(conftest).items() if k not in hooks and not k.startswith("__")})
        config.pluginmanager.register(proxy, f"kvconform-fixtures-of-{folder}")


def share_conftest_hooks(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Make the hooks of a vendor's conftest.py (``pytest_runtest_setup`` ...) run for the shipped suites too.

    pytest asks its plugin manager which conftest modules concern a folder, and there is no public way to add to the
    answer. Where a pytest keeps that answer differently, these hooks stay limited to the vendor's own tests.
    """
    known = getattr(config.pluginmanager, "_dirpath2confmods", None)
    if not isinstance(known, dict):
        return
    suites, vendors = suites_directory(), _vendor_conftests(config)
    for folder in {item.path.parent for item in items}:
        if folder == suites or suites in folder.parents:
            own = list(known.get(folder, ()))
            known[folder] = [*(conftest for conftest in vendors if conftest not in own), *own]


def _vendor_conftests(config: pytest.Config) -> list[ModuleType]:
    """The loaded conftest.py modules of the folder where pytest was started and of those above it, outermost first."""
    started_in = (config.invocation_params.dir, *config.invocation_params.dir.parents)
    found = [
        plugin
        for name, plugin in config.pluginmanager.list_name_plugin()
        if isinstance(plugin, ModuleType) and name.endswith("conftest.py") and _folder(plugin) in started_in
    ]
    return sorted(found, key=lambda conftest: len(_folder(conftest).parts))


def _folder(conftest: ModuleType) -> Path:
    return Path(conftest.__file__ or "").parent
