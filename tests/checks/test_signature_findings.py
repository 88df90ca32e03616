"""Findings about a class, from what was seen of it: cases that no small connector shows in little time."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from kvconform.checks import signature
from kvconform.checks.class_model import ClassObservation, ClassShape, Flag, Raised, RoleObservation
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


SHAPE = ClassShape(
    "Vendors", ("shutdown",), 7, hma=True, constructor="Vendors(config)", constructor_problem="too many",
    findings=(("SIG-06", "a", "b"),),
)  # fmt: skip
NO_SERVER = Raised("ConnectionError", "no server", "vendor.py:7 in __init__")
NO_BASE = Raised("AttributeError", "no _role", missing="_role")
FAILED = RoleObservation("worker", NO_SERVER)
HUNG = RoleObservation("worker", hung=True)


def seen(**change: Any) -> ClassObservation:
    return replace(SEEN, **change)


def scheduler(observation: RoleObservation) -> RoleObservation:
    return replace(observation, role="scheduler")


# -- what was seen ---------------------------------------------------------------------------------------------------


def test_exception_is_told_with_its_place_unless_it_is_the_call_itself() -> None:
    assert str(NO_SERVER) == "ConnectionError: no server (vendor.py:7 in __init__)"
    assert str(replace(NO_SERVER, in_call=True)) == str(replace(NO_SERVER, where="")) == "ConnectionError: no server"


@pytest.mark.parametrize(
    ("observation", "obstacle"),
    [
        (ClassObservation(), "the constructor did not return"),
        (seen(scheduler=scheduler(HUNG)), "the constructor did not return"),
        (seen(worker=HUNG), "the constructor did not return"),
        (seen(scheduler=scheduler(FAILED)), str(NO_SERVER)),
        (seen(worker=FAILED, scheduler=None), str(NO_SERVER)),
        (seen(imported=NO_SERVER, worker=None), str(NO_SERVER)),
        (seen(resolved=NO_SERVER, worker=None), str(NO_SERVER)),
    ],
)
def test_first_obstacle_is_told(observation: ClassObservation, obstacle: str) -> None:
    assert observation.obstacle == obstacle


@pytest.mark.parametrize("kind", ["NotSimulated", "NotCoveredError"])
def test_what_the_kit_does_not_have_is_told_wherever_it_was_asked_for(kind: str) -> None:
    lacking, worker = Raised(kind, "a tokenizer"), replace(BUILT, hooks={"shutdown": NO_SERVER})
    assert SEEN.not_simulated == seen(worker=worker, imported=NO_SERVER).not_simulated == ""
    for change in (
        {"imported": lacking},
        {"answers_after": {"supports_sleep_mode": lacking}},
        {"scheduler_alone": RoleObservation("scheduler", lacking)},
        {"worker": replace(worker, flags={"requires_kv_delivery": Flag(raised=lacking)})},
        {"worker": replace(worker, hooks={"shutdown": NO_SERVER, "take_events": lacking})},
    ):
        assert seen(**change).not_simulated == "a tokenizer"


def test_shape_survives_json() -> None:
    observation = seen(shape=SHAPE)
    assert ClassObservation.from_dict(json.loads(json.dumps(observation.to_dict()))) == observation


# -- how it is built ---------------------------------------------------------------------------------------------------


def test_constructor_that_does_not_take_three_arguments_is_told_with_what_vllm_says() -> None:
    resolved = Raised("ValueError", "no kv_cache_config")
    (finding,) = signature.constructor(seen(shape=SHAPE, resolved=resolved, worker=FAILED))
    assert (finding.rule, finding.observed) == ("SIG-01", "Vendors(config): too many")
    assert finding.details == ("vLLM's factory raises ValueError: no kv_cache_config",)
    (finding,) = signature.constructor(seen(shape=SHAPE, scheduler=scheduler(FAILED)))
    assert finding.details == (f"vLLM's factory raises {NO_SERVER}",)
    (finding,) = signature.constructor(seen(shape=SHAPE))
    assert finding.details == ()


def test_class_that_can_be_built_by_keyword_only_is_found_once() -> None:
    shape = replace(SHAPE, constructor_problem="")
    by_keyword = replace(FAILED, by_keyword=True)
    (finding,) = signature.constructor(seen(shape=shape, worker=by_keyword, scheduler=scheduler(by_keyword)))
    assert finding.rule == "SIG-01"
    assert "for the worker role it raises ConnectionError: no server" in finding.observed
    assert len(list(signature.constructor(seen(shape=shape, scheduler=scheduler(by_keyword))))) == 1
    for legal in (seen(shape=shape, worker=FAILED), seen(shape=shape, worker=replace(BUILT, by_keyword=True)), SEEN):
        assert list(signature.constructor(legal)) == []


@pytest.mark.parametrize(
    ("check", "kind", "rule"),
    [(signature.keyword, "ValueError", "SIG-02"), (signature.resolution, "AttributeError", "SIG-10")],
)
def test_refusal_of_the_factory_is_known_by_its_kind(check: Any, kind: str, rule: str) -> None:
    (finding,) = check(seen(resolved=Raised(kind, "x")))
    assert (finding.rule, finding.observed) == (rule, f"vLLM raises {kind}: x")
    assert list(check(seen(resolved=Raised("ImportError", "x")))) == list(check(SEEN)) == []


@pytest.mark.parametrize(
    ("worker", "observed"),
    [
        (replace(BUILT, base_missing=NO_BASE), "the base class's constructor has not run: AttributeError: no _role"),
        (RoleObservation("worker", NO_BASE), "the base class's constructor has not run: AttributeError: no _role"),
        (replace(BUILT, kv_cache_config="None"), "its _kv_cache_config is None, not the one"),
        (replace(BUILT, kv_cache_config="another"), "its _kv_cache_config is another object, not the one"),
    ],
)
def test_base_class_that_was_not_set_up_is_told_once_for_both_roles(worker: RoleObservation, observed: str) -> None:
    (finding,) = signature.base_constructor(seen(worker=worker, scheduler=scheduler(worker)))
    assert finding.observed.startswith(observed)
    assert "the worker-role instance" in finding.expected
    (finding,) = signature.base_constructor(seen(scheduler=scheduler(worker)))
    assert "the scheduler-role instance" in finding.expected


@pytest.mark.parametrize(
    "worker",
    [BUILT, HUNG, FAILED, RoleObservation("worker", Raised("AttributeError", "x", missing="own")),
     replace(BUILT, is_connector=False, role_kept=False), replace(BUILT, hung=True, role_kept=False), None],
)  # fmt: skip
def test_role_without_an_instance_of_a_connector_hides_nothing_of_the_other_one(worker: RoleObservation | None) -> None:
    assert list(signature.base_constructor(seen(worker=worker))) == []
    other = replace(BUILT, role="scheduler", role_kept=False)
    assert rules(signature.base_constructor(seen(worker=worker, scheduler=other))) == ["SIG-04"]


def test_instance_of_another_class_is_found_once() -> None:
    other = replace(BUILT, is_connector=False, kind="Store")
    (finding,) = signature.subclass(seen(worker=other, scheduler=scheduler(other)))
    assert finding.rule == "SIG-05"
    assert "building the worker role gives an object of type Store" in finding.observed
    assert rules(signature.subclass(seen(scheduler=scheduler(other)))) == ["SIG-05"]
    assert list(signature.subclass(seen(worker=FAILED))) == list(signature.subclass(SEEN)) == []


# -- flags, answers and hooks ------------------------------------------------------------------------------------------


def test_every_flag_that_is_no_bool_is_found_once() -> None:
    flags = {"one": Flag("bool"), "two": Flag("method"), "three": Flag("", Raised("KeyError", "'role'"))}
    worker = replace(BUILT, flags=flags)
    observation = seen(worker=worker, scheduler=replace(scheduler(worker), flags={**flags, "four": Flag("int")}))
    found = list(signature.flags(observation))
    assert [(finding.rule, finding.expected) for finding in found] == [
        ("SIG-08", "two is a bool"), ("SIG-08", "three is a bool"), ("SIG-08", "four is a bool"),
    ]  # fmt: skip
    assert found[0].observed == "two of the worker-role instance is of type method, always true"
    assert found[1].observed == "three of the worker-role instance raises KeyError: 'role'"
    assert signature.flags_read(observation) == 2


def test_answer_that_works_only_after_a_constructor_has_run_is_found() -> None:
    early, late = "supports_sleep_mode", "build_prom_metrics"
    (finding,) = signature.answers(seen(answers_before={late: None, early: NO_SERVER}, answers_after={early: None}))
    assert finding.rule == "SIG-09"
    assert f"called on the class it raises {NO_SERVER}" in finding.observed
    for before, after in (
        ({early: NO_SERVER}, {early: NO_SERVER}),
        ({early: NO_SERVER}, {}),
        ({early: None}, {early: None}),
    ):
        assert list(signature.answers(seen(answers_before=before, answers_after=after))) == []


def test_import_as_slow_as_allowed_is_not_found() -> None:
    assert rules(signature.import_effects(seen(seconds=2.0), slow=2.0)) == []
    assert rules(signature.import_effects(seen(effects=("wrote the file x",), seconds=3.0), slow=2.0)) == ["SIG-12"] * 2


@pytest.mark.parametrize(
    ("alone", "trouble"), [(FAILED, f"raised {NO_SERVER}"), (HUNG, "did not return")], ids=["raised", "hung"]
)
def test_scheduler_role_that_needs_a_worker_beside_it_is_found(alone: RoleObservation, trouble: str) -> None:
    (finding,) = signature.independence(seen(scheduler_alone=scheduler(alone)))
    assert finding.rule == "SIG-13"
    assert f"the scheduler role's constructor {trouble}; after a worker role it succeeded" in finding.observed


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"worker": FAILED},
        {"worker_again": BUILT},
        {"worker": None, "worker_again": BUILT},
        {"scheduler_alone": scheduler(BUILT)},
        {"scheduler": None, "scheduler_alone": scheduler(FAILED)},
        {"scheduler": scheduler(FAILED), "scheduler_alone": scheduler(FAILED)},
    ],
    ids=repr,
)
def test_role_that_is_built_or_fails_in_any_order_needs_no_other_one(change: dict[str, Any]) -> None:
    assert list(signature.independence(seen(**change))) == []


def test_hook_that_raises_on_a_fresh_instance_is_found_for_each_role() -> None:
    hooks = {
        "set_xfer_handshake_metadata": NO_SERVER,
        "shutdown": NO_SERVER,
        "take_events": NO_SERVER,
        "get_finished": None,
    }
    worker = replace(BUILT, hooks=hooks)
    observation = seen(worker=worker, scheduler=replace(BUILT, role="scheduler", hooks={"shutdown": NO_BASE}))
    asked = {"shutdown": "SHUT-02", "set_xfer_handshake_metadata": "ROLE-10", "get_finished": "ROLE-03"}
    found = list(signature.fresh_hooks(observation, asked))
    assert [(finding.rule, finding.observed) for finding in found] == [
        ("ROLE-10", f"set_xfer_handshake_metadata({{}}) raised {NO_SERVER}"),
        ("SHUT-02", f"shutdown() raised {NO_SERVER}"),
    ]
    assert "freshly built worker-role instance" in found[0].expected
    works = replace(BUILT, role="scheduler", hooks={"shutdown": None})
    assert signature.fresh_calls(seen(worker=worker, scheduler=works), "shutdown") == 1
    assert signature.fresh_calls(seen(worker=worker, scheduler=works), "get_finished") == 1
    assert signature.fresh_calls(SEEN, "shutdown") == 0
