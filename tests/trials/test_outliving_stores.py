"""Stores that outlive their scenario, with a connector in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.isolation.nursery import Nursery
from kvconform.isolation.room import Room
from kvconform.scenario import transfer
from kvconform.target import parse_target

#: Says who it was asked for, and loads nothing if told so.
SERVED = """
from pathlib import Path
from kvconform.reference.file_store import FileStoreConnector

class Served(FileStoreConnector):
    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config, role, kv_cache_config)
        self.extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        self.model = vllm_config.model_config.model

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        with open(self.extra["asked"], "a") as file:
            print(self.model, request.request_id, file=file)
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def start_load_kv(self, forward_context, **kwargs):
        if not self.extra["loses"]:
            super().start_load_kv(forward_context, **kwargs)
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with contextlib.closing(Nursery("cpu", engine="embedded")) as made:
        yield made


@pytest.fixture
def served(nursery: Nursery, tmp_path: Path) -> Iterator[Callable[..., Conformance]]:
    """Makes connectors that store in one folder for all scenarios, as one server would."""
    (tmp_path / "served.py").write_text(SERVED)
    with contextlib.ExitStack() as rooms:

        def make(*, loses: bool = False) -> Conformance:
            target = parse_target("served.py:Served", tmp_path)
            extra = {"path": str(tmp_path / "store"), "asked": str(tmp_path / "asked"), "loses": loses}
            config = RunConfig(engine="embedded", kv_connector_extra_config=extra)
            return Conformance(target, config, rooms.enter_context(contextlib.closing(Room(target, config, nursery))))

        yield make


def test_each_scenario_begins_with_nothing_that_its_model_could_find(
    served: Callable[..., Conformance], tmp_path: Path
) -> None:
    program = transfer.reload().examples[0]
    for _ in range(2):
        conformance = served()
        examination = conformance.examine(program)
        assert examination.clean
        assert (examination.offered["store7"], examination.offered["reload7"]) == (0, 48)
        assert conformance.needs.shown.outlives == "one model"
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    models = {model for model, request in asked if request.startswith("reload7")}
    assert len(models) == 2
    assert not any(Path(model).exists() for model in models), "they are gone with their scenario"
    assert len({request for _, request in asked if request.startswith("reload7")}) == 2, "and so are the ids"


def test_what_is_said_of_a_scenario_has_its_own_ids(served: Callable[..., Conformance]) -> None:
    conformance = served(loses=True)
    examination = conformance.examine(transfer.reload().examples[0])
    assert conformance.needs.fresh_model_names
    (finding, *_) = examination.findings
    assert finding.requests == ("reload3",)
    assert finding.expected.startswith("reload3's tokens 0-15 as they were computed")
