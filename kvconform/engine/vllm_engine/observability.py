"""Statistics and KV cache events, followed along vLLM's own way from the connector to the front-end and the publisher.

Copies are merged, reduced and reset, never what vLLM goes on with. What is found is written into the history as plain
data: (rule, expected, observed).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

from kvconform.engine.events import EventsPublished, MetricsObserved, Role, StatisticsRead, StatisticsTaken
from kvconform.engine.history import History
from kvconform.engine.instrument import HookWatch, describe_error
from kvconform.engine.vllm_engine.metrics import FrontEndMetrics, below_multi_connector
from kvconform.engine.vllm_engine.published import EventReader

Problem = tuple[str, str, str]
_PARTS = 3


class Observer:
    """Watches both roles of one engine, beside the watch that is there already.

    Args:
        history: where findings go.
        number: the engine's.
        scheduler: vLLM's; its event publisher is replaced by one that records.
        connector: the scheduler role, for what the front-end asks its class.
        hash_tokens: how many tokens one of vLLM's block hashes covers.
        inner: the engine's other watch.
        wrapped: the connector is vLLM's MultiConnector. Its own statistics and the events of siblings that store the
            same are none of a child's; only what it asks of its children's classes is looked at.
    """

    def __init__(
        self,
        history: History,
        number: int,
        scheduler: Any,
        connector: Any,
        hash_tokens: int,
        inner: HookWatch,
        wrapped: bool = False,
    ) -> None:
        from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorLogging

        self.history, self.number, self.inner = history, number, inner
        self.scheduler, self.connector = scheduler, connector
        self._wrapped = wrapped
        self._metrics = FrontEndMetrics(scheduler.vllm_config)
        self.step = 0
        self.worker: Any = None
        # What the worker has handed out so far looks like counters that are never set back.
        self._last: dict[str, Any] = {}
        self._never_smaller, self._increases = True, 0
        self._parts: dict[str, list[Any]] = {"worker": [], "scheduler": []}
        self._reader = EventReader(hash_tokens)
        self._publisher = scheduler.kv_event_publisher
        self._logging = KVConnectorLogging(scheduler.vllm_config.kv_transfer_config)
        scheduler.kv_event_publisher = self

    # -- the watch -------------------------------------------------------------------------------------------------

    def enter(self, role: Role, hook: str, step: int, args: tuple[Any, ...]) -> None:
        """Before a hook."""
        self.step = step
        self.inner.enter(role, hook, step, args)

    def raised(self, role: Role, hook: str, error: BaseException) -> None:
        """After a hook has raised."""
        self.inner.raised(role, hook, error)

    def leave(self, role: Role, hook: str, args: tuple[Any, ...], result: Any) -> None:
        """After a hook has returned."""
        self.inner.leave(role, hook, args, result)
        if self._wrapped:
            return
        if hook == "get_kv_connector_stats" and result is not None:
            self._statistics(role, result)
        elif hook == "get_kv_connector_kv_cache_events" and result is not None:
            problems = self._reader.of_worker(result)
            if problems:
                self.history.add(EventsPublished(self.number, self.step, 0, 0, problems))
        elif hook == "get_num_new_matched_tokens":
            self._reader.know(args[0])

    # -- statistics ------------------------------------------------------------------------------------------------

    def _statistics(self, role: Role, stats: Any) -> None:
        from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

        if not isinstance(stats, KVConnectorStats):
            kind = f"{type(stats).__module__}.{type(stats).__qualname__}"
            problem = ("STAT-01", "None or a KVConnectorStats", f"get_kv_connector_stats returned a {kind}")
            self.history.add(StatisticsTaken(self.number, self.step, role, False, (problem,)))
            return
        problems = list(_methods(stats))
        empty = not problems and bool(_copy(stats).is_empty())
        if not problems:
            parts = self._parts[role]
            if role == "worker" and not empty:
                self._note_growth(_copy(stats).data)
            if not empty and len(parts) < _PARTS:
                parts.append(_copy(stats))
                problems += _merging(parts, ordered=role == "scheduler")
            if role == "scheduler" and not empty and self._parts["worker"]:
                problems += _of_both_roles(self._parts["worker"][-1], stats)
        self.history.add(StatisticsTaken(self.number, self.step, role, not empty, tuple(problems)))

    def step_ended(self, outputs: Mapping[Any, Any]) -> None:
        """Take the payload that left the scheduler to the front-end and log it there, as vLLM does."""
        for client in outputs.values():
            payload = getattr(client.scheduler_stats, "kv_connector_stats", None)
            if payload:
                self._to_the_front_end(payload)

    def _to_the_front_end(self, payload: dict[str, Any]) -> None:
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        try:
            crossed = MsgpackDecoder(dict[str, Any]).decode(MsgpackEncoder().encode(payload))
        except Exception as error:
            if not self._wrapped:
                expected = "a payload that msgpack can carry to the front-end"
                problem = "STAT-03", expected, f"encoding {sorted(payload)} raised {describe_error(error)[0]}"
                self.history.add(StatisticsRead(self.number, self.step, (problem,)))
            return
        if self._wrapped:
            # Until 0.29.0 the payload holds the children's objects, and becomes plain data on the way only
            # (Scheduler.make_stats; to_dict from 0.30.0 on).
            problems = tuple(below_multi_connector(type(self.connector), crossed, self._metrics))
            self.history.add(StatisticsRead(self.number, self.step, problems))
            return
        self.history.add(StatisticsRead(self.number, self.step, tuple(self._front_end(payload, crossed))))
        observed = self._metrics.observe(crossed)
        if observed is not None:
            self.history.add(MetricsObserved(self.number, self.step, *observed))

    def _front_end(self, payload: dict[str, Any], crossed: dict[str, Any]) -> Iterator[Problem]:
        build = type(self.connector).build_kv_connector_stats
        try:
            direct, rebuilt = build(copy.deepcopy(payload)), build(crossed)
            if rebuilt is None:
                yield (
                    "STAT-04",
                    "build_kv_connector_stats gives an object for what get_kv_connector_stats returned",
                    "it gives None: the front-end drops all numbers",
                )
                return
            before, after = direct.reduce(), rebuilt.reduce()
            self._logging.observe(copy.deepcopy(crossed))
            self._logging.log(lambda *_: None)
        except Exception as error:
            yield "STAT-03", "the front-end rebuilds, merges and logs it", f"it raised {describe_error(error)[0]}"
            return
        if not _same(before, after):
            yield "STAT-03", f"{before} also on the other side of msgpack", f"reduce gives {after} there"
        yield from _reduced(after)

    # -- events ----------------------------------------------------------------------------------------------------

    def publish(self, batch: Any) -> None:
        """The scheduler publishes what take_events gave."""
        if not self._wrapped:
            stored, removed, problems = self._reader.published(batch)
            self.history.add(EventsPublished(self.number, self.step, stored, removed, problems))
        self._publisher.publish(batch)

    def shutdown(self) -> None:
        """As every publisher has to offer."""
        self._publisher.shutdown()

    def get_publisher_config(self) -> Any:
        """Passed on."""
        return self._publisher.get_publisher_config()

    def idle(self) -> None:
        """The engine is idle: what has not been handed out by now never will be."""
        problems = (*self._reader.lost(), *self._counted_again())
        if problems:
            self.history.add(EventsPublished(self.number, self.step, 0, 0, problems))

    def _note_growth(self, data: Any) -> None:
        if self._last:
            self._never_smaller = self._never_smaller and _not_smaller(self._last, data)
            self._increases += data != self._last
        self._last = data

    def _counted_again(self) -> Iterator[Problem]:
        """Counters that are never set back give the same numbers when nothing has happened in between."""
        if not self._never_smaller or self._increases < _PARTS or self.worker is None:
            return
        take = self._take_of_worker()
        taken = [_copy(stats) for stats in (take(), take()) if stats is not None]
        if len(taken) == 2 and not taken[0].is_empty() and taken[0].data == taken[1].data == self._last:
            yield (
                "STAT-01",
                "what happened since the last call: nothing, as the engine is idle",
                f"two calls in a row both returned {str(self._last)[:120]}",
            )

    def _take_of_worker(self) -> Any:
        """The worker role's hook without the recorder around it."""
        hook = self.worker.get_kv_connector_stats
        return getattr(hook, "__wrapped__", hook)


