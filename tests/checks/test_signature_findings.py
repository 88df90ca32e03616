"""Findings about a class, from what was seen of it: cases that no small connector shows in little time."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from kvconform.checks import signature
from kvconform.checks.class_model import ClassObservation, Flag, Raised, RoleObservation
from kvconform.engine.vllm_engine.construction import worker_first

BUILT = RoleObservation("worker", is_connector=True, role_kept=True, kv_cache_config="kept")
SEEN = ClassObservation(worker=BUILT, scheduler=replace(BUILT, role="scheduler"))


def rules(findings: Any) -> list[str]:
    return [finding.rule for finding in findings]


def test_slow_import_is_found_beyond_the_threshold() -> None:
    seen = replace(SEEN, seconds=3.0)
    assert rules(signature.import_effects(seen)) == []
    assert rules(signature.import_effects(seen, slow=2.0)) == ["SIG-12"]


def test_every_side_effect_is_told() -> None:
    (finding,) = signature.import_effects(replace(SEEN, effects=("initialised CUDA", "wrote the file x")))
    assert "initialised CUDA" in finding.observed
    assert finding.details == ("wrote the file x",)


def test_worker_that_waits_for_the_scheduler_is_found() -> None:
    waiting = replace(SEEN, worker=RoleObservation("worker", hung=True), worker_again=BUILT)
    (finding,) = signature.independence(waiting)
    assert finding.rule == "SIG-13"
    assert "did not return" in finding.observed


def test_worker_that_fails_both_times_is_no_matter_of_order() -> None:
    failed = RoleObservation("worker", Raised("ConnectionError", "no server"))
    assert rules(signature.independence(replace(SEEN, worker=failed, worker_again=failed))) == []


def test_scheduler_that_fails_everywhere_is_no_matter_of_order() -> None:
    failed = RoleObservation("scheduler", Raised("ConnectionError", "no server"))
    assert rules(signature.independence(replace(SEEN, scheduler=failed, scheduler_alone=failed))) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata_bound": True}, "has_connector_metadata"),
        ({"kv_cache_config": "another"}, "another object"),
        ({"role_kept": False}, "its role"),
    ],
)
def test_base_constructor_with_other_values_is_found(change: dict[str, Any], words: str) -> None:
    (finding,) = signature.base_constructor(replace(SEEN, worker=replace(BUILT, **change)))
    assert finding.rule == "SIG-04"
    assert words in finding.observed


def test_failing_flag_is_found_and_a_missing_base_constructor_is_not_blamed_on_it() -> None:
    own = Flag(raised=Raised("KeyError", "'role'"))
    base = Flag(raised=Raised("AttributeError", "...", missing="_kv_transfer_config"))
    for flag, expected in ((own, ["SIG-08"]), (base, [])):
        seen = replace(SEEN, worker=replace(BUILT, flags={"requires_kv_delivery": flag}))
        assert rules(signature.flags(seen)) == expected


def test_obstacle_is_told_in_the_words_of_whoever_raised() -> None:
    assert SEEN.obstacle == ""
    assert replace(SEEN, configured=Raised("OSError", "no device")).obstacle == "OSError: no device"
    assert replace(SEEN, ended="was killed by signal 9").obstacle == "was killed by signal 9"


def test_observation_survives_json() -> None:
    seen = replace(
        SEEN,
        effects=("a",),
        answers_before={"x": Raised("KeyError", "'k'", "file.py:1 in x"), "y": None},
        scheduler_alone=replace(BUILT, flags={"f": Flag("bool")}, hooks={"shutdown": None}),
    )
    assert ClassObservation.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


class Site:
    """A worker role whose constructor returns once the scheduler role was built, or at once."""

    def __init__(self, *, waits: bool) -> None:
        self.waits = waits
        self.scheduler_is_there = threading.Event()

    def build(self, role: str) -> RoleObservation:
        if role == "scheduler":
            self.scheduler_is_there.set()
        elif self.waits:
            assert self.scheduler_is_there.wait(10)
        return replace(BUILT, role=role)


@pytest.mark.parametrize("waits", [True, False])
def test_worker_that_waits_gets_the_scheduler_beside_it(waits: bool) -> None:
    worker, rescuer = worker_first(Site(waits=waits), patience=0.05)
    assert worker.built
    assert (rescuer is not None) is waits


class Base:
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> None: ...
    def wait_for_layer_load(self, layer_name: str) -> None: ...
    def shutdown(self) -> None: ...


def test_order_of_parameters_is_compared_by_name() -> None:
    class Swapped(Base):
        def get_num_new_matched_tokens(self, num_computed_tokens: int, request: Any) -> None: ...  # type: ignore[override]

    (finding,) = signature.signatures(Swapped, Base)
    assert "its parameter 1 is num_computed_tokens, where vLLM passes request" in finding.observed


def test_own_names_defaults_and_class_or_static_methods_are_legal() -> None:
    class Odd(Base):
        def get_num_new_matched_tokens(self, req: Any, done: int = 0, *, hint: str = "") -> None: ...

        @staticmethod
        def wait_for_layer_load(name: str) -> None: ...

        @classmethod
        def shutdown(cls) -> None: ...

    assert rules(signature.signatures(Odd, Base)) == []
    overridden = [call.hook for call in signature.ENGINE_CALLS if signature.overridden(Odd, Base, call.hook)]
    assert overridden == ["get_num_new_matched_tokens", "shutdown", "wait_for_layer_load"]


def test_hooks_that_do_not_take_what_the_engine_passes_are_found() -> None:
    class Wrong(Base):
        def wait_for_layer_load(self) -> None: ...  # type: ignore[override]
        def start_load_kv(self, forward_context: Any, scheduler_output: Any = None) -> None: ...  # type: ignore[override]
        def shutdown(self, grace: float) -> None: ...  # type: ignore[override]

    assert rules(signature.signatures(Wrong, Base)) == ["SIG-07"] * 3
