"""Playing a saved scenario again, with the connector that the user names, and saying what became of the failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hypothesis import strategies as st

import kvconform
from kvconform.api import release_of
from kvconform.cases.model import Case
from kvconform.checks import SITUATIONS_BY_NAME, Examination
from kvconform.config import RunConfig, read_run_config
from kvconform.conformance import Conformance
from kvconform.environment import prepare_environment
from kvconform.isolation.nursery import Nursery
from kvconform.isolation.room import CrashedError, HungError, Room
from kvconform.report.failure_text import crashed_text, failure_text, hung_text
from kvconform.report.masking import mask_settings
from kvconform.scenario.exploration import Outcome, Refused, bind_to_situation, missing, refusal_words, seen_of
from kvconform.scenario.family import Family
from kvconform.scenario.program import Program
from kvconform.target import Target, parse_target

Answer = Literal["FIXED", "FAILED", "ANOTHER RULE", "NOT SHOWN"]


@dataclass(frozen=True)
class Replay:
    """What playing a case again has shown."""

    answer: Answer
    #: One sentence.
    sentence: str
    #: The failure text; empty if nothing failed.
    text: str = ""
    #: What makes this play differ from the one that was saved.
    notes: tuple[str, ...] = ()

    @property
    def is_fixed(self) -> bool:
        """Whether the failure is gone."""
        return self.answer == "FIXED"


def read_settings(
    spec: str, config_file: Path | None, directory: Path, *, device: str | None, timeout: float | None
) -> tuple[Target, RunConfig]:
    """The connector and its settings, from the user's own words only.

    Args:
        spec: of the connector.
        config_file: as ``--kvconform-config``.
        directory: where the command was typed; its project's ``pyproject.toml`` counts, as for pytest.
        device, timeout: as the options of pytest; None if not given.

    Raises:
        UsageError: they cannot be used.
    """
    folders = (directory, *directory.parents)
    pyproject = next((folder / "pyproject.toml" for folder in folders if (folder / "pyproject.toml").is_file()), None)
    options = {"connector": [spec], "device": device, "timeout": timeout}
    config = read_run_config(options, None if config_file is None else directory / config_file, pyproject)
    target = parse_target(spec, directory)
    return target, config.for_target(target)


def replay(case: Case, target: Target, config: RunConfig, command: str) -> Replay:
    """Play the case in the connector's own process and judge it as the test did.

    Args:
        case: what to play.
        target: the connector; not the one that the case names.
        config: its settings.
        command: what was typed, for the failure text.

    Raises:
        UsageError: vLLM or the connector cannot be used.
        KitError: the kit's own fault.
    """
    restore = prepare_environment(config)
    try:
        with _conformance(target, config) as conformance:
            found = _play(case, conformance, command)
    finally:
        restore()
    return Replay(found.answer, found.sentence, found.text, tuple(_notes(case, target, config)))


@contextmanager
def _conformance(target: Target, config: RunConfig) -> Iterator[Conformance]:
    nursery = Nursery(config.resolved_device, engine=config.resolved_engine)
    room = Room(target, config, nursery)
    try:
        yield Conformance(target, config, room)
    finally:
        room.close()
        nursery.close()


def _play(case: Case, conformance: Conformance, command: str) -> Replay:
    family = _family(case)
    name, target = family.name, conformance.target.id
    try:
        examination = conformance.examine(case.program)
        examination, contrast = bind_to_situation(family, case.program, examination, conformance.examine)
    except Refused as error:
        return Replay("NOT SHOWN", refusal_words(str(error)))
    except HungError as error:
        return _lost(case, hung_text(error, name, target=target, reproduce=command))
    except CrashedError as error:
        return _lost(case, crashed_text(error, name, target=target, reproduce=command))
    if examination.clean:
        return _clean(case, family, examination)
    text = failure_text(
        examination.findings,
        examination.history,
        case.program,
        target=target,
        reproduce=command,
        contrast=contrast,
    )
    broken = list(dict.fromkeys(finding.rule for finding in examination.findings))
    still = [rule for rule in case.rules if rule in broken]
    if not still:
        kept = f"{', '.join(case.rules)} {'is' if len(case.rules) == 1 else 'are'} kept, but"
        return Replay("ANOTHER RULE", f"{kept} the scenario shows another rule broken: {', '.join(broken)}", text)
    gone = [rule for rule in case.rules if rule not in broken]
    kept = f"; {', '.join(gone)} {'is' if len(gone) == 1 else 'are'} kept now" if gone else ""
    return Replay("FAILED", f"{', '.join(still)} {'is' if len(still) == 1 else 'are'} still broken{kept}", text)


def _family(case: Case) -> Family:
    """The situations of the case, so that findings are bound to rules as in the run."""
    family: Family | None = None
    for situation in reversed(case.situations):
        family = Family(
            situation.name,
            situation.rule,
            (),
            st.nothing(),
            situation.words,
            _always(situation.control),
            keeps=frozenset(situation.keeps),
            general=family,
            shown=None if situation.shown is None else SITUATIONS_BY_NAME[situation.shown],
        )
    assert family is not None  # a case has a situation
    return family


def _always(program: Program | None) -> Callable[[Program], Program] | None:
    return None if program is None else lambda _: program


def _lost(case: Case, text: str) -> Replay:
    """The scenario hung, or took the process with it: that breaks the rule of its situation."""
    rule = case.situations[0].rule
    if rule in case.rules:
        return Replay("FAILED", f"{rule} is still broken", text)
    return Replay("ANOTHER RULE", f"the scenario shows another rule broken: {rule}", text)


def _clean(case: Case, family: Family, examination: Examination) -> Replay:
    """No rule is broken: that the failure is gone takes a witness of each rule that its situation arose again."""
    rules = f"{', '.join(case.rules)} {'is' if len(case.rules) == 1 else 'are'}"
    if case.how != "fail":
        return Replay("FIXED", f"the scenario ends, and {rules} kept")
    outcome = Outcome()
    outcome.note(examination)
    seen: dict[str, int] = {}
    for rule in case.rules:
        counted = {what: count for what, count in seen_of(family, outcome, rule).items() if count}
        if not counted:
            why = examination.engine_bug or missing(rule, family)
            return Replay("NOT SHOWN", f"no rule is broken, but nothing shows that {rule} is kept: {why}")
        seen |= counted
    return Replay("FIXED", f"{rules} kept (witnessed: {', '.join(f'{n} {what}' for what, n in seen.items())})")


def _notes(case: Case, target: Target, config: RunConfig) -> Iterator[str]:
    for name, saved, here in (
        ("kvconform", case.kit, kvconform.__version__),
        ("vLLM", case.vllm or "none", release_of(config.resolved_engine) or "none"),
    ):
        if saved != here:
            yield f"The case was found with {name} {saved}; here is {here}."
    known = case.connector
    if known.id != target.id:
        yield f"The case is one of {known.id}; it was played with {target.id}."
        return  # whose settings are others, of course
    differing = [
        name
        for name, saved, used in (
            ("kv_role", known.kv_role, config.kv_role),
            ("capabilities", sorted(known.capabilities), sorted(config.capabilities)),
            ("device", known.device, config.resolved_device),
            (
                "kv_connector_extra_config",
                dict(known.kv_connector_extra_config),
                mask_settings(dict(config.kv_connector_extra_config)),
            ),
        )
        if saved != used
    ]
    if differing:
        yield f"The case was found with other settings: {', '.join(differing)}; --config names the file that has them."
