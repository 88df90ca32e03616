"""Which engine a run gets, and how its reports say so."""

from __future__ import annotations

import dataclasses

import pytest

from kvconform import config as run_config
from kvconform.api import release_of
from kvconform.config import RunConfig
from kvconform.errors import UsageError
from kvconform.report.model import describe_environment


def test_auto_is_vllm_where_it_is_installed_and_embedded_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_config, "vllm_version", lambda: "0.32.0")
    assert RunConfig().resolved_engine == "vllm"
    monkeypatch.setattr(run_config, "vllm_version", lambda: None)
    assert RunConfig().resolved_engine == "embedded"
    assert RunConfig(engine="vllm").resolved_engine == "vllm"


def test_embedded_can_be_asked_for_and_others_are_refused() -> None:
    assert run_config.read_run_config({"engine": "embedded"}, None, None).resolved_engine == "embedded"
    with pytest.raises(UsageError, match="auto, vllm, embedded"):
        run_config.read_run_config({"engine": "mine"}, None, None)


def test_the_last_line_of_a_run_says_that_vllm_is_imitated() -> None:
    line = describe_environment(engine="embedded", device="cpu", budget="quick", seed=0)
    assert "no vLLM (its 0.32.0 is imitated)" in line
    assert release_of("embedded") == "0.32.0"


def test_a_report_of_the_embedded_engine_is_marked() -> None:
    from kvconform.report.badge import badge
    from kvconform.report.document import Document, Environment, Options, TargetEntry

    names = {field.name: None for field in dataclasses.fields(Options)}
    options = Options(**{**names, "engine": "embedded"})  # type: ignore[arg-type]
    target = TargetEntry("a:B", None, None, options, (), ())
    environment = Environment(vllm="0.32.0", torch=None, pytest="9", python="3.11", platform="Linux")
    blank = {field.name: None for field in dataclasses.fields(Document) if not field.name.startswith("format")}

    class Run:
        partial = False

    given = {"targets": (target,), "environment": environment, "without_target": (), "unusable": (), "run": Run()}
    document = Document(**{**blank, **given})  # type: ignore[arg-type]
    assert document.embedded
    assert document.driven_by == "the engine 'embedded' instead of vLLM (it follows 0.32.0)"
    assert "without vLLM" in badge(document).message
