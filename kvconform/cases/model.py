"""A failing scenario as it is kept: what to play, what it broke, and with what it was found.

Plain data in, plain data out. Nothing that a case file says is imported, evaluated or unpickled: the connector that a
case is played with is named on the command line, and its settings come from the user's own configuration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from kvconform.cases.limits import program_problem
from kvconform.checks import SITUATIONS_BY_NAME
from kvconform.isolation.codec import CodecError, dump_program, load_program
from kvconform.report.json_report import ReportError, parse
from kvconform.rules import Catalogue
from kvconform.scenario.program import Program

FORMAT = "kvconform-case"
#: Of the whole file, programs included: raised whenever an older kvconform would misread it. Files of version 1 name
#: nothing that has to be seen beyond compared loads, those before 3 no size of chunks.
FORMAT_VERSION = 3
#: No case that kvconform writes comes near these.
MAX_BYTES = 1 << 20
MAX_DEPTH = 60
_MAX_LIST = 100
_MAX_SITUATIONS = 5

#: How the scenario failed.
How = Literal["fail", "timeout", "crash"]
T = TypeVar("T")


class CaseError(ValueError):
    """A file is not a case that this kvconform can play. The message is one clear sentence."""


@dataclass(frozen=True)
class Tested:
    """The connector that broke the rules, for the reader; nothing of it is used to play the case."""

    spec: str
    id: str
    kv_role: str
    capabilities: tuple[str, ...]
    device: str
    #: Seconds for one scenario.
    timeout: float
    #: Secrets are masked.
    kv_connector_extra_config: Mapping[str, Any]


@dataclass(frozen=True)
class Situation:
    """What a scenario is about, see :class:`kvconform.scenario.family.Family`.

    ``rule`` is the one that symptoms are bound to if ``control``, the scenario without the situation, shows none.
    ``shown`` names what has to be seen for rules without a check of their own; None stands for compared loads.
    """

    name: str
    rule: str
    words: str
    keeps: tuple[str, ...]
    control: Program | None
    shown: str | None = None


@dataclass(frozen=True)
class Observation:
    """One finding."""

    rule: str
    expected: str
    observed: str


@dataclass(frozen=True)
class Case:
    """One failing scenario."""

    #: Version of kvconform, and that of vLLM or None.
    kit: str
    vllm: str | None
    connector: Tested
    #: pytest's id of the test, and the run's seed.
    test: str
    seed: int
    how: How
    #: The rules that the scenario broke.
    rules: tuple[str, ...]
    #: The special one first, then those of which it is a case.
    situations: tuple[Situation, ...]
    observations: tuple[Observation, ...]
    program: Program


def to_data(case: Case) -> dict[str, Any]:
    """A case as plain JSON data."""
    plain = {
        **vars(case),
        "connector": asdict(case.connector),
        "situations": [_plain_situation(situation) for situation in case.situations],
        "observations": [asdict(observation) for observation in case.observations],
        "program": dump_program(case.program),
    }
    data: dict[str, Any] = json.loads(json.dumps(plain, allow_nan=False))
    return {"format": FORMAT, "format_version": FORMAT_VERSION, **data}


def _plain_situation(situation: Situation) -> dict[str, Any]:
    control = situation.control
    return {**vars(situation), "control": None if control is None else dump_program(control)}


def dumps(case: Case) -> str:
    """A case as the text of a file."""
    return json.dumps(to_data(case), indent=1, allow_nan=False) + "\n"


def read(path: Path, catalogue: Catalogue) -> Case:
    """A case from a file.

    Raises:
        CaseError: the file cannot be read, or is no case that this kvconform can play.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CaseError(f"{path}: it is larger than {MAX_BYTES // 2**20} MiB, which no case is.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CaseError(f"{path}: there is no such file; give the path of a case.") from None
    except UnicodeDecodeError:
        raise CaseError(f"{path}: it is not JSON: not UTF-8 text.") from None
    except OSError as error:
        raise CaseError(f"{path}: it cannot be read: {error.strerror or error}.") from None
    try:
        return from_data(parse(text), catalogue)
    except ReportError as error:
        raise CaseError(f"{path}: {str(error).replace('for a report', 'for a case')}") from None
    except CaseError as error:
        raise CaseError(f"{path}: {error}") from None


def from_data(data: Any, catalogue: Catalogue) -> Case:
    """The inverse of :func:`to_data`, for data from anywhere.

    Raises:
        CaseError: it is no case that this kvconform can play.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CaseError(f'it is not a case of kvconform: expected is an object with "format": "{FORMAT}".')
    version = data.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise CaseError(
            f"it has format version {_short(version)}, and this kvconform reads 1 to {FORMAT_VERSION}: "
            "use the kvconform that wrote it."
        )
    if _too_deep(data):
        raise CaseError("it is nested too deeply for a case.")
    read = _Reader(data, "the case", {"format", "format_version", *Case.__dataclass_fields__})
    rules = read.strings("rules")
    if not rules:
        raise CaseError("the case names no rule that was broken.")
    situations = tuple(_situation(known, version) for known in read.list("situations"))
    if not 1 <= len(situations) <= _MAX_SITUATIONS:
        raise CaseError(f"the case has {len(situations)} situations, but expected are 1 to {_MAX_SITUATIONS}.")
    for rule in (*rules, *(rule for known in situations for rule in (known.rule, *known.keeps))):
        if rule not in catalogue:
            raise CaseError(f"it is about the rule {_short(rule)}, which this kvconform does not have.")
    for shown in (known.shown for known in situations if known.shown is not None):
        if shown not in SITUATIONS_BY_NAME:
            raise CaseError(f"it has to show {_short(shown)}, a situation that this kvconform does not know.")
    how = read.text("how")
    if how not in get_args(How):
        raise CaseError(f"how is {_short(how)}, but expected is one of {', '.join(get_args(How))}.")
    return Case(
        kit=read.text("kit"),
        vllm=None if data.get("vllm") is None else read.text("vllm"),
        connector=_tested(read.table("connector")),
        test=read.text("test"),
        seed=read.whole("seed"),
        how=how,  # type: ignore[arg-type]  # compared with How's own values
        rules=rules,
        situations=situations,
        observations=tuple(map(_observation, read.list("observations"))),
        program=_program(read.table("program"), "program"),
    )


def _situation(data: Any, version: int) -> Situation:
    read = _Reader(data, "a situation", set(Situation.__dataclass_fields__) - ({"shown"} if version == 1 else set()))
    return Situation(
        read.text("name"),
        read.text("rule"),
        read.text("words"),
        read.strings("keeps"),
        None if data["control"] is None else _program(read.table("control"), "control"),
        None if data.get("shown") is None else read.text("shown"),
    )


def _observation(data: Any) -> Observation:
    read = _Reader(data, "an observation", set(Observation.__dataclass_fields__))
    return Observation(read.text("rule"), read.text("expected"), read.text("observed"))


def _tested(data: dict[str, Any]) -> Tested:
    read = _Reader(data, "connector", set(Tested.__dataclass_fields__))
    return Tested(
        spec=read.text("spec"),
        id=read.text("id"),
        kv_role=read.text("kv_role"),
        capabilities=read.strings("capabilities"),
        device=read.text("device"),
        timeout=read.number("timeout"),
        kv_connector_extra_config=read.table("kv_connector_extra_config"),
    )


def _program(data: dict[str, Any], key: str) -> Program:
    try:
        program = load_program(data)
    except CodecError as error:
        raise CaseError(f"{key} is {_short(str(error), 300, quoted=False)}.") from None
    # The decoder turns "3" and 3.7 into 3, and false texts into true: what it understood must be what was written.
    differing = _difference(data, json.loads(json.dumps(dump_program(program))), key)
    if differing:
        raise CaseError(differing)
    problem = program_problem(program)
    if problem:
        raise CaseError(f"{key}: {problem}.")
    return program


class _Reader:
    """Values of one object, each of the type that it must have."""

    def __init__(self, data: Any, where: str, keys: set[str]) -> None:
        if not isinstance(data, dict):
            raise CaseError(f"{where} is {_short(data)}, but expected is an object.")
        unknown, lacking = sorted(set(data) - keys), sorted(keys - set(data))
        if unknown:
            raise CaseError(f"{where} has the unknown key {_short(unknown[0])}.")
        if lacking:
            raise CaseError(f"{where} lacks the key {lacking[0]!r}.")
        self._data, self._where = data, where

    def text(self, key: str) -> str:
        return self._get(key, str, "a text")

    def whole(self, key: str) -> int:
        return self._get(key, int, "a whole number")

    def number(self, key: str) -> float:
        value = self._data[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, "a number")
        return float(value)

    def table(self, key: str) -> dict[str, Any]:
        return self._get(key, dict, "an object")

    def list(self, key: str) -> list[Any]:
        value = self._get(key, list, "a list")
        if len(value) > _MAX_LIST:
            raise CaseError(f"{key} of {self._where} has {len(value)} entries; no case has more than {_MAX_LIST}.")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.list(key)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(key, "a list of texts")
        return tuple(values)

    def _get(self, key: str, kind: type[T], what: str) -> T:
        value = self._data[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self._wrong(key, what)
        return value

    def _wrong(self, key: str, what: str) -> CaseError:
        return CaseError(f"{key} of {self._where} is {_short(self._data[key])}, but expected is {what}.")


def _difference(given: Any, understood: Any, where: str) -> str:
    """Where ``given`` says something that ``understood`` does not; empty if nowhere. Keys may be left out."""
    if isinstance(given, dict) and isinstance(understood, dict):
        pairs = [(value, understood.get(key), f"{where}.{key}") for key, value in given.items()]
    elif isinstance(given, list) and isinstance(understood, list) and len(given) == len(understood):
        pairs = [(one, other, f"{where}[{i}]") for i, (one, other) in enumerate(zip(given, understood, strict=True))]
    elif type(given) is type(understood) and given == understood:
        return ""
    else:
        return f"{where} is {_short(given)}, which is nothing that kvconform writes there."
    return next(filter(None, (_difference(*pair) for pair in pairs)), "")


def _too_deep(data: Any) -> bool:
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True


def _short(value: Any, limit: int = 60, *, quoted: bool = True) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value) if quoted else " ".join(value.split())
    return text if len(text) <= limit else f"{text[:limit]}..."
