"""Which tests run: the shipped suites by default, from a checkout and from a wheel alike, with a vendor's conftest.

The package is copied together with a suite of a few lines, so that these tests do not wait for the real suites.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import kvconform

PACKAGE = Path(kvconform.__file__).parent
SUITE = {
    "__init__.py": "",
    "test_alpha.py": """
        import os

        def test_alpha(kvconform_target, vendor_calls):
            assert vendor_calls[0] == "autouse"
            assert "setup test_alpha" in vendor_calls
            assert os.environ["VENDOR_SERVER"] == "up"
        """,
}
CONFTEST = """
    import os
    import pytest

    CALLS = []

    def pytest_configure(config):
        os.environ["VENDOR_SERVER"] = "up"

    def pytest_runtest_setup(item):
        CALLS.append(f"setup {item.originalname}")

    @pytest.fixture(scope="session", autouse=True)
    def vendor_server():
        CALLS.insert(0, "autouse")

    @pytest.fixture
    def vendor_calls():
        return CALLS
    """


@dataclass(frozen=True)
class Installed:
    """A copy of the package: what has to be on the search path, and where its suite is."""

    root: Path
    suites: Path


@pytest.fixture(params=["checkout", "wheel"])
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, project, monkeypatch: pytest.MonkeyPatch
) -> Installed:
    """The package with a small suite, laid out as in a checkout or as in a wheel, first on the search path."""
    root = tmp_path_factory.mktemp(request.param)
    shutil.copytree(PACKAGE, root / "kvconform", ignore=shutil.ignore_patterns("__pycache__", "suites", "reference"))
    parent = root if request.param == "checkout" else root / "kvconform"
    for folder in ("suites", "reference"):
        project.write({f"{parent}/{folder}/{name}": text for name, text in SUITE.items()})
    # Kept out of the way: the real fixtures are not what is tested here.
    (root / "kvconform" / "fixtures.py").unlink(missing_ok=True)
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.delenv("VENDOR_SERVER", raising=False)
    return Installed(root, parent / "suites")


SPEC = "--kvconform=connector:MyConnector"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_suites_run_by_default_with_the_vendors_conftest(project, installed: Installed, workers: str) -> None:
    project.write({"conftest.py": CONFTEST, "tests/test_own.py": "def test_own(): assert False"})
    result = project.run(SPEC, "-n", workers)
    result.assert_outcomes(passed=1)
    assert result.ret == 0


def test_the_suites_run_instead_of_the_vendors_testpaths(project, installed: Installed) -> None:
    project.write(
        {
            "conftest.py": CONFTEST,
            "tests/test_own.py": "def test_own(): assert False",
            "pytest.ini": "[pytest]\ntestpaths = tests\npython_files = check_*.py\n",
        }
    )
    result = project.run(SPEC, "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_alpha.py::test_alpha[[]connector:MyConnector[]]*"])


def test_the_suites_run_by_package_name(project, installed: Installed) -> None:
    project.write({"conftest.py": CONFTEST})
    project.run(SPEC, "--pyargs", "kvconform.suites").assert_outcomes(passed=1)
    project.run(SPEC, "--pyargs", "kvconform.suites.test_alpha").assert_outcomes(passed=1)


def test_named_tests_run_without_the_suites(project, installed: Installed) -> None:
    project.write({"conftest.py": CONFTEST, "tests/test_own.py": "def test_own(kvconform_target): pass"})
    result = project.run(SPEC, "-v", "tests")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["tests/test_own.py::test_own*"])


def test_a_conftest_below_the_root_directory_counts_too(
    project, installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write({"pytest.ini": "[pytest]\n", "inner/conftest.py": CONFTEST})
    monkeypatch.setenv("PYTHONPATH", f"{installed.root}:{project.path}")
    monkeypatch.chdir(project.path / "inner")
    result = project.run(SPEC)
    result.stdout.fnmatch_lines([f"rootdir: {project.path}"])
    result.assert_outcomes(passed=1)


def test_suites_and_reference_are_subpackages(project, installed: Installed) -> None:
    project.write(
        {
            "check.py": """
                import kvconform.suites, kvconform.reference
                print(kvconform.suites.__file__)
                print(kvconform.reference.__name__)
                """
        }
    )
    result = project._pytester.runpython(project.path / "check.py")
    result.stdout.fnmatch_lines([f"{installed.suites}/__init__.py", "kvconform.reference"])


def test_the_real_suites_and_references_are_importable() -> None:
    import kvconform.reference
    import kvconform.suites

    assert (Path(kvconform.suites.__file__).parent / "__init__.py").is_file()
    assert list(Path(kvconform.reference.__file__).parent.glob("*.py"))
