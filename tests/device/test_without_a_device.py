"""What is said where there is no device with streams: in the suites, of a scenario, and in the kill matrix."""

from __future__ import annotations

from pathlib import Path

import kill_matrix
import pytest
from kill_matrix import cover, run
from matrix_book import book, figures
from matrix_entries import Entry, read_entries

from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.outcomes import NotApplicable
from kvconform.scenario import device_order
from kvconform.scenario.exploration import Refused
from kvconform.target import parse_target

SPEC = "kvconform.reference.pinned_offload:PinnedOffloadConnector"


def conformance(device: str) -> Conformance:
    return Conformance(parse_target(SPEC, Path.cwd()), RunConfig(connector=(SPEC,), device=device))  # type: ignore[arg-type]


def test_suites_say_that_the_order_on_a_device_is_not_applicable_in_host_memory() -> None:
    with pytest.raises(NotApplicable, match=r"host memory here.*--kvconform-device=cuda on a machine with a GPU"):
        conformance("cpu").demand_streams()
    conformance("cuda").demand_streams()


@pytest.mark.usefixtures("vllm_cpu")
def test_a_scenario_with_a_slow_device_cannot_be_played_on_the_cpu() -> None:
    with pytest.raises(Refused, match="work on the CPU has one order only"):
        conformance("cpu").examine(device_order.saves_behind_kernels().examples[0])


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_matrix, "is_here", lambda device: device == "cpu")


@pytest.mark.usefixtures("no_gpu")
def test_connectors_for_a_gpu_are_listed_as_not_run_and_count_for_nothing() -> None:
    entries = [entry for entry in read_entries() if entry.device == "cuda"]
    assert {rule for entry in entries for rule in entry.breaks} == {"SAVE-14", "LOAD-12", "PRE-02"}
    outcomes = run(entries)
    assert {(outcome.not_run, outcome.complaint) for outcome in outcomes} == {("needs cuda", "")}
    numbers = figures(outcomes)
    assert (numbers.mutants, numbers.innocent, numbers.not_run) == (0, 0, len(entries))
    assert {"SAVE-14", "LOAD-12"} <= set(numbers.rules_elsewhere)
    assert not {"SAVE-14", "LOAD-12"} & set(numbers.rules_without_mutant)
    assert f"not run, for want of the device: {len(entries)} connectors" in str(numbers)
    assert "| `device_order:StoresBeforeTheForward` | mutant | not run: needs cuda, to break SAVE-14 |" in book(
        outcomes
    )


@pytest.mark.usefixtures("no_gpu")
def test_a_mutant_for_a_gpu_takes_no_other_mutants_place() -> None:
    for_cpu = Entry("mutant", "some:Other", frozenset({"PRE-02"}))
    for_gpu = Entry("mutant", "some:One", frozenset({"PRE-02", "SAVE-14"}), device="cuda")
    assert cover([for_gpu, for_cpu]) == (for_cpu, for_gpu)
