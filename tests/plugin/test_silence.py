"""Without --kvconform nothing happens; with it, nothing heavy is imported before a test needs it."""

from __future__ import annotations

import pytest

REPORT_MODULES = """
    import sys

    def pytest_unconfigure(config):
        heavy = {"torch", "vllm", "transformers"} & set(sys.modules)
        ours = {name for name in sys.modules if name.split(".")[0] == "kvconform"}
        print("\\nheavy:", sorted(heavy), "ours:", sorted(ours))
    """


def test_without_the_option_only_the_option_is_there(project) -> None:
    project.write({"conftest.py": REPORT_MODULES, "test_own.py": "def test_own(): pass"})
    result = project.run("-s", "test_own.py")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["heavy: [[][]] ours: [[]'kvconform', 'kvconform.plugin'[]]"])
    # The list of plugins and the project's own path may have the name; the report must not.
    assert "kvconform 0" not in result.stdout.str()
    assert "= kvconform =" not in result.stdout.str()


def test_collecting_imports_neither_torch_nor_vllm(project) -> None:
    project.write(
        {
            "conftest.py": REPORT_MODULES,
            "test_own.py": "def test_own(kvconform_config): pass",
            "vllm/__init__.py": "raise RuntimeError('imported too early')",
        }
    )
    result = project.run(
        "-s",
        "-p",
        "no:randomly",
        "--collect-only",
        "--kvconform=connector:MyConnector",
        "--kvconform=vllm:X",
        "test_own.py",
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_own[[]connector:MyConnector[]]*", "*test_own[[]vllm:X[]]*", "heavy: [[][]] *"])


def test_a_target_inside_vllm_is_checked_without_importing_it(project) -> None:
    project.write(
        {"test_own.py": "def test_own(): pass", "vllm/__init__.py": "raise RuntimeError('imported too early')"}
    )
    spec = "vllm.distributed.kv_transfer.kv_connector.factory:ExampleConector"
    result = project.run(f"--kvconform={spec}", "test_own.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*has no class 'ExampleConector'; did you mean 'ExampleConnector'*"])


def test_the_environment_is_set_for_conftests_and_restored(project) -> None:
    project.write(
        {
            "conftest.py": """
                import os

                NAMES = ("HF_HUB_OFFLINE", "VLLM_LOGGING_LEVEL", "VLLM_HOST_IP", "STORE_URL")
                def state(): return [os.environ.get(name) for name in NAMES]
                print("\\nat import:", state())
                """,
            "drive.py": """
                import os, sys, pytest
                os.environ["VLLM_LOGGING_LEVEL"] = "DEBUG"
                pytest.main(["-s", "--kvconform-config=kit.toml", "test_own.py"])
                from conftest import state
                print("afterwards:", state())
                """,
            "kit.toml": 'connector = "connector:MyConnector"\nenv = { STORE_URL = "here" }',
            "test_own.py": "def test_own(): pass",
        }
    )
    result = project._pytester.runpython(project.path / "drive.py")
    result.stdout.fnmatch_lines(
        ["at import: ['1', 'DEBUG', '127.0.0.1', 'here']", "afterwards: [[]None, 'DEBUG', None, None[]]"]
    )


def test_the_marker_is_known_without_the_option(project) -> None:
    project.write({"test_own.py": "import pytest\n@pytest.mark.kvconform_rules('MATCH-05')\ndef test_own(): pass"})
    project.run("--strict-markers", "--strict-config", "-W", "error", "test_own.py").assert_outcomes(passed=1)


def test_importing_the_package_imports_nothing_else(project) -> None:
    code = "import sys; before = set(sys.modules); import kvconform; print(sorted(set(sys.modules) - before))"
    project.write({"check.py": code})
    result = project._pytester.runpython(project.path / "check.py")
    result.stdout.fnmatch_lines(["[[]'kvconform'[]]"])