def _copy(stats: Any) -> Any:
    return copy.deepcopy(stats)


def _methods(stats: Any) -> Iterator[Problem]:
    """What the base class leaves to its heirs has to be there."""
    expected = "is_empty, aggregate, reduce and reset of its own"
    for name in ("is_empty", "reduce", "aggregate", "reset"):
        arguments = (_copy(stats),) if name == "aggregate" else ()
        try:
            getattr(_copy(stats), name)(*arguments)
        except Exception as error:
            yield "STAT-01", expected, f"{type(stats).__name__}.{name} raised {describe_error(error)[0]}"
            return
    cleared = _copy(stats)
    cleared.reset()
    if not cleared.is_empty():
        yield "STAT-01", "nothing left after reset", f"is_empty() is False after reset: {str(cleared.data)[:120]}"
    if any(number < 0 for number in _numbers(stats.data)):
        yield "STAT-08", "no negative count or duration", f"the statistics are {str(stats.data)[:160]}"
    yield from _reduced(_copy(stats).reduce())


def _reduced(numbers: Any) -> Iterator[Problem]:
    expected = "reduce gives a flat dict of numbers"
    if not isinstance(numbers, dict):
        yield "STAT-07", expected, f"it gave {numbers!r}"
        return
    odd = {k: v for k, v in numbers.items() if isinstance(v, bool) or not isinstance(v, (int, float))}
    if odd:
        yield "STAT-07", expected, f"it gave {str(odd)[:120]}"


