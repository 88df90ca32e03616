"""An environment in which vLLM can be imported and no engine can be had: said once, and no connector is accused."""

from __future__ import annotations

import json

import pytest

ENGINE_TESTS = "reload_of_every or constructor_takes or leaves_no_thread or traffic or of_every_hook"


@pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["one-process", "xdist"])
def test_without_a_network_interface_no_connector_is_accused(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, processes: tuple[str, ...]
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    monkeypatch.setenv("COLUMNS", "400")
    done = pytester.runpytest_subprocess(
        "--kvconform=kvconform.reference.file_store:FileStoreConnector",
        "--kvconform=kvconform.reference.async_file_store:AsyncFileStoreConnector",
        "--kvconform-engine=vllm", "--kvconform-report=report.json", "-k", ENGINE_TESTS, *processes,
    )  # fmt: skip
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    outcomes = done.parseoutcomes()
    assert outcomes["skipped"] >= 4
    assert outcomes.get("passed", 0) == 0
    text = done.stdout.str()
    assert "CRASH" not in text
    assert "Traceback" not in text
    sentence = "an engine needs torch.distributed with the backend gloo, as vLLM's workers do, and it cannot be had in"
    for name in ("file_store:FileStoreConnector", "async_file_store:AsyncFileStoreConnector"):
        assert text.count(f"NOT TESTED kvconform.reference.{name}: {sentence} this environment: RuntimeError: ") == 1
    report = json.loads((pytester.path / "report.json").read_text())
    verdicts = {rule["verdict"] for target in report["targets"] for rule in target["rules"]}
    assert verdicts == {"not run", "unchecked"}
    assert [sentence in each["sentence"] for each in report["unusable"]] == [True, True]


def test_a_fault_of_the_kit_while_a_process_starts_is_called_one(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    (pytester.path / "unsound.py").write_text(
        "from kvconform.examiner import Examiner\n"
        "from kvconform.reference.file_store import FileStoreConnector as Store\n"
        "class Unsound(Store): pass\n"
        "def fails(*_): raise ZeroDivisionError('of the kit')\n"
        "Examiner.__post_init__ = fails\n"
    )
    (pytester.path / "kit.toml").write_text(
        'connector = "unsound:Unsound"\nkv_connector_extra_config = { path = "{dir}" }\n'
    )
    done = pytester.runpytest_subprocess(
        "--kvconform-config=kit.toml", "--kvconform-engine=vllm", "-k", "reload_of_every", "-p", "no:cacheprovider"
    )
    text = done.stdout.str()
    assert "ZeroDivisionError: of the kit" in text
    assert "10 rules: 10 kit error" in text
    assert "CRASH" not in text
    assert done.ret == 1
