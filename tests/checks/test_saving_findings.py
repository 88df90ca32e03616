"""wait_for_save in steps without a saved layer, and witnesses of preemptions, on hand-made histories."""

from __future__ import annotations

from histories import broken, compared, raised, witness

from kvconform.engine.events import HookCall, Scheduled


def saved(hook: str, step: int, error: str | None = None) -> HookCall:
    return HookCall(1, step, "worker", hook, {}, None, error, "vendor.py:7 in hook")


def scheduled(step: int, *requests: str, preempted: tuple[str, ...] = ()) -> Scheduled:
    return Scheduled(1, step, {}, dict.fromkeys(requests, 1), preempted=preempted)


def test_end_of_a_step_without_layers_that_raises() -> None:
    assert "SAVE-05" in broken(saved("wait_for_save", 1, "AssertionError: "), raised("wait_for_save"))


def test_end_of_a_step_with_layers_that_raises_is_another_matter() -> None:
    events = (saved("save_kv_layer", 1), saved("wait_for_save", 1, "AssertionError: "), raised("wait_for_save"))
    assert "SAVE-05" not in broken(*events)


def test_only_steps_without_layers_are_witnesses() -> None:
    events = (saved("save_kv_layer", 1), saved("wait_for_save", 1), saved("wait_for_save", 2))
    assert witness("SAVE-05", *events) == 1


def test_preemptions_count_with_compared_bytes() -> None:
    assert witness("PRE-02", scheduled(2, "r1", preempted=("r2",))) == 0
    assert witness("PRE-02", scheduled(2, "r1", preempted=("r2",)), compared(16)) == 1


def test_one_preempted_request_is_not_all_of_them() -> None:
    assert witness("PRE-08", scheduled(2, preempted=("r2",)), compared(16)) == 0
    assert witness("PRE-08", scheduled(2, preempted=("r1", "r2")), compared(16)) == 2
    assert witness("PRE-08", scheduled(2), scheduled(3, preempted=("r1", "r2")), compared(16)) == 2
    assert witness("PRE-08", scheduled(2, preempted=("r1", "r2"))) == 0, "no loaded byte was compared"
