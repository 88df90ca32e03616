"""What was seen when a connector class was imported and built in a process of its own, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Raised:
    """An exception: its type's name, its first words, where it was raised, and where its own attribute was missing.

    ``in_call`` tells that the call itself failed, before any line of what was called ran. ``missing`` is the name of
    the attribute that the connector lacked, if it is an AttributeError of the connector's instance.
    """

    kind: str
    message: str
    where: str = ""
    in_call: bool = False
    missing: str = ""

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where and not self.in_call else ""
        return f"{self.kind}: {self.message}{place}"


@dataclass(frozen=True)
class Flag:
    """A class-level property as read from an instance: the type's name of its value, or what reading it raised."""

    kind: str = ""
    raised: Raised | None = None


@dataclass(frozen=True)
class RoleObservation:
    """One attempt to build one role through KVConnectorFactory.create_connector, and the instance it gave.

    ``by_keyword`` tells whether the class can be built when its arguments are given by name; it is only tried after a
    failure. ``hooks`` are the hooks called on the fresh instance, with what they raised or None.
    ``kv_cache_config`` is "kept", "None" or "another"; ``metadata_bound`` is has_connector_metadata().
    """

    role: str
    raised: Raised | None = None
    hung: bool = False
    by_keyword: bool = False
    is_connector: bool = False
    kind: str = ""
    base_missing: Raised | None = None
    role_kept: bool = False
    kv_cache_config: str = ""
    metadata_bound: bool = False
    flags: Mapping[str, Flag] = field(default_factory=dict)
    hooks: Mapping[str, Raised | None] = field(default_factory=dict)

    @property
    def built(self) -> bool:
        """Whether there is an instance."""
        return self.raised is None and not self.hung


@dataclass(frozen=True)
class ClassShape:
    """What the class object itself shows, without an instance.

    ``overrides`` are the hooks and class-level answers that are not the base class's own; ``hma`` tells whether vLLM
    takes the class for one that supports several KV cache groups. ``constructor`` is its signature in words, empty if
    Python can't tell, and ``constructor_problem`` why three positional arguments don't fit. ``findings`` are rules
    broken by the class alone: (rule, expected, observed).
    """

    name: str
    overrides: tuple[str, ...] = ()
    abstract_in_base: int = 0
    hma: bool = False
    constructor: str = ""
    constructor_problem: str = ""
    findings: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class ClassObservation:
    """A fresh process' view of a connector class.

    ``ended`` says how the process ended if it did not answer. ``effects`` are side effects of importing the module;
    ``seconds`` is how long that took with vLLM and torch already imported. ``answers_before`` and ``answers_after``
    are the class-level answers before any instance existed and after both roles were built. ``scheduler_alone`` was
    built where no worker was; ``worker_again`` is a second attempt after the scheduler role was built.
    """

    ended: str = ""
    shape: ClassShape | None = None
    imported: Raised | None = None
    resolved: Raised | None = None
    registered: bool = False
    effects: tuple[str, ...] = ()
    seconds: float = 0.0
    configured: Raised | None = None
    answers_before: Mapping[str, Raised | None] = field(default_factory=dict)
    answers_after: Mapping[str, Raised | None] = field(default_factory=dict)
    worker: RoleObservation | None = None
    scheduler: RoleObservation | None = None
    worker_again: RoleObservation | None = None
    scheduler_alone: RoleObservation | None = None

    @property
    def obstacle(self) -> str:
        """Why no instance could be built, in the words of vLLM or the connector; empty if both were."""
        if self.ended:
            return self.ended
        for raised in (self.imported, self.resolved, self.configured):
            if raised is not None:
                return str(raised)
        for role in (self.worker, self.scheduler):
            if role is None or role.hung:
                return "the constructor did not return"
            if role.raised is not None:
                return str(role.raised)
        return ""

    @property
    def not_simulated(self) -> str:
        """What the connector asked for that the kit does not have; empty if there was no such thing."""
        return next((raised.message for raised in _all_raised(self) if raised.kind in _NOT_SIMULATED), "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassObservation:
        """Inverse of :meth:`to_dict`."""
        values = dict(data)
        for name in ("imported", "resolved", "configured"):
            values[name] = _raised(values.get(name))
        for name in ("answers_before", "answers_after"):
            values[name] = {key: _raised(value) for key, value in values.get(name, {}).items()}
        for name in ("worker", "scheduler", "worker_again", "scheduler_alone"):
            values[name] = _role(values.get(name))
        values["shape"] = _shape(values.get("shape"))
        values["effects"] = tuple(values.get("effects", ()))
        return cls(**values)


# Exceptions by which the kit says so; they are no fault of a connector.
_NOT_SIMULATED = ("NotSimulated", "NotCoveredError")


def _all_raised(seen: Any) -> Iterator[Raised]:
    """Every exception in an observation."""
    if isinstance(seen, Raised):
        yield seen
    elif isinstance(seen, (Mapping, Flag, RoleObservation, ClassObservation)):
        for value in (seen if isinstance(seen, Mapping) else vars(seen)).values():
            yield from _all_raised(value)


def _raised(data: Mapping[str, Any] | None) -> Raised | None:
    return None if data is None else Raised(**data)


def _shape(data: Mapping[str, Any] | None) -> ClassShape | None:
    if data is None:
        return None
    findings = tuple((str(rule), str(expected), str(observed)) for rule, expected, observed in data["findings"])
    return ClassShape(**{**data, "overrides": tuple(data["overrides"]), "findings": findings})


def _role(data: Mapping[str, Any] | None) -> RoleObservation | None:
    if data is None:
        return None
    flags = {name: Flag(flag["kind"], _raised(flag["raised"])) for name, flag in data["flags"].items()}
    hooks = {name: _raised(raised) for name, raised in data["hooks"].items()}
    plain = {"raised": _raised(data["raised"]), "base_missing": _raised(data["base_missing"])}
    return RoleObservation(**{**data, **plain, "flags": flags, "hooks": hooks})