def _merging(parts: list[Any], *, ordered: bool) -> Iterator[Problem]:
    """The same totals in every order and grouping, and always an object.

    The scheduler role is one, and its statistics are merged in the order of the steps: a gauge may keep the last value.
    """
    if len(parts) < 2:
        return
    order = "grouping" if ordered else "order and grouping"
    expected = f"aggregate returns the merged statistics, the same in every {order}"
    one, two, three = (*parts, parts[0])[:3] if len(parts) == 2 else parts
    try:
        orders = {
            "(a + b) + c": _sum(_sum(one, two), three),
            "a + (b + c)": _sum(one, _sum(two, three)),
        }
        if not ordered:
            orders["c + (b + a)"] = _sum(three, _sum(two, one))
    except Exception as error:
        yield "STAT-10", expected, f"merging three of them raised {describe_error(error)[0]}"
        return
    if any(merged is None for merged in orders.values()):
        yield "STAT-10", expected, "aggregate returned None"
        return
    reduced = {name: merged.reduce() for name, merged in orders.items()}
    (first, numbers), *others = reduced.items()
    for name, other in others:
        if not _same(numbers, other):
            yield "STAT-10", expected, f"{first} reduces to {str(numbers)[:120]}, {name} to {str(other)[:120]}"
            return


def _sum(one: Any, other: Any) -> Any:
    return None if one is None or other is None else _copy(one).aggregate(_copy(other))


def _of_both_roles(worker: Any, scheduler: Any) -> Iterator[Problem]:
    expected = "the worker's statistics take the scheduler role's in aggregate, as every step does"
    try:
        merged = _sum(worker, scheduler)
        if merged is not None:
            merged.reduce()
    except Exception as error:
        yield "STAT-02", expected, f"it raised {describe_error(error)[0]}"


def _numbers(value: Any) -> Iterator[float]:
    """Every number in plain data."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _same(one: Any, other: Any) -> bool:
    """Equal but for the rounding of sums of floats."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-2)
    return bool(one == other)


def _not_smaller(before: Any, after: Any) -> bool:
    """Whether both are flat counters and none of ``before`` is missing or smaller in ``after``."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return False
    numbers = [value for data in (before, after) for value in data.values()]
    if not all(isinstance(value, (int, float)) for value in numbers):
        return False
    return all(key in after and after[key] >= number for key, number in before.items())
