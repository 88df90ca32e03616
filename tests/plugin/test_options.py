"""The command line: what is refused at once, and plain pytest options."""

from __future__ import annotations

import pytest

OWN = """
    import pytest

    def test_first(kvconform_config): assert kvconform_config.seed == 5
    @pytest.mark.slow
    def test_second(kvconform_target): pass
    def test_without_a_target(): pass
    """

FAULTS = """
    connector = "connector:MyConnector"
    faults = "connector:Falts"
    """


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--kvconform=connectr:MyConnector"], "there is no module 'connectr'*did you mean 'connector'*"),
        (["--kvconform=connector:Mine"], "has no class 'Mine'*"),
        (["--kvconform=connector"], "does not name a connector class*for example connector:MyConnector."),
        (["--kvconform=connector:A", "--kvconform=connector:B"], "has no class 'B'*"),
        (["--kvconform-config=missing.toml"], "--kvconform-config=*missing.toml: there is no such file*"),
        (["--kvconform-config=empty.toml"], "--kvconform-config=empty.toml names no connector: add connector = *"),
        (
            ["--kvconform=connector:MyConnector", "--kvconform-engine=vlm"],
            "the command line: engine = 'vlm', but expected is one of auto, vllm*",
        ),
        (["--kvconform=connector:MyConnector", "--kvconform-device=gpu"], "device = 'gpu', but expected is one of*"),
        (["--kvconform=connector:MyConnector", "--kvconform-budget=huge"], "budget = 'huge', but expected is one of*"),
        (
            ["--kvconform=connector:MyConnector", "--kvconform-seed=x"],
            "seed: 'x', but expected is a whole number.",
        ),
        (
            ["--kvconform=connector:MyConnector", "--kvconform-timeout=x"],
            "timeout: 'x', but expected is a number*",
        ),
        (["--kvconform-config=faults.toml"], "faults = 'connector:Falts': *has no class 'Falts'*"),
        (["--kvconform-report=r.json"], "--kvconform-report does nothing without a connector: add --kvconform=*"),
        (["--kvconform=connector:MyConnector", "--kvconform-seed=-1"], "seed = -1, but expected is a whole number*"),
        (["--kvconform-bench"], "--kvconform-bench does nothing without a connector: add --kvconform=*"),
        (
            ["--kvconform=connector:MyConnector", "--kvconform-bench-blocks=8"],
            "--kvconform-bench-blocks does nothing without --kvconform-bench: add --kvconform-bench, or *-only.",
        ),
        (
            ["--kvconform=connector:MyConnector", "--kvconform-bench", "--kvconform-bench-blocks=8;64"],
            "--kvconform-bench-blocks=8;64: expected are numbers of blocks from 1 to 16384, *",
        ),
        (
            ["--kvconform=connector:MyConnector", "--kvconform-bench-only", "--kvconform-bench-layouts=NHD"],
            "--kvconform-bench-layouts=NHD: 'NHD' is no layout; the layouts are LBNHC, *",
        ),
    ],
)
def test_wrong_options_end_with_one_sentence_and_exit_code_4(project, args: list[str], sentence: str) -> None:
    project.write({"test_own.py": OWN, "empty.toml": "seed = 1", "faults.toml": FAULTS})
    result = project.run(*args, "test_own.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{sentence}"])
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
    assert "passed" not in result.stdout.str()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_bad_target_does_not_stop_the_good_ones(project, workers: str) -> None:
    project.write({"test_own.py": OWN})
    specs = ["--kvconform=connector:Mine", "--kvconform=connector:MyConnector", "--kvconform=connector:OtherConnector"]
    result = project.run("-n", workers, *specs, "--kvconform-seed=5", "test_own.py")
    result.assert_outcomes(passed=5)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["NOT TESTED 'connector:Mine': *has no class 'Mine'; *"])


@pytest.mark.parametrize(
    ("args", "passed"),
    [
        (["-k", "first"], 2),
        (["-k", "OtherConnector"], 2),
        (["-m", "slow"], 2),
        (["-n", "2"], 5),
        (["--strict-config", "-W", "error", "-p", "no:cacheprovider"], 5),
        (["-p", "no:terminal"], 5),
    ],
)
def test_plain_pytest_options_work_as_always(project, args: list[str], passed: int) -> None:
    project.write({"test_own.py": OWN, "pytest.ini": "[pytest]\nmarkers = slow: takes long\n"})
    specs = ["--kvconform=connector:MyConnector", "--kvconform=connector:OtherConnector", "--kvconform-seed=5"]
    result = project.run("--strict-markers", *specs, *args, "test_own.py")
    assert result.ret == 0
    if "no:terminal" not in args:
        result.assert_outcomes(passed=passed, deselected=5 - passed if "-n" not in args else 0)


def test_tests_are_grouped_by_target(project) -> None:
    project.write({"test_own.py": OWN, "pytest.ini": "[pytest]\nmarkers = slow: takes long\n"})
    specs = ["--kvconform=connector:MyConnector", "--kvconform=connector:OtherConnector"]
    result = project.run("-p", "no:randomly", "--collect-only", "-q", *specs, "test_own.py")
    result.stdout.fnmatch_lines(
        [
            "test_own.py::test_first[[]connector:MyConnector[]]",
            "test_own.py::test_second[[]connector:MyConnector[]]",
            "test_own.py::test_first[[]connector:OtherConnector[]]",
            "test_own.py::test_second[[]connector:OtherConnector[]]",
            "test_own.py::test_without_a_target",
        ]
    )


def test_naming_a_target_twice_tests_it_once(project) -> None:
    project.write({"test_own.py": "def test_own(kvconform_target): pass"})
    specs = ["--kvconform=connector:MyConnector", "--kvconform=connector.py:MyConnector"]
    project.run(*specs, "test_own.py").assert_outcomes(passed=1)


def test_the_command_line_wins_over_the_file_and_the_file_over_pyproject(project) -> None:
    project.write(
        {
            "pyproject.toml": "[tool.kvconform]\nseed = 1\nbudget = 'full'\nkv_role = 'kv_consumer'\n",
            "settings/kit.toml": "connector = '../connector.py:MyConnector'\nseed = 2\nbudget = 'quick'\n",
            "test_own.py": """
                def test_own(kvconform_config):
                    config = kvconform_config
                    assert (config.seed, config.budget, config.kv_role) == (3, "quick", "kv_consumer")
                """,
        }
    )
    # The file's connector is relative to the file, and enough to switch the kit on.
    result = project.run("--kvconform-config=settings/kit.toml", "--kvconform-seed=3", "test_own.py")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["kvconform: connector:MyConnector", "kvconform *budget quick, seed 3"])


def test_pyproject_alone_does_not_switch_the_kit_on(project) -> None:
    project.write(
        {
            "pyproject.toml": "[tool.kvconform]\nconnector = 'connector:MyConnector'\n",
            "test_own.py": "def test_own(): pass",
        }
    )
    result = project.run("test_own.py")
    result.assert_outcomes(passed=1)
    assert "= kvconform =" not in result.stdout.str()


def test_help_names_the_options(project) -> None:
    result = project.run("--help")
    result.stdout.fnmatch_lines(
        ["conformance of vLLM KV connectors:", "*--kvconform=SPEC*", "*--kvconform-config=FILE*"]
    )
    assert result.ret == 0
